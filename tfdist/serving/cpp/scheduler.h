// Decides which requests run next, and which of them run together.

#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "metrics.h"
#include "predictor.h"

namespace tfdist {

// What a request got: outputs or an error.
struct Prediction {
  Outputs outputs;
  std::optional<Error> error;
  Times times;  // without the total
};

struct SchedulerOptions {
  int max_running = 1;         // runs of models at the same time
  int max_waiting = 1000;      // further requests get an error
  int64_t max_batch_rows = 1;  // 1: every request runs alone
};

// Requests of all models run in the order in which they came. No request waits in order to be
// batched: when a model can run, all requests that wait and fit to the first one run with it.
class Scheduler {
 public:
  using Done = std::function<void(Prediction)>;
  // Runs a function soon, in some thread.
  using Defer = std::function<void(std::function<void()>)>;

  Scheduler(const SchedulerOptions& options, Defer defer)
      : options_(options), defer_(std::move(defer)) {}

  // Runs the request, or lets it wait. `done` is called once, before or after this returns, by any
  // thread. Throws Error if too many requests wait.
  void Submit(std::shared_ptr<const Predictor> predictor, const std::string& signature,
              Inputs inputs, Done done);

 private:
  struct Job {
    std::shared_ptr<const Predictor> predictor;
    std::string signature;
    Inputs inputs;
    Done done;
    std::chrono::steady_clock::time_point queued;
    int64_t rows = 0;  // 0: runs alone
    std::string key;   // jobs with the same predictor and key can run together
  };

  void RunNext();
  std::vector<Job> Take();
  void Run(std::vector<Job> jobs) const;
  bool CanBatch(const Signature& signature) const;

  const SchedulerOptions options_;
  const Defer defer_;
  std::mutex mutex_;  // of what follows
  std::deque<Job> waiting_;
  int running_ = 0;
};

}  // namespace tfdist
