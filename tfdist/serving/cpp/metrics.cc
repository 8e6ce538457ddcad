#include "metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>

namespace tfdist {
namespace {

void Add(std::atomic<double>* sum, double value) {
  double before = sum->load(std::memory_order_relaxed);
  while (!sum->compare_exchange_weak(before, before + value, std::memory_order_relaxed)) {
  }
}

std::string Text(double value) {
  char digits[32];
  return std::string(digits, std::to_chars(digits, digits + sizeof(digits), value).ptr);
}

void WriteLine(const std::string& name, const std::string& labels, double value,
               std::string* text) {
  text->append(name);
  if (!labels.empty()) text->append("{" + labels + "}");
  text->append(" " + Text(value) + "\n");
}

void WriteType(const std::string& name, const char* type, const char* help, std::string* text) {
  text->append("# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n");
}

double SecondsOf(const timeval& time) { return time.tv_sec + time.tv_usec * 1e-6; }

double ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  file >> size >> resident;
  return static_cast<double>(resident) * sysconf(_SC_PAGESIZE);
}

}  // namespace

void Histogram::Observe(double value) {
  const auto bound = std::lower_bound(kBounds.begin(), kBounds.end(), value);
  counts_[bound - kBounds.begin()].fetch_add(1, std::memory_order_relaxed);
  Add(&sum_, value);
}

void Histogram::Write(const std::string& name, const std::string& labels, std::string* text) const {
  uint64_t count = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    count += counts_[i].load(std::memory_order_relaxed);
    const std::string bound = i < kBounds.size() ? Text(kBounds[i]) : "+Inf";
    WriteLine(name + "_bucket", labels + ",le=\"" + bound + "\"", count, text);
  }
  WriteLine(name + "_sum", labels, sum_, text);
  WriteLine(name + "_count", labels, count, text);
}

void ModelMetrics::Count(int status, const Times* times) {
  {
    std::lock_guard lock(mutex_);
    ++by_status_[status];
  }
  if (times == nullptr) return;
  total_.Observe(times->total);
  queue_.Observe(times->queue);
  session_.Observe(times->session);
  transport_.Observe(std::max(0.0, times->total - times->queue - times->session));
  Add(&session_cpu_, times->session_cpu);
  runs_.fetch_add(1'000'000 / times->batch_requests, std::memory_order_relaxed);
}

ModelMetrics& Metrics::Of(const std::string& model) {
  std::lock_guard lock(mutex_);
  return models_[model];
}

std::string Metrics::Text(int num_connections) const {
  std::lock_guard lock(mutex_);
  std::string text;
  const auto each = [&](const std::string& name, const char* type, const char* help, auto write) {
    WriteType(name, type, help, &text);
    for (const auto& [model, metrics] : models_) {
      write(name, "model=\"" + model + "\"", const_cast<ModelMetrics&>(metrics));
    }
  };
  each("tfdist_requests_total", "counter", "Requests by HTTP status.",
       [&](const std::string& name, const std::string& labels, ModelMetrics& model) {
         std::lock_guard lock(model.mutex_);
         for (const auto& [status, count] : model.by_status_) {
           WriteLine(name, labels + ",code=\"" + std::to_string(status) + "\"", count, &text);
         }
       });
  const auto histogram = [&](const std::string& name, const char* help, auto member) {
    each(name, "histogram", help,
         [&](const std::string& name, const std::string& labels, ModelMetrics& model) {
           (model.*member).Write(name, labels, &text);
         });
  };
  histogram("tfdist_request_seconds", "From the header to the answer.", &ModelMetrics::total_);
  histogram("tfdist_queue_seconds", "Waiting for a free thread.", &ModelMetrics::queue_);
  histogram("tfdist_session_seconds", "Running the model.", &ModelMetrics::session_);
  histogram("tfdist_transport_seconds", "Receiving, parsing, writing and sending.",
            &ModelMetrics::transport_);
  const auto value = [&](const std::string& name, const char* type, const char* help, auto read) {
    each(name, type, help,
         [&](const std::string& name, const std::string& labels, ModelMetrics& model) {
           WriteLine(name, labels, read(model), &text);
         });
  };
  value("tfdist_session_cpu_seconds_total", "counter",
        "Processor time of running the model, from samples.",
        [](ModelMetrics& model) { return model.session_cpu_.load(); });
  value("tfdist_session_runs_total", "counter", "Runs of the model; a batch is one.",
        [](ModelMetrics& model) { return model.runs_ * 1e-6; });
  value("tfdist_model_loads_total", "counter", "Versions that were loaded.",
        [](ModelMetrics& model) { return model.loads_.load(); });
  value("tfdist_model_failed_loads_total", "counter", "Versions that could not be loaded.",
        [](ModelMetrics& model) { return model.failed_loads_.load(); });
  value("tfdist_model_version", "gauge", "The newest version that is served.",
        [](ModelMetrics& model) { return model.version_.load(); });
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  WriteType("process_cpu_seconds_total", "counter", "Processor time of the server.", &text);
  WriteLine("process_cpu_seconds_total", "", SecondsOf(usage.ru_utime) + SecondsOf(usage.ru_stime),
            &text);
  WriteType("process_resident_memory_bytes", "gauge", "Resident memory of the server.", &text);
  WriteLine("process_resident_memory_bytes", "", ResidentBytes(), &text);
  WriteType("tfdist_connections", "gauge", "Open connections.", &text);
  WriteLine("tfdist_connections", "", num_connections, &text);
  return text;
}

}  // namespace tfdist
