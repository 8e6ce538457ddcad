// Runs the requests for a model, several at a time if they fit together.

#pragma once

#include <atomic>
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

struct BatcherOptions {
  int64_t max_batch_rows = 1;  // 1: every request runs alone
  int max_waiting = 1000;      // of all models; further requests get an error
};

// The number of requests that wait, of all models.
using Waiting = std::atomic<int>;

// No request waits in order to be batched: a thread that becomes free runs those together that have
// come while all threads were busy.
class Batcher : public std::enable_shared_from_this<Batcher> {
 public:
  using Done = std::function<void(Prediction)>;
  // Runs a function soon, in some thread.
  using Defer = std::function<void(std::function<void()>)>;

  Batcher(std::unique_ptr<Predictor> predictor, const BatcherOptions& options, Defer defer,
          Waiting* waiting);

  const Predictor& predictor() const { return *predictor_; }

  // `done` is called once, by another thread or later. Throws Error if too many requests wait.
  void Submit(const std::string& signature, Inputs inputs, Done done);

 private:
  struct Job {
    std::string signature;
    Inputs inputs;
    Done done;
    std::chrono::steady_clock::time_point queued;
    int64_t rows = 0;  // 0: runs alone
    std::string key;   // jobs with the same key can run together
  };

  void RunNext();
  std::vector<Job> Take();
  void Run(std::vector<Job> jobs) const;
  bool CanBatch(const Signature& signature) const;

  const std::unique_ptr<Predictor> predictor_;
  const BatcherOptions options_;
  const Defer defer_;
  Waiting* const waiting_;
  std::mutex mutex_;
  std::deque<Job> jobs_;
};

}  // namespace tfdist
