// tfdist-server: answers requests over HTTP from SavedModels.

#include <getopt.h>

#include <charconv>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <mutex>
#include <set>
#include <thread>

#include "service.h"

namespace {

namespace fs = std::filesystem;

constexpr const char* kUsage = R"(usage: tfdist-server [OPTION]... MODEL_DIR...

Serves TensorFlow SavedModels by TensorFlow Serving's REST API and by the Open Inference Protocol.
MODEL_DIR contains the versions 1, 2, ... of a model, or is one version. NAME=MODEL_DIR names the model;
otherwise it has the name of its folder.

  --host ADDRESS         where to listen (127.0.0.1: this machine only)
  --port PORT            0 for a free one (8501)
  --threads N            how many requests run at the same time (one per processor)
  --max-batch-rows N     requests that wait run together, up to so many rows (1: each runs alone)
  --max-waiting N        further requests are answered with 503 (1000)
  --max-body-mb N        a larger body is answered with 413 (16)
  --versions N           how many of the newest versions of a model are served (1)
  --poll-ms N            milliseconds between two looks for new versions (1000)
  --drain-seconds N      after SIGTERM, for requests that still run (30)
  --wait                 start although a model has no version yet
  --access-log FILE      one line for each request; - for standard output (none)
  --json                 print where it serves as one JSON object
  --stop-with-stdin      stop, as after SIGTERM, when standard input ends
  --help
)";

[[noreturn]] void Fail(int code, const std::string& message) {
  std::cerr << "tfdist-server: " << message << std::endl;
  std::exit(code);
}

[[noreturn]] void WrongUsage(const std::string& message) {
  Fail(2, message + "; see tfdist-server --help");
}

struct Flags {
  tfdist::http::Options http;
  tfdist::SchedulerOptions scheduler;
  int versions = 1;
  int poll_ms = 1000;
  bool wait = false;
  bool json = false;
  std::string access_log;
  std::map<std::string, fs::path> models;
};

int Number(const std::string& flag, const char* text, int least, int most) {
  int number = 0;
  const char* end = text + std::char_traits<char>::length(text);
  const auto [stop, error] = std::from_chars(text, end, number);
  if (error != std::errc() || stop != end || number < least || number > most) {
    WrongUsage("--" + flag + ": got '" + text + "'; must be a whole number from " +
               std::to_string(least) + " to " + std::to_string(most));
  }
  return number;
}

void AddModel(const std::string& argument, Flags* flags) {
  // A folder that has the sign in its name needs no other name.
  const size_t sign = fs::is_directory(argument) ? argument.npos : argument.find('=');
  fs::path folder = argument.substr(sign == argument.npos ? 0 : sign + 1);
  folder = fs::absolute(folder).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "models/line/"
  if (!fs::is_directory(folder)) WrongUsage("there is no folder " + folder.string());
  std::string name = argument.substr(0, sign);
  if (sign == argument.npos) {
    name = fs::exists(folder / "saved_model.pb") ? folder.parent_path().filename().string()
                                                 : folder.filename().string();
  }
  const bool valid = !name.empty() && name.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                          "0123456789_.-") == name.npos;
  if (!valid) {
    WrongUsage("the name of a model has letters, digits, '_', '.' and '-', not '" + name +
               "': write NAME=MODEL_DIR");
  }
  if (!flags->models.emplace(name, folder).second) WrongUsage("two models are named " + name);
}

Flags Parse(int argc, char** argv) {
  static const option kOptions[] = {{"host", required_argument, nullptr, 'h'},
                                    {"port", required_argument, nullptr, 'p'},
                                    {"threads", required_argument, nullptr, 't'},
                                    {"max-batch-rows", required_argument, nullptr, 'b'},
                                    {"max-waiting", required_argument, nullptr, 'w'},
                                    {"max-body-mb", required_argument, nullptr, 'm'},
                                    {"versions", required_argument, nullptr, 'v'},
                                    {"poll-ms", required_argument, nullptr, 's'},
                                    {"drain-seconds", required_argument, nullptr, 'd'},
                                    {"wait", no_argument, nullptr, 'W'},
                                    {"access-log", required_argument, nullptr, 'a'},
                                    {"json", no_argument, nullptr, 'j'},
                                    {"stop-with-stdin", no_argument, nullptr, 'i'},
                                    {"help", no_argument, nullptr, 'H'},
                                    {}};
  Flags flags;
  flags.scheduler.max_running = std::max(1u, std::thread::hardware_concurrency());
  int index = 0;
  opterr = 0;
  for (int chosen; (chosen = getopt_long(argc, argv, "", kOptions, &index)) != -1;) {
    const auto number = [&](int least, int most) {
      return Number(kOptions[index].name, optarg, least, most);
    };
    switch (chosen) {
      case 'h':
        flags.http.host = optarg;
        break;
      case 'p':
        flags.http.port = number(0, 65535);
        break;
      case 't':
        flags.scheduler.max_running = number(1, 1024);
        break;
      case 'b':
        flags.scheduler.max_batch_rows = number(1, 1 << 20);
        break;
      case 'w':
        flags.scheduler.max_waiting = number(1, 1 << 20);
        break;
      case 'm':
        flags.http.max_body_bytes = static_cast<uint64_t>(number(1, 1024)) << 20;
        break;
      case 'v':
        flags.versions = number(1, 1000);
        break;
      case 's':
        flags.poll_ms = number(1, 86'400'000);
        break;
      case 'd':
        flags.http.drain = std::chrono::seconds(number(0, 86400));
        break;
      case 'W':
        flags.wait = true;
        break;
      case 'a':
        flags.access_log = optarg;
        break;
      case 'H':
        std::cout << kUsage;
        std::exit(0);
      case 'j':
        flags.json = true;
        break;
      case 'i':
        flags.http.stop_with_stdin = true;
        break;
      default:
        WrongUsage("unknown or incomplete option " + std::string(argv[optind - 1]));
    }
  }
  for (int i = optind; i < argc; ++i) AddModel(argv[i], &flags);
  if (flags.models.empty()) WrongUsage("MODEL_DIR is missing");
  flags.http.threads = flags.scheduler.max_running;
  return flags;
}

