// Streamed tokens per second of CPU time of the HTTP layer: an engine that only hands out tokens,
// loopback clients that only count events.
//
//   sse_bench [streams] [tokens per stream] [lead] [repetitions]
//
// `lead` is how many steps the engine may be ahead of the clients: 1 = every token is a write of
// its own (a fast network, a slow model), larger = tokens that are ready together leave together.
// Reported per lead: tokens/s of wall time (engine, server and clients share the machine), and
// tokens/s of the IO thread's own CPU time, which is the HTTP layer's cost.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>
#include <vector>

#include "server/server.h"

namespace {

using namespace capstan;  // NOLINT(google-build-using-namespace): one file, all of the program
using Clock = std::chrono::steady_clock;

std::atomic<int64_t> received{0};  // events the clients have seen

class WordTokenizer final : public text::Tokenizer {
 public:
  Result<std::vector<int32_t>> encode(std::string_view, bool) const override {
    return std::vector<int32_t>{1, 2, 3};
  }
  Result<std::string> decode(std::span<const int32_t> ids, bool) const override {
    std::string out;
    for (size_t i = 0; i < ids.size(); ++i) out += " word";
    return out;
  }
  std::string_view token_bytes(int32_t) const override { return " word"; }
  bool is_special(int32_t) const override { return false; }
  std::optional<int32_t> id_of(std::string_view) const override { return std::nullopt; }
  int32_t vocab_size() const override { return 1000; }
  int32_t bos_id() const override { return 1; }
  int32_t eos_id() const override { return 2; }
  const std::string& bos_token() const override { return empty_; }
  const std::string& eos_token() const override { return empty_; }
  const std::string& chat_template() const override { return empty_; }

 private:
  std::string empty_;
};

class NullEngine final : public engine::Engine {
 public:
  explicit NullEngine(int streams, int64_t lead) : streams_(streams), lead_(lead) {
    model_.vocab_size = 1000;
    config_.scheduler.context_length = 1 << 24;
    thread_ = std::thread([this] { run(); });
  }
  ~NullEngine() override {
    {
      const std::lock_guard lock(mutex_);
      quit_ = true;
    }
    ready_.notify_all();
    thread_.join();
  }
  Result<engine::RequestId> submit(engine::EngineRequest r, engine::OutputSink sink) override {
    const std::lock_guard lock(mutex_);
    limit_ = r.sampling.max_new_tokens;
    sinks_.push_back(std::move(sink));
    ready_.notify_all();
    return sinks_.size();
  }
  void cancel(engine::RequestId, engine::FinishKind, std::string) override {}
  void cancel_all(std::string) override {}
  void set_paused(bool) override {}
  bool flush_cache() override { return true; }
  void begin_drain() override {}
  bool idle() const override { return true; }
  engine::EngineStats stats() const override { return {}; }
  const model::ModelConfig& model_config() const override { return model_; }
  const engine::EngineConfig& config() const override { return config_; }
  double seconds() const { return seconds_; }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return quit_ || static_cast<int>(sinks_.size()) == streams_; });
    if (quit_) return;
    const auto begin = Clock::now();
    for (int step = 0; step < limit_; ++step) {
      for (const engine::OutputSink& sink : sinks_) {
        engine::OutputEvent event;
        event.prompt_tokens = 3;
        event.tokens.emplace_back();
        event.tokens.back().token = step & 511;
        if (step + 1 == limit_) {
          event.finished = true;
          event.finish = engine::FinishKind::kLength;
        }
        sink(std::move(event));
      }
      while (received.load(std::memory_order_relaxed) < (step + 1 - lead_) * streams_) {
        std::this_thread::yield();
      }
    }
    while (received.load() < static_cast<int64_t>(limit_) * streams_) std::this_thread::yield();
    seconds_ = std::chrono::duration<double>(Clock::now() - begin).count();
  }

  const int streams_;
  const int64_t lead_;
  int limit_ = 0;
  double seconds_ = 0;
  bool quit_ = false;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::vector<engine::OutputSink> sinks_;
  model::ModelConfig model_;
  engine::EngineConfig config_;
  std::thread thread_;
};

