#include "service.h"

#include <charconv>
#include <chrono>
#include <ctime>
#include <utility>

#include "json.h"
#include "open_inference.h"
#include "tensorflow_rest.h"

namespace tfdist {
namespace {

constexpr const char* kJsonSize = "Inference-Header-Content-Length";

int StatusOf(Error::Code code) {
  switch (code) {
    case Error::Code::kInvalid:
      return 400;
    case Error::Code::kNotFound:
      return 404;
    case Error::Code::kUnavailable:
      return 503;
    case Error::Code::kInternal:
      break;
  }
  return 500;
}

http::Response Ok(std::string body) { return {200, std::move(body)}; }

http::Response Failure(int status, std::string_view message) {
  return {status, rest::WriteError(message)};
}

http::Response Failure(const Error& error) { return Failure(StatusOf(error.code()), error.what()); }

// Takes a prefix off the text.
bool Take(std::string_view prefix, std::string_view* text) {
  if (text->substr(0, prefix.size()) != prefix) return false;
  text->remove_prefix(prefix.size());
  return true;
}

template <class T>
std::optional<T> NumberOf(std::string_view text) {
  T number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end || number < 0) return std::nullopt;
  return number;
}

}  // namespace

// A path, taken apart: `model` and what follows it are empty if it has none.
struct Service::Route {
  enum class Api { kOther, kTensorflow, kOpenInference };

  Api api = Api::kOther;
  std::string_view path;  // without the query
  std::string_view model;
  std::optional<int64_t> version;
  std::string_view action;  // "predict", "metadata", "infer", "ready"; empty for the model itself

  explicit Route(std::string_view target) : path(target.substr(0, target.find('?'))) {
    std::string_view left = path;
    if (Take("/v1/models/", &left)) {
      api = Api::kTensorflow;
    } else if (Take("/v2/models/", &left)) {
      api = Api::kOpenInference;
    } else {
      return;
    }
    const char* separators = api == Api::kTensorflow ? "/:" : "/";
    model = left.substr(0, left.find_first_of(separators));
    left.remove_prefix(model.size());
    if (Take("/versions/", &left)) {
      const std::string_view number = left.substr(0, left.find_first_of(separators));
      left.remove_prefix(number.size());
      version = NumberOf<int64_t>(number);
      if (!version) throw Error(Error::Code::kNotFound, "the version must be a number");
    }
    if (!left.empty()) action = left.substr(1);
  }

  bool Runs() const {
    if (api == Api::kOpenInference) return action == "infer";
    return action == "predict" || action == "classify" || action == "regress";
  }
};

// A request that runs a model.
struct Service::Call {
  Route route;
  const http::Request& request;
  http::Reply reply;
  ModelMetrics* metrics;
};

void AccessLog::Write(const http::Request& request, int status, size_t bytes, const Times& times) {
  if (file_ == nullptr) return;
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto millis =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm utc;
  gmtime_r(&seconds, &utc);
  char date[32];
  std::strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", &utc);
  const auto method = request.method(), target = request.target();
  // One call, so that lines of several threads are not mixed.
  std::fprintf(file_, "%s.%03dZ %s %.*s %.*s %d %zu total_us=%.0f queue_us=%.0f session_us=%.0f\n",
               date, static_cast<int>(millis), request.peer().c_str(),
               static_cast<int>(method.size()), method.data(), static_cast<int>(target.size()),
               target.data(), status, bytes, times.total * 1e6, times.queue * 1e6,
               times.session * 1e6);
}

bool AccessLog::Flush() {
  return file_ == nullptr || (std::fflush(file_) == 0 && !std::ferror(file_));
}

void Service::Add(std::unique_ptr<Model> model) {
  const std::string name = model->name();
  models_.emplace(name, std::move(model));
}

void Service::Handle(const http::Request& request, http::Reply reply) const {
  auto call = std::make_shared<Call>(Call{Route(""), request, std::move(reply), nullptr});
  try {
    call->route = Route(request.target());
    const auto found = models_.find(call->route.model);
    if (found != models_.end()) call->metrics = &metrics_->Of(found->first);
    if (!call->route.Runs()) return Finish(*call, Answer(request, call->route), nullptr);
    if (request.method() != "POST") {
      http::Response response = Failure(405, "use POST");
      response.headers.emplace_back("Allow", "POST");
      return Finish(*call, std::move(response), nullptr);
    }
    if (found == models_.end()) {
      throw Error(Error::Code::kNotFound,
                  "Servable not found for request: Latest(" + Shortened(call->route.model) + ")");
    }
    if (const auto coding = request.header("Content-Encoding");
        !coding.empty() && coding != "identity") {
      return Finish(*call, Failure(415, "the body must not be compressed"), nullptr);
    }
    Predict(call, *found->second);
  } catch (const Error& error) {
    Finish(*call, Failure(error), nullptr);
  } catch (const std::exception& error) {
    Finish(*call, Failure(500, error.what()), nullptr);
  }
}

bool Service::IsReady() const {
  if (server_->is_stopping()) return false;
  for (const auto& [name, model] : models_) {
    if (!model->IsReady()) return false;
  }
  return true;
}

