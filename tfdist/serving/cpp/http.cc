#include "http.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <unordered_set>

namespace tfdist::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using asio::ip::tcp;
using beast::error_code;
// Named, since the executor of any type that is the default costs virtual calls for each event.
using Strand = asio::strand<asio::io_context::executor_type>;
using Socket = asio::basic_stream_socket<tcp, Strand>;

constexpr uint32_t kMaxHeaderBytes = 16 << 10;
// Of what is read and not parsed yet: the parser has no limit for the header of a chunk.
constexpr size_t kMaxBufferedBytes = 128 << 10;
// A client that still sends when its request is refused has this long to read the answer.
constexpr std::chrono::seconds kLinger{2};
// How long all threads are busy before another one helps, and how long that one helps.
constexpr std::chrono::milliseconds kHelp{20};

class Connection;

}  // namespace

struct Server::State {
  explicit State(const Options& given)
      : options(given),
        threads(given.threads > 0 ? given.threads
                                  : std::max(1u, std::thread::hardware_concurrency())),
        // And the helper. With the number 1 a thread that stops its share of the work would not
        // wake the other one, and no thread would wait for events any more.
        io(threads + 1),
        control(asio::make_strand(io)),
        acceptor(control),
        timer(control),
        standard_input(control) {}

  void Accept();
  bool Open(Socket socket);  // whether there is room for another one
  void Stop();
  void StopWithStandardInput();
  void Remove(Connection* connection);
  void Drain();
  void Work(const std::function<void()>& function);
  void HelpWhileAllAreBusy();
  void WaitForSignals(sigset_t signals);

  const Options options;
  const int threads;
  Handler handler;
  std::atomic<int> busy{0};         // threads within the handler or a deferred function
  std::atomic<uint64_t> worked{0};  // how many of these have ended
  std::atomic<bool> running{false};
  std::atomic<bool> stopping{false};
  std::atomic<bool> destroyed{false};

  std::mutex mutex;
  std::unordered_set<Connection*> connections;
  bool accepting = false;          // guarded by `mutex` too
  bool ended = false;              // and this
  std::condition_variable ending;  // of `ended`

  asio::io_context io;
  Strand control;  // of what follows
  asio::basic_socket_acceptor<tcp, Strand> acceptor;
  asio::steady_timer timer;
  asio::posix::stream_descriptor standard_input;
  char ignored[64];  // what it says
};

namespace {

class Connection : public Request, public std::enable_shared_from_this<Connection> {
 public:
  Connection(Socket socket, Server::State* state) : stream_(std::move(socket)), state_(state) {
    error_code error;
    stream_.socket().set_option(tcp::no_delay(true), error);
    const auto peer = stream_.socket().remote_endpoint(error);
    if (!error) {
      peer_ = peer.address().to_string() + ":" + std::to_string(peer.port());
    }
  }
  ~Connection() override { state_->Remove(this); }

  std::string_view method() const override {
    return is_head_ ? "GET" : std::string_view(view(parser_->get().method_string()));
  }
  std::string_view target() const override { return view(parser_->get().target()); }
  std::string_view body() const override { return parser_->get().body(); }
  std::string_view header(std::string_view name) const override {
    return view(parser_->get()[beast::string_view(name.data(), name.size())]);
  }
  const std::string& peer() const override { return peer_; }
  Clock::time_point received() const override { return received_; }

  void Start() {
    asio::dispatch(stream_.get_executor(), [self = shared_from_this()] { self->ReadHeader(); });
  }

  // Ends a connection that waits for a request.
  void CloseIfIdle() {
    asio::post(stream_.get_executor(), [self = shared_from_this()] {
      if (self->is_idle_) self->stream_.close();
    });
  }

 private:
  static std::string_view view(beast::string_view text) { return {text.data(), text.size()}; }

  void ReadHeader() {
    parser_.emplace();
    parser_->header_limit(kMaxHeaderBytes);
    parser_->body_limit(state_->options.max_body_bytes);
    is_idle_ = true;
    // For the whole header: a client that sends a byte now and then does not extend it.
    stream_.expires_after(state_->options.timeout);
    beast::http::async_read_header(
        stream_, buffer_, *parser_,
        [self = shared_from_this()](error_code error, size_t) { self->OnHeader(error); });
  }

  void OnHeader(error_code error) {
    is_idle_ = false;
    received_ = Clock::now();
    is_head_ = false;
    if (error) return Refuse(error);
    const auto coding = parser_->get().find(beast::http::field::transfer_encoding);
    if (coding != parser_->get().end() && !beast::iequals(coding->value(), "chunked")) {
      // The parser takes it for a request without a body, and its body for the next request.
      return Refuse(beast::http::error::bad_transfer_encoding);
    }
    is_head_ = parser_->get().method() == beast::http::verb::head;
    if (beast::iequals(parser_->get()[beast::http::field::expect], "100-continue")) {
      static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
      asio::async_write(stream_, asio::buffer(kContinue.data(), kContinue.size()),
                        [self = shared_from_this()](error_code error, size_t) {
                          if (!error) self->ReadBody();
                        });
      return;
    }
    ReadBody();
  }