std::FILE* OpenLog(const std::string& path) {
  if (path.empty()) return nullptr;
  if (path == "-") return stdout;
  std::FILE* file = std::fopen(path.c_str(), "a");
  if (file == nullptr) WrongUsage("--access-log: cannot write " + path);
  return file;
}

void Announce(const Flags& flags, int port) {
  const bool is_ipv6 = flags.http.host.find(':') != std::string::npos;
  const std::string host = is_ipv6 ? "[" + flags.http.host + "]" : flags.http.host;
  const std::string url = "http://" + host + ":" + std::to_string(port);
  std::string names;
  for (const auto& [name, folder] : flags.models) {
    const std::string quote = flags.json ? "\"" : "";
    names += (names.empty() ? "" : ", ") + quote + name + quote;
  }
  if (flags.json) {
    std::cout << "{\"url\": \"" << url << "\", \"models\": [" << names << "]}" << std::endl;
  } else {
    std::cout << "serving " << names << " at " << url << std::endl;
  }
}

// Looks for versions until it is destroyed.
class Watcher {
 public:
  Watcher(std::vector<tfdist::Model*> models, int poll_ms, tfdist::AccessLog* log)
      : thread_([this, models, poll_ms, log] {
          bool log_failed = false;
          std::unique_lock lock(mutex_);
          while (!stopped_.wait_for(lock, std::chrono::milliseconds(poll_ms),
                                    [this] { return stop_; })) {
            for (tfdist::Model* model : models) model->Poll(/*settled_only=*/true);
            if (!log->Flush() && !log_failed) {
              std::cerr << "the access log cannot be written: lines are lost" << std::endl;
              log_failed = true;
            }
          }
        }) {}

  ~Watcher() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    stopped_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable stopped_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace

int main(int argc, char** argv) {
  const Flags flags = Parse(argc, argv);
  tfdist::AccessLog log(OpenLog(flags.access_log));
  std::unique_ptr<tfdist::http::Server> server;
  try {
    server = std::make_unique<tfdist::http::Server>(flags.http);
  } catch (const std::exception& error) {
    Fail(1, "cannot listen at the IP address " + flags.http.host + ", port " +
                std::to_string(flags.http.port) + ": " + error.what());
  }
  tfdist::Metrics metrics;
  tfdist::Scheduler scheduler(flags.scheduler,
                              [&](std::function<void()> run) { server->Defer(std::move(run)); });
  tfdist::Service service(server.get(), &scheduler, &metrics, &log);
  std::vector<tfdist::Model*> models;
  for (const auto& [name, folder] : flags.models) {
    auto model = std::make_unique<tfdist::Model>(
        name, folder, flags.versions, &metrics.Of(name),
        [](const std::string& line) { std::cerr << line << std::endl; });
    model->Poll(/*settled_only=*/false);
    if (!model->IsReady() && !flags.wait) {
      Fail(1, model->Status().empty() ? folder.string() + " has no version, such as " +
                                            folder.string() + "/1/saved_model.pb"
                                      : "no version of " + name + " can be loaded");
    }
    models.push_back(model.get());
    service.Add(std::move(model));
  }
  // Once the server runs: a signal that follows the announcement must not find it unprepared.
  server->Defer([&flags, port = server->port()] { Announce(flags, port); });
  {
    Watcher watcher(models, flags.poll_ms, &log);
    server->Run([&](const tfdist::http::Request& request, tfdist::http::Reply reply) {
      service.Handle(request, std::move(reply));
    });
  }
  log.Flush();
  return 0;
}