http::Response Service::Answer(const http::Request& request, const Route& route) const {
  const bool is_known = route.api != Route::Api::kOther || route.path == "/healthz" ||
                        route.path == "/metrics" || route.path == "/v2" ||
                        route.path == "/v2/health/live" || route.path == "/v2/health/ready";
  if (!is_known) return Failure(404, "there is nothing at this path");
  if (request.method() != "GET") {
    http::Response response = Failure(405, "use GET");
    response.headers.emplace_back("Allow", "GET, HEAD");
    return response;
  }
  if (route.path == "/metrics") {
    http::Response response = Ok(metrics_->Text(server_->num_connections()));
    response.content_type = "text/plain; version=0.0.4";
    return response;
  }
  if (route.path == "/healthz" || route.path == "/v2/health/ready") {
    if (IsReady()) return Ok("{\"ready\": true}\n");
    return {503, "{\"ready\": false}\n"};
  }
  if (route.path == "/v2/health/live") return Ok("{\"live\": true}\n");
  if (route.path == "/v2") return Ok(oip::WriteServerMetadata());
  const auto found = models_.find(route.model);
  if (found == models_.end()) {
    throw Error(Error::Code::kNotFound,
                "Could not find any versions of model " + Shortened(route.model));
  }
  return AnswerModel(route, *found->second);
}

http::Response Service::AnswerModel(const Route& route, const Model& model) const {
  if (route.api == Route::Api::kTensorflow) {
    if (route.action == "metadata") {
      const auto version = model.Get(route.version);
      return Ok(
          rest::WriteMetadata(model.name(), version->number, version->predictor->signatures()));
    }
    if (!route.action.empty()) return Failure(404, "there is nothing at this path");
    std::vector<rest::VersionStatus> statuses;
    for (auto& status : model.Status()) {
      if (!route.version || *route.version == status.version) statuses.push_back(status);
    }
    if (route.version && statuses.empty()) model.Get(route.version);  // throws
    return Ok(rest::WriteStatus(statuses));
  }
  if (route.action == "ready") {
    model.Get(route.version);
    return Ok("{\"ready\": true}\n");
  }
  if (!route.action.empty()) return Failure(404, "there is nothing at this path");
  const auto version = model.Get(route.version);
  std::vector<int64_t> numbers;
  for (const auto& status : model.Status()) {
    if (status.error.empty()) numbers.push_back(status.version);
  }
  return Ok(oip::WriteModelMetadata(model.name(), numbers, version->predictor->signatures()));
}

void Service::Predict(std::shared_ptr<Call> call, const Model& model) const {
  const auto version = model.Get(call->route.version);
  const Signatures& signatures = version->predictor->signatures();
  const std::string_view body = call->request.body();
  // What makes the answer from the outputs.
  std::function<http::Response(const Outputs&)> write;
  std::string signature;
  Inputs inputs;
  if (call->route.api == Route::Api::kOpenInference) {
    std::optional<size_t> json_size;
    if (const auto size = call->request.header(kJsonSize); !size.empty()) {
      json_size = NumberOf<size_t>(size);
      if (!json_size) ThrowInvalid(std::string(kJsonSize) + " must be a number");
    }
    auto request = oip::ReadInfer(body, json_size, signatures);
    signature = request.signature;
    inputs = std::exchange(request.inputs, {});
    write = [request = std::move(request), version, &model](const Outputs& outputs) {
      auto written = oip::WriteInfer(outputs, request, model.name(), version->number);
      http::Response response = Ok(std::move(written.body));
      if (written.json_size) {
        response.headers.emplace_back(kJsonSize, std::to_string(*written.json_size));
        response.content_type = "application/octet-stream";
      }
      return response;
    };
  } else if (call->route.action == "predict") {
    auto request = rest::ReadPredict(body, signatures);
    signature = request.signature;
    inputs = std::exchange(request.inputs, {});
    write = [request = std::move(request)](const Outputs& outputs) {
      return Ok(rest::WritePredict(outputs, request));
    };
  } else {
    const auto request = rest::ReadExamples(body);
    const bool classify = call->route.action == "classify";
    signature = request.signature;
    inputs = rest::ExamplesInput(
        request, classify ? "tensorflow/serving/classify" : "tensorflow/serving/regress",
        signatures);
    write = [classify](const Outputs& outputs) {
      return Ok(classify ? rest::WriteClassify(outputs) : rest::WriteRegress(outputs));
    };
  }
  scheduler_->Submit(version->predictor, signature, std::move(inputs),
                     [this, call, write = std::move(write)](Prediction prediction) {
                       http::Response response;
                       try {
                         response = prediction.error ? Failure(*prediction.error)
                                                     : write(prediction.outputs);
                       } catch (const Error& error) {
                         response = Failure(error);
                       } catch (const std::exception& error) {
                         response = Failure(500, error.what());
                       }
                       Finish(*call, std::move(response), &prediction.times);
                     });
}

void Service::Finish(const Call& call, http::Response response, const Times* times) const {
  Times complete = times ? *times : Times();
  complete.total =
      std::chrono::duration<double>(http::Clock::now() - call.request.received()).count();
  if (call.metrics) call.metrics->Count(response.status, times ? &complete : nullptr);
  log_->Write(call.request, response.status, response.body.size(), complete);
  call.reply(std::move(response));
}

}  // namespace tfdist