  void ReadBody() {
    // Most bodies have come with the header.
    parser_->eager(true);
    error_code error;
    while (!parser_->is_done() && buffer_.size() > 0 && !error) {
      buffer_.consume(parser_->put(buffer_.data(), error));
    }
    if (error == beast::http::error::need_more) error = {};
    if (error) return Refuse(error);
    if (parser_->is_done()) return Handle();
    stream_.expires_after(state_->options.timeout);
    beast::http::async_read(stream_, buffer_, *parser_,
                            [self = shared_from_this()](error_code error, size_t) {
                              if (error) return self->Refuse(error);
                              self->Handle();
                            });
  }

  void Handle() {
    stream_.expires_never();  // the model may take its time
    keep_alive_ = parser_->get().keep_alive();
    state_->Work([&] {
      state_->handler(*this, [self = shared_from_this()](Response response) {
        self->response_ = std::move(response);
        asio::dispatch(self->stream_.get_executor(), [self] { self->Write(); });
      });
    });
  }

  // Answers what is no request.
  void Refuse(error_code error) {
    using Problem = beast::http::error;
    static const auto& category = beast::http::make_error_code(Problem::bad_method).category();
    // Else the client is gone, or was too slow.
    if (error.category() != category || error == Problem::end_of_stream) return Close();
    keep_alive_ = false;
    response_ = Response();
    response_.status = 400;
    std::string message = "this is no HTTP request: " + error.message();
    if (error == Problem::body_limit) {
      response_.status = 413;
      message =
          "the body must have at most " + std::to_string(state_->options.max_body_bytes) + " bytes";
    } else if (error == Problem::header_limit) {
      response_.status = 431;
      message = "the header must have at most " + std::to_string(kMaxHeaderBytes) + " bytes";
    }
    response_.body = "{\"error\": \"" + message + "\"}\n";
    Write();
  }

  void Write() {
    if (state_->stopping) keep_alive_ = false;
    const auto status = static_cast<beast::http::status>(response_.status);
    const auto reason = beast::http::obsolete_reason(status);
    head_ = "HTTP/1.1 " + std::to_string(response_.status) + " ";
    head_.append(reason.data(), reason.size());
    head_ += "\r\nContent-Type: " + response_.content_type +
             "\r\nContent-Length: " + std::to_string(response_.body.size()) + "\r\n";
    for (const auto& [name, value] : response_.headers) head_ += name + ": " + value + "\r\n";
    // HTTP/1.0 closes by default.
    head_ += keep_alive_ ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n";
    if (is_head_) response_.body.clear();
    const std::array<asio::const_buffer, 2> buffers = {asio::buffer(head_),
                                                       asio::buffer(response_.body)};
    stream_.expires_after(state_->options.timeout);
    asio::async_write(stream_, buffers, [self = shared_from_this()](error_code error, size_t) {
      if (error) return self->Close();
      if (self->keep_alive_) return self->ReadHeader();
      self->Linger();
    });
  }

  // Reads what the client still sends. Otherwise the system would reset the connection, and the
  // client could lose the answer.
  void Linger() {
    error_code error;
    stream_.socket().shutdown(tcp::socket::shutdown_send, error);
    stream_.expires_after(kLinger);
    Discard();
  }

  void Discard() {
    buffer_.clear();
    stream_.async_read_some(buffer_.prepare(64 << 10),
                            [self = shared_from_this()](error_code error, size_t) {
                              if (error) return self->Close();
                              self->Discard();
                            });
  }

  void Close() { stream_.close(); }

  using Parser = beast::http::request_parser<beast::http::string_body>;

  beast::basic_stream<tcp, Strand> stream_;
  Server::State* state_;
  std::string peer_;
  beast::flat_buffer buffer_{kMaxBufferedBytes};
  std::optional<Parser> parser_;
  Clock::time_point received_;
  bool is_idle_ = false;
  bool is_head_ = false;
  bool keep_alive_ = false;
  Response response_;
  std::string head_;
};

}  // namespace

void Server::State::Accept() {
  // The strand keeps a timeout of the connection apart from its other events.
  acceptor.async_accept(asio::make_strand(io), [this](error_code error, Socket socket) {
    if (error && stopping) return;
    if (error) {
      // No file descriptor is free, for example.
      timer.expires_after(std::chrono::milliseconds(100));
      timer.async_wait([this](error_code error) {
        if (!error) Accept();
      });
      return;
    }
    if (Open(std::move(socket)) && !stopping) Accept();
  });
}

bool Server::State::Open(Socket socket) {
  const auto connection = std::make_shared<Connection>(std::move(socket), this);
  bool has_room;
  {
    std::lock_guard lock(mutex);
    connections.insert(connection.get());
    has_room = accepting = static_cast<int>(connections.size()) < options.max_connections;
  }
  connection->Start();
  return has_room;
}

