#include "scheduler.h"

#include <time.h>

#include <algorithm>
#include <utility>

namespace tfdist {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// Asking for it takes a twentieth of the time of a small model, so only some runs ask.
constexpr uint64_t kRunsPerCpuSample = 16;

double ThreadCpuSeconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return time.tv_sec + time.tv_nsec * 1e-9;
}

bool HasRows(const Slot& slot) {
  return !slot.is_sparse && !slot.any_rank && !slot.shape.empty() && slot.shape[0] < 0;
}

// The rows that all inputs have, or 0 if there is no such number.
int64_t RowsOf(const Inputs& inputs) {
  int64_t rows = 0;
  for (const auto& [name, input] : inputs) {
    const auto* tensor = std::get_if<Tensor>(&input);
    if (tensor == nullptr || tensor->shape().empty()) return 0;
    if (rows == 0) rows = tensor->shape()[0];
    if (tensor->shape()[0] != rows) return 0;
  }
  return rows;
}

// Inputs of the same names, types and sizes of a row have the same key.
std::string KeyOf(const std::string& signature, const Inputs& inputs) {
  std::string key = signature;
  for (const auto& [name, input] : inputs) {
    const Tensor& tensor = std::get<Tensor>(input);
    Shape row = tensor.shape();
    row[0] = -1;
    key.append(1, '\0').append(name).append(1, '\0').append(NameOf(tensor.dtype()));
    key.append(TextOf(row));
  }
  return key;
}

template <class T>
void Append(const std::vector<T>& from, std::vector<T>* to) {
  to->insert(to->end(), from.begin(), from.end());
}

// One below the other.
Tensor Concatenated(const std::vector<const Tensor*>& parts) {
  Shape shape = parts.front()->shape();
  Values values = NoValues(parts.front()->dtype());
  shape[0] = 0;
  for (const Tensor* part : parts) {
    shape[0] += part->shape()[0];
    std::visit(
        [&](auto& all) {
          using Vector = std::decay_t<decltype(all)>;
          Append(std::get<Vector>(part->any_values()), &all);
        },
        values);
  }
  return Tensor(std::move(shape), std::move(values));
}

Tensor RowsFrom(const Tensor& tensor, int64_t start, int64_t rows) {
  Shape shape = tensor.shape();
  Values values = std::visit(
      [&](const auto& all) -> Values {
        const auto first = all.begin() + all.size() / shape[0] * start;
        return std::decay_t<decltype(all)>(first, first + all.size() / shape[0] * rows);
      },
      tensor.any_values());
  shape[0] = rows;
  return Tensor(std::move(shape), std::move(values));
}

}  // namespace

bool Scheduler::CanBatch(const Signature& signature) const {
  const auto has_rows = [](const auto& named) { return HasRows(named.second); };
  return options_.max_batch_rows > 1 && !signature.inputs.empty() &&
         std::all_of(signature.inputs.begin(), signature.inputs.end(), has_rows) &&
         std::all_of(signature.outputs.begin(), signature.outputs.end(), has_rows);
}

void Scheduler::Submit(std::shared_ptr<const Predictor> predictor, const std::string& signature,
                       Inputs inputs, Done done) {
  Job job{std::move(predictor), signature, std::move(inputs), std::move(done), Clock::now(), 0, ""};
  const auto& signatures = job.predictor->signatures();
  const auto found = signatures.find(signature);
  if (found != signatures.end() && CanBatch(found->second)) {
    job.rows = RowsOf(job.inputs);
    if (job.rows > 0) job.key = KeyOf(signature, job.inputs);
  }
  {
    std::lock_guard lock(mutex_);
    if (static_cast<int>(waiting_.size()) >= options_.max_waiting) {
      throw Error(Error::Code::kUnavailable,
                  std::to_string(options_.max_waiting) + " requests wait already");
    }
    waiting_.push_back(std::move(job));
    if (running_ == options_.max_running) return;
    ++running_;
  }
  if (options_.max_batch_rows > 1) {
    // After the requests that can be read now: they can run with this one.
    defer_([this] { RunNext(); });
  } else {
    // In this thread: to wake another one would take longer than a small model runs.
    RunNext();
  }
}

void Scheduler::RunNext() {
  Run(Take());
  {
    std::lock_guard lock(mutex_);
    if (waiting_.empty()) {
      --running_;
      return;
    }
  }
  // Not now: the thread may be needed to read and answer requests.
  defer_([this] { RunNext(); });
}

std::vector<Scheduler::Job> Scheduler::Take() {
  std::lock_guard lock(mutex_);
  std::vector<Job> taken;
  if (waiting_.empty()) return taken;  // they ran in a batch
  taken.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
  int64_t rows = taken.front().rows;
  if (rows == 0) return taken;
  std::deque<Job> left;
  for (Job& job : waiting_) {
    const bool fits = job.rows > 0 && job.rows <= options_.max_batch_rows - rows &&
                      job.predictor == taken.front().predictor && job.key == taken.front().key;
    if (fits) {
      rows += job.rows;
      taken.push_back(std::move(job));
    } else {
      left.push_back(std::move(job));
    }
  }
  waiting_ = std::move(left);
  return taken;
}

void Scheduler::Run(std::vector<Job> jobs) const {
  if (jobs.empty()) return;
  const auto start = Clock::now();
  thread_local uint64_t runs = 0;
  const bool is_sampled = runs++ % kRunsPerCpuSample == 0;
  const double cpu = is_sampled ? ThreadCpuSeconds() : 0;
  Outputs outputs;
  std::optional<Error> error;
  try {
    if (jobs.size() == 1) {
      outputs = jobs.front().predictor->Predict(jobs.front().inputs, jobs.front().signature);
    } else {
      Inputs inputs;
      for (const auto& [name, unused] : jobs.front().inputs) {
        std::vector<const Tensor*> parts;
        for (const Job& job : jobs) parts.push_back(&std::get<Tensor>(job.inputs.at(name)));
        inputs.emplace(name, Concatenated(parts));
      }
      outputs = jobs.front().predictor->Predict(inputs, jobs.front().signature);
    }
  } catch (const Error& caught) {
    error = caught;
  } catch (const std::exception& caught) {
    error = Error(Error::Code::kInternal, caught.what());
  }
  if (jobs.size() > 1) {
    int64_t rows = 0;
    for (const Job& job : jobs) rows += job.rows;
    const bool has_all = std::all_of(outputs.begin(), outputs.end(), [&](const auto& named) {
      return !named.second.shape().empty() && named.second.shape()[0] == rows;
    });
    if (error || !has_all) {
      // Only the requests that are wrong by themselves get the error.
      for (Job& job : jobs) {
        std::vector<Job> one;
        one.push_back(std::move(job));
        Run(std::move(one));
      }
      return;
    }
  }
  Times times;
  times.session = Seconds(Clock::now() - start);
  if (is_sampled) {
    times.session_cpu = kRunsPerCpuSample * (ThreadCpuSeconds() - cpu) / jobs.size();
  }
  times.batch_requests = jobs.size();
  int64_t row = 0;
  for (Job& job : jobs) {
    Prediction prediction;
    prediction.error = error;
    prediction.times = times;
    prediction.times.queue = Seconds(start - job.queued);
    if (jobs.size() == 1) {
      prediction.outputs = std::move(outputs);
    } else {
      for (const auto& [name, output] : outputs) {
        prediction.outputs.emplace(name, RowsFrom(output, row, job.rows));
      }
      row += job.rows;
    }
    job.done(std::move(prediction));
  }
}

}  // namespace tfdist
