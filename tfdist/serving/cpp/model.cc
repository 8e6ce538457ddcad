#include "model.h"

#include <malloc.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <fstream>
#include <sstream>
#include <utility>

namespace tfdist {
namespace {

namespace fs = std::filesystem;

bool IsSavedModel(const fs::path& folder) {
  std::error_code error;
  return fs::exists(folder / "saved_model.pb", error) ||
         fs::exists(folder / "saved_model.pbtxt", error);
}

std::optional<int64_t> VersionOf(const std::string& name) {
  int64_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (error != std::errc() || end != name.data() + name.size() || number < 0) return std::nullopt;
  return number;
}

// Changes when a file of the folder does.
std::string FingerprintOf(const fs::path& folder) {
  uint64_t count = 0, size = 0;
  fs::file_time_type newest = fs::file_time_type::min();
  std::error_code error;
  for (fs::recursive_directory_iterator each(folder, error), end; !error && each != end;
       each.increment(error)) {
    std::error_code ignored;  // a file can disappear meanwhile
    const auto time = each->last_write_time(ignored);
    if (!ignored) newest = std::max(newest, time);
    if (each->is_regular_file(ignored)) size += each->file_size(ignored);
    ++count;
  }
  return std::to_string(count) + " " + std::to_string(size) + " " +
         std::to_string(newest.time_since_epoch().count());
}

std::string TextOfFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Runs the requests that were recorded when the model was exported: the first run of an operation
// allocates memory and is slow.
void WarmUp(const Predictor& predictor, const fs::path& folder) {
  const fs::path golden = folder / "golden.json";
  std::error_code ignored;
  if (!fs::is_regular_file(golden, ignored)) return;
  try {
    for (const auto& request : rest::ReadGolden(TextOfFile(golden), predictor.signatures())) {
      predictor.Predict(request.inputs, request.signature);
    }
  } catch (const Error& error) {
    throw Error(error.code(), golden.string() + ": " + error.what());
  }
}

// With another allocator the system's malloc_trim has no effect.
extern "C" void MallocExtension_ReleaseFreeMemory() __attribute__((weak));

void ReturnMemory() {
  if (MallocExtension_ReleaseFreeMemory != nullptr) {
    MallocExtension_ReleaseFreeMemory();
  } else {
    malloc_trim(0);
  }
}

}  // namespace

Model::Model(std::string name, fs::path folder, int num_versions, ModelMetrics* metrics,
             Report report)
    : name_(std::move(name)),
      folder_(std::move(folder)),
      num_versions_(num_versions),
      metrics_(metrics),
      report_(std::move(report)) {}

std::shared_ptr<const Version> Model::Get(std::optional<int64_t> number) const {
  std::lock_guard lock(mutex_);
  const auto found =
      number || served_.empty() ? served_.find(number.value_or(-1)) : std::prev(served_.end());
  if (found == served_.end()) {
    // The words of TensorFlow Serving.
    throw Error(Error::Code::kNotFound,
                "Servable not found for request: " +
                    (number ? "Specific(" + name_ + ", " + std::to_string(*number) + ")"
                            : "Latest(" + name_ + ")"));
  }
  return found->second;
}

std::vector<rest::VersionStatus> Model::Status() const {
  std::lock_guard lock(mutex_);
  std::vector<rest::VersionStatus> statuses;
  for (const auto& [number, version] : served_) statuses.push_back({number, "AVAILABLE", ""});
  for (const auto& [number, error] : errors_) statuses.push_back({number, "END", error});
  std::sort(statuses.begin(), statuses.end(),
            [](const auto& one, const auto& other) { return one.version > other.version; });
  return statuses;
}

bool Model::IsReady() const {
  std::lock_guard lock(mutex_);
  return !served_.empty();
}

std::map<int64_t, fs::path> Model::Candidates() const {
  if (IsSavedModel(folder_)) return {{VersionOf(folder_.filename()).value_or(1), folder_}};
  std::map<int64_t, fs::path> found;
  std::error_code error;
  for (fs::directory_iterator each(folder_, error), end; !error && each != end;
       each.increment(error)) {
    const auto number = VersionOf(each->path().filename());
    if (number && IsSavedModel(each->path())) found.emplace(*number, each->path());
  }
  return found;
}

std::shared_ptr<const Version> Model::Load(int64_t number, const fs::path& folder) {
  const auto start = std::chrono::steady_clock::now();
  auto predictor = Predictor::Load(folder);
  WarmUp(*predictor, folder);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f s", seconds.count());
  report_(name_ + ": loaded version " + std::to_string(number) + " in " + text);
  return std::make_shared<Version>(Version{number, std::move(predictor)});
}

void Model::Poll(bool settled_only) {
  const auto candidates = Candidates();
  // Only this function changes these, so reading them needs no lock.
  const auto served = served_;
  auto errors = errors_;
  std::map<int64_t, std::shared_ptr<const Version>> wanted;
  std::map<int64_t, std::string> fingerprints;
  for (auto each = candidates.rbegin(); each != candidates.rend(); ++each) {
    const auto& [number, folder] = *each;
    if (static_cast<int>(wanted.size()) == num_versions_) break;
    const std::string fingerprint = fingerprints[number] = FingerprintOf(folder);
    if (const auto found = served.find(number); found != served.end()) {
      wanted.insert(*found);
      if (loaded_[number] != fingerprint) {
        report_(name_ + ": version " + std::to_string(number) +
                " has changed on disk and is served as it was loaded: write another version");
        loaded_[number] = fingerprint;
      }
      continue;
    }
    if (refused_[number] == fingerprint) continue;
    if (settled_only && fingerprints_[number] != fingerprint) continue;
    try {
      wanted[number] = Load(number, folder);
      loaded_[number] = fingerprint;
      errors.erase(number);
      metrics_->CountLoad(true);
    } catch (const Error& error) {
      refused_[number] = fingerprint;
      errors[number] = error.what();
      metrics_->CountLoad(false);
      report_(name_ + ": cannot load version " + std::to_string(number) + ": " + error.what());
    }
  }
  fingerprints_ = std::move(fingerprints);
  // A model whose folder was emptied is served until there is another version.
  if (wanted.empty()) wanted = served;
  for (auto each = errors.begin(); each != errors.end();) {
    each = candidates.count(each->first) > 0 ? std::next(each) : errors.erase(each);
  }
  for (const auto& [number, version] : served) {
    if (wanted.count(number) > 0) continue;
    report_(name_ + ": released version " + std::to_string(number));
    released_.push_back(version);
  }
  if (!wanted.empty()) metrics_->SetVersion(wanted.rbegin()->first);
  {
    std::lock_guard lock(mutex_);
    served_ = std::move(wanted);
    errors_ = std::move(errors);
  }
  // Destroyed here, and not by the last request that used it, since this takes milliseconds.
  const auto unused = std::remove_if(released_.begin(), released_.end(), [](const auto& version) {
    return version.use_count() == 1 && version->predictor.use_count() == 1;
  });
  if (unused == released_.end()) return;
  released_.erase(unused, released_.end());
  ReturnMemory();  // the parameters were large
}

}  // namespace tfdist