void Server::State::Remove(Connection* connection) {
  std::lock_guard lock(mutex);
  connections.erase(connection);
  if (stopping) {
    if (connections.empty()) asio::post(control, [this] { timer.cancel(); });
  } else if (!accepting) {
    accepting = true;
    asio::post(control, [this] { Accept(); });
  }
}

void Server::State::WaitForSignals(sigset_t signals) {
  for (bool first = true;; first = false) {
    int signal = 0;
    sigwait(&signals, &signal);
    if (destroyed) return;
    // During the start, or again: the user does not want to wait.
    if (!first || !running) std::_Exit(128 + signal);
    asio::post(control, [this] { Stop(); });
  }
}

void Server::State::StopWithStandardInput() {
  standard_input.async_read_some(asio::buffer(ignored), [this](error_code error, size_t) {
    if (stopping) return;
    if (error) return Stop();
    StopWithStandardInput();
  });
}

void Server::State::Stop() {
  if (stopping.exchange(true)) return;
  error_code error;
  // Those that the system has accepted already would be reset.
  acceptor.non_blocking(true, error);
  for (Socket socket(asio::make_strand(io)); !acceptor.accept(socket, error);
       socket = Socket(asio::make_strand(io))) {
    Open(std::move(socket));
  }
  acceptor.close(error);
  standard_input.close(error);
  timer.expires_after(options.goodbye);
  timer.async_wait([this](error_code) { Drain(); });
  std::lock_guard lock(mutex);
  if (connections.empty()) timer.cancel();
}

void Server::State::Drain() {
  // Declared before the lock: the last reference to a connection calls Remove, which locks too.
  std::vector<std::shared_ptr<Connection>> open;
  {
    std::lock_guard lock(mutex);
    if (connections.empty()) return;
    for (Connection* connection : connections) {
      // Null if its destructor waits for the lock.
      if (auto alive = connection->weak_from_this().lock()) open.push_back(std::move(alive));
    }
  }
  for (const auto& connection : open) connection->CloseIfIdle();
  timer.expires_after(options.drain);
  timer.async_wait([this](error_code error) {
    if (error) return;  // all connections are closed
    // A model cannot be interrupted.
    std::fputs("some requests were still running at the end\n", stderr);
    std::fflush(nullptr);
    std::_Exit(1);
  });
}

void Server::State::Work(const std::function<void()>& function) {
  ++busy;
  function();
  --busy;
  ++worked;
}

void Server::State::HelpWhileAllAreBusy() {
  // One more thread that always takes part would cost each request a tenth of its time.
  std::unique_lock lock(mutex);
  for (uint64_t before = worked; !ending.wait_for(lock, kHelp, [this] { return ended; });
       before = worked) {
    if (busy < threads || worked != before) continue;
    lock.unlock();
    io.run_for(kHelp);
    lock.lock();
  }
}

Server::Server(const Options& options) : state_(std::make_unique<State>(options)) {
  // A signal handler that interrupts a matrix product of oneDNN can damage the memory of the
  // process (seen with TensorFlow 2.21 and AVX-512). So no thread that runs a model receives these.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const tcp::endpoint endpoint(asio::ip::make_address(options.host), options.port);
  state_->acceptor.open(endpoint.protocol());
  state_->acceptor.set_option(asio::socket_base::reuse_address(true));
  state_->acceptor.bind(endpoint);
  state_->acceptor.listen();
  signal_thread_ = std::thread([this, signals] { state_->WaitForSignals(signals); });
}

Server::~Server() {
  state_->destroyed = true;
  pthread_kill(signal_thread_.native_handle(), SIGTERM);
  signal_thread_.join();
}

int Server::port() const { return state_->acceptor.local_endpoint().port(); }

int Server::num_connections() const {
  std::lock_guard lock(state_->mutex);
  return state_->connections.size();
}

bool Server::is_stopping() const { return state_->stopping; }

void Server::Run(Handler handler) {
  state_->handler = std::move(handler);
  std::signal(SIGPIPE, SIG_IGN);
  state_->running = true;
  if (state_->options.stop_with_stdin) {
    state_->standard_input.assign(STDIN_FILENO);
    state_->StopWithStandardInput();
  }
  state_->accepting = true;
  state_->Accept();
  std::vector<std::thread> others;
  for (int i = 1; i < state_->threads; ++i) {
    others.emplace_back([this] { state_->io.run(); });
  }
  std::thread helper([this] { state_->HelpWhileAllAreBusy(); });
  state_->io.run();
  for (auto& thread : others) thread.join();
  {
    std::lock_guard lock(state_->mutex);
    state_->ended = true;
  }
  state_->ending.notify_one();
  helper.join();
}

void Server::Defer(std::function<void()> function) {
  asio::defer(state_->io, [this, function = std::move(function)] { state_->Work(function); });
}

}  // namespace tfdist::http
