// An HTTP/1.1 server. All its threads wait for the same events, so a request waits only while every
// thread is busy. If all of them are busy for long, one more thread joins them: it keeps accepting,
// reading and refusing. No header of the HTTP library is needed to use it.

#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace tfdist::http {

using Clock = std::chrono::steady_clock;

class Request {
 public:
  virtual ~Request() = default;

  virtual std::string_view method() const = 0;  // "GET" also for HEAD
  virtual std::string_view target() const = 0;  // with the query
  virtual std::string_view body() const = 0;
  virtual std::string_view header(std::string_view name) const = 0;  // empty if it is missing
  virtual const std::string& peer() const = 0;                       // address and port
  virtual Clock::time_point received() const = 0;                    // its header
};

struct Response {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// Answers a request. Has to be called exactly once, by any thread.
using Reply = std::function<void(Response)>;
// Must not throw. `request` is valid until the reply was called.
using Handler = std::function<void(const Request& request, Reply reply)>;

struct Options {
  std::string host = "127.0.0.1";
  int port = 8501;  // 0 for a free one
  int threads = 0;  // 0 for one per processor
  uint64_t max_body_bytes = 16 << 20;
  int max_connections = 10'000;  // further ones wait to be accepted
  // For the next request of an idle connection, for a body to arrive, and for an answer to be read.
  std::chrono::seconds timeout{60};
  // After SIGTERM or SIGINT, connections stay open this long for requests that are on their way.
  std::chrono::milliseconds goodbye{1000};
  // After that, requests that run have this long.
  std::chrono::seconds drain{30};
  // Also stop as after a signal when standard input ends: with the process that has started this
  // one.
  bool stop_with_stdin = false;
};

class Server {
 public:
  // Listens, and blocks SIGTERM and SIGINT in this thread and in those that it starts: do it before
  // TensorFlow starts some. Until Run a signal ends the process. Throws std::exception if the
  // address cannot be used.
  explicit Server(const Options& options);
  ~Server();

  int port() const;
  int num_connections() const;
  bool is_stopping() const;

  // Serves requests until SIGTERM or SIGINT, and then until those that have come are answered. If
  // one is still running after `drain`, or at a second signal, the process ends with an error.
  void Run(Handler handler);

  // Runs the function in a thread of the server, after the current event of this thread.
  void Defer(std::function<void()> function);

  struct State;  // for the implementation

 private:
  std::unique_ptr<State> state_;
  std::thread signal_thread_;
};

}  // namespace tfdist::http
