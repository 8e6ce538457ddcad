// Counts and times of requests, as text for Prometheus.
// https://prometheus.io/docs/instrumenting/exposition_formats/

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace tfdist {

class Histogram {
 public:
  void Observe(double value);
  // Appends the lines of one metric.
  void Write(const std::string& name, const std::string& labels, std::string* text) const;

 private:
  // Seconds: a small model takes 20 us, and a request of 10 s is an incident.
  static constexpr std::array<double, 17> kBounds = {20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3,
                                                     2e-3,  5e-3,  10e-3,  20e-3,  50e-3,  0.1,
                                                     0.2,   0.5,   1,      2,      10};

  std::array<std::atomic<uint64_t>, kBounds.size() + 1> counts_{};
  std::atomic<double> sum_{0};
};

// Seconds that a request took, by what it did.
struct Times {
  double queue = 0;        // waited for a free thread
  double session = 0;      // the model ran
  double session_cpu = 0;  // of the processor, in session; an estimate, often 0
  double total = 0;        // from the header to the answer; the rest is transport
  int batch_requests = 1;  // that ran together
};

// The metrics of one model.
class ModelMetrics {
 public:
  // A request that was answered with this status. `times` only if the model ran.
  void Count(int status, const Times* times);

  void CountLoad(bool succeeded) { ++(succeeded ? loads_ : failed_loads_); }
  void SetVersion(int64_t version) { version_ = version; }

 private:
  friend class Metrics;

  std::mutex mutex_;
  std::map<int, uint64_t> by_status_;
  Histogram total_, queue_, session_, transport_;
  std::atomic<double> session_cpu_{0};
  std::atomic<uint64_t> runs_{0};  // in units of 1e-6, since a request is a part of a run
  std::atomic<uint64_t> loads_{0}, failed_loads_{0};
  std::atomic<int64_t> version_{0};
};

class Metrics {
 public:
  // The same object for the same name. It exists as long as this one.
  ModelMetrics& Of(const std::string& model);

  std::string Text(int num_connections) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, ModelMetrics> models_;
};

}  // namespace tfdist