// CPU seconds used so far by this process's threads of that name.
double thread_seconds(const std::string& name) {
  double total = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream comm(task.path() / "comm"), schedstat(task.path() / "schedstat");
    std::string own;
    std::getline(comm, own);
    double nanoseconds = 0;
    schedstat >> nanoseconds;
    if (own == name) total += nanoseconds * 1e-9;
  }
  return total;
}

int open_stream(uint16_t port, const std::string& request) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      write(fd, request.data(), request.size()) != static_cast<ssize_t>(request.size())) {
    std::perror("connect");
    std::exit(1);
  }
  fcntl(fd, F_SETFL, O_NONBLOCK);
  return fd;
}

// Counts tokens ("content":" ) of all sockets until `expected` have come.
void count_events(const std::vector<int>& sockets, int64_t expected) {
  const int epoll = epoll_create1(0);
  for (const int fd : sockets) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
  }
  std::vector<char> buffer(1 << 16);
  std::vector<epoll_event> events(512);
  // Every event ends in "\n\n" and JSON holds no newline: half the newlines is the number of
  // events, once those of HTTP's framing ("\r\n") are left out. The role and finish events of each
  // stream make the count run ahead by two, which the lead absorbs.
  int64_t newlines = 0;
  while (received.load(std::memory_order_relaxed) < expected) {
    const int n = epoll_wait(epoll, events.data(), static_cast<int>(events.size()), 1000);
    for (int i = 0; i < n; ++i) {
      const ssize_t got =
          read(events[static_cast<size_t>(i)].data.fd, buffer.data(), buffer.size());
      char before = 0;
      for (ssize_t k = 0; k < got; ++k) {
        newlines += buffer[static_cast<size_t>(k)] == '\n' && before != '\r' ? 1 : 0;
        before = buffer[static_cast<size_t>(k)];
      }
    }
    received.store(newlines / 2, std::memory_order_relaxed);
  }
  close(epoll);
}

void measure(int streams, int tokens, int64_t lead) {
  received = 0;
  auto null = std::make_shared<NullEngine>(streams, lead);
  server::ServerConfig config;
  config.port = 0;
  config.served_model_name = "null";
  config.version = "bench";
  config.access_log = false;
  config.enable_metrics = true;
  auto compiled = text::ChatTemplate::compile("{{ messages[0].content }}", {"", ""});
  auto created = server::Server::create(std::move(config), null, std::make_shared<WordTokenizer>(),
                                        std::move(compiled).value());
  if (!created.ok() || !(*created)->bind().ok() || !(*created)->start().ok()) {
    std::fprintf(stderr, "the server does not start\n");
    std::exit(1);
  }
  const std::string body = R"({"model":"null","stream":true,"max_tokens":)" +
                           std::to_string(tokens) +
                           R"(,"messages":[{"role":"user","content":"hi"}]})";
  const std::string request =
      "POST /v1/chat/completions HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\n"
      "Content-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body;
  const double before = thread_seconds("http-io");
  std::vector<int> sockets;
  for (int i = 0; i < streams; ++i) sockets.push_back(open_stream((*created)->port(), request));
  const int64_t total = static_cast<int64_t>(streams) * tokens;
  count_events(sockets, total);
  const double cpu = thread_seconds("http-io") - before;
  (*created)->wait_idle(std::chrono::seconds(10));
  const double wall = null->seconds();
  for (const int fd : sockets) close(fd);
  (*created)->stop();
  std::printf(
      "streams %4d  lead %4ld  wall %8.0f tokens/s   IO thread %8.0f tokens/s of CPU (%.2f us "
      "each)\n",
      streams, static_cast<long>(lead), static_cast<double>(total) / wall,
      static_cast<double>(total) / cpu, cpu / static_cast<double>(total) * 1e6);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const int streams = argc > 1 ? std::atoi(argv[1]) : 256;
  const int tokens = argc > 2 ? std::atoi(argv[2]) : 4000;
  const int64_t lead = argc > 3 ? std::atoll(argv[3]) : 0;
  const int repetitions = argc > 4 ? std::atoi(argv[4]) : 1;
  for (int i = 0; i < repetitions; ++i) {
    for (const int64_t ahead : {1, 4, 16, 64}) {
      if (lead == 0 || lead == ahead) measure(streams, tokens, ahead);
    }
    if (lead != 0 && lead != 1 && lead != 4 && lead != 16 && lead != 64) {
      measure(streams, tokens, lead);
    }
  }
  return 0;
}
