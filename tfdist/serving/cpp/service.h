// What the server answers: which path is which request.

#pragma once

#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "http.h"
#include "metrics.h"
#include "model.h"
#include "scheduler.h"

namespace tfdist {

// One line for each request.
class AccessLog {
 public:
  explicit AccessLog(std::FILE* file) : file_(file) {}  // null for none

  void Write(const http::Request& request, int status, size_t bytes, const Times& times);
  bool Flush();  // whether all lines could be written

 private:
  std::FILE* const file_;
};

class Service {
 public:
  Service(const http::Server* server, Scheduler* scheduler, Metrics* metrics, AccessLog* log)
      : server_(server), scheduler_(scheduler), metrics_(metrics), log_(log) {}

  // Before the first request.
  void Add(std::unique_ptr<Model> model);

  void Handle(const http::Request& request, http::Reply reply) const;

 private:
  struct Call;
  struct Route;

  http::Response Answer(const http::Request& request, const Route& route) const;
  http::Response AnswerModel(const Route& route, const Model& model) const;
  void Predict(std::shared_ptr<Call> call, const Model& model) const;
  void Finish(const Call& call, http::Response response, const Times* times) const;
  bool IsReady() const;

  const http::Server* const server_;
  Scheduler* const scheduler_;
  Metrics* const metrics_;
  AccessLog* const log_;
  std::map<std::string, std::unique_ptr<Model>, std::less<>> models_;
};

}  // namespace tfdist
