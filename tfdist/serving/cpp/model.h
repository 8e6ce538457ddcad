// A served model: a folder whose subfolders 1, 2, ... are versions, each a SavedModel.

#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "metrics.h"
#include "predictor.h"
#include "tensorflow_rest.h"

namespace tfdist {

struct Version {
  int64_t number;
  std::shared_ptr<const Predictor> predictor;
};

// Finds, loads and releases the versions. `Get` and `Status` can be called by several threads, also
// while one thread calls `Poll`.
class Model {
 public:
  // Receives one line about a version that was loaded, released or refused.
  using Report = std::function<void(const std::string& line)>;

  // `folder` contains versions, or is one. Serves the `num_versions` newest ones that can be
  // loaded.
  Model(std::string name, std::filesystem::path folder, int num_versions, ModelMetrics* metrics,
        Report report);

  const std::string& name() const { return name_; }

  // The newest version without a number. Throws Error if it is not served.
  std::shared_ptr<const Version> Get(std::optional<int64_t> number) const;

  // The served versions and those that could not be loaded, the newest first.
  std::vector<rest::VersionStatus> Status() const;

  bool IsReady() const;

  // Loads versions that are new and releases old ones. A new version is first warmed up with the
  // requests of its golden.json. `settled_only`: a version is loaded once its files are the same as
  // at the last call, since a version that is still copied can look complete.
  void Poll(bool settled_only);

 private:
  std::map<int64_t, std::filesystem::path> Candidates() const;
  std::shared_ptr<const Version> Load(int64_t number, const std::filesystem::path& folder);

  const std::string name_;
  const std::filesystem::path folder_;
  const int num_versions_;
  ModelMetrics* const metrics_;
  const Report report_;

  // Only for Poll.
  std::map<int64_t, std::string> fingerprints_;  // of candidates at the last call
  std::map<int64_t, std::string> loaded_;        // of served versions, when they were loaded
  std::map<int64_t, std::string> refused_;       // fingerprints of versions that failed to load
  std::vector<std::shared_ptr<const Version>> released_;

  mutable std::mutex mutex_;  // of what follows
  std::map<int64_t, std::shared_ptr<const Version>> served_;
  std::map<int64_t, std::string> errors_;
};

}  // namespace tfdist
