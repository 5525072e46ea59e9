// Groups of several nodes in threads of one process, over real sockets on the loopback.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "comm/control_socket.h"
#include "comm/group_control.h"

namespace capstan::comm::testing {

using namespace std::chrono_literals;

/// Nothing here may hang; a limit that no slow machine reaches, nor one that stops this process for
/// a minute to measure something else.
inline constexpr auto kHang = 300s;

/// The logger is made before there are threads: the library is not instrumented, so ThreadSanitizer
/// would take its making on first use for a race.
inline const bool kLoggerIsMade = init_logging("info").ok();

/// One byte of it for each port, locked by the test process that uses the port, until its end.
inline const int kPortLocks =
    open((std::filesystem::temp_directory_path() / "capstan_test_ports").c_str(),
         O_RDWR | O_CREAT | O_CLOEXEC, 0666);

/// A port that is free, below those that the kernel gives to outgoing connections, and no other
/// test process's: their groups have the same secret, and nodes would join the wrong one.
inline uint16_t free_port() {
  static std::atomic<int> next{static_cast<int>(getpid()) * 101};
  while (true) {
    const auto port = static_cast<uint16_t>(10000 + next++ % 20000);
    struct flock mine {};
    mine.l_type = F_WRLCK;
    mine.l_whence = SEEK_SET;
    mine.l_start = port;
    mine.l_len = 1;
    if (kPortLocks >= 0 && fcntl(kPortLocks, F_SETLK, &mine) != 0) continue;
    if (listen_on(nullptr, port).ok()) return port;
  }
}

inline GroupConfig make_config(int nodes, int node, uint16_t port) {
  GroupConfig config;
  config.nodes = nodes;
  config.node = node;
  config.ranks_per_node = 2;
  config.dist_init_addr = "127.0.0.1:" + std::to_string(port);
  config.token = "a secret";
  config.transport = Transport::kTcp;
  config.facts = {{"version", "1"}, {"tp-size", std::to_string(2 * nodes)}};
  config.heartbeat_interval = 50ms;
  // Long enough for a loaded machine under a sanitizer.
  config.heartbeat_timeout = 5s;
  return config;
}

inline bool wait_until(const std::function<bool()>& done, Duration limit = kHang) {
  const TimePoint end = Clock::now() + limit;
  while (!done()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(5ms);
  }
  return true;
}

using Joined = Result<std::unique_ptr<GroupControl>>;

/// Joins all `configs` at once, one thread each.
inline std::vector<Joined> join_all(const std::vector<GroupConfig>& configs,
                                    const GroupTiming& timing = {}, const Stop& stop = nullptr) {
  std::vector<std::optional<Joined>> slots(configs.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < configs.size(); ++i) {
    threads.emplace_back([&, i] { slots[i].emplace(join_group(configs[i], timing, stop)); });
  }
  for (std::thread& t : threads) t.join();
  std::vector<Joined> out;
  for (auto& slot : slots) out.push_back(std::move(*slot));
  return out;
}

inline std::vector<std::unique_ptr<GroupControl>> make_nodes(int nodes,
                                                             const GroupTiming& timing = {}) {
  const uint16_t port = free_port();
  std::vector<GroupConfig> configs;
  for (int i = 0; i < nodes; ++i) configs.push_back(make_config(nodes, i, port));
  std::vector<std::unique_ptr<GroupControl>> out;
  for (Joined& joined : join_all(configs, timing)) {
    EXPECT_TRUE(joined.ok()) << (joined.ok() ? "" : joined.error().message);
    if (joined.ok()) out.push_back(std::move(*joined));
  }
  return out;
}

/// One node that joins in a thread of its own and can be cancelled.
class Joiner {
 public:
  explicit Joiner(const GroupConfig& config, const GroupTiming& timing = {})
      : thread_([this, config, timing] {
          Joined result = join_group(config, timing, [this] { return cancelled_.load(); });
          const std::lock_guard lock(mutex_);
          result_.emplace(std::move(result));
        }) {}
  ~Joiner() {
    cancel();
    if (thread_.joinable()) thread_.join();
  }
  void cancel() { cancelled_ = true; }
  bool done() {
    const std::lock_guard lock(mutex_);
    return result_.has_value();
  }
  /// Waits for the end of join_group().
  Joined& result() {
    if (thread_.joinable()) {
      EXPECT_TRUE(wait_until([this] { return done(); })) << "join_group() hangs";
      if (!done()) cancel();
      thread_.join();
    }
    return *result_;
  }
  std::string error() { return result().ok() ? "" : result().error().message; }
  ErrorCode code() { return result().ok() ? ErrorCode::kInternal : result().error().code; }

 private:
  std::atomic<bool> cancelled_{false};
  std::mutex mutex_;
  std::optional<Joined> result_;
  std::thread thread_;
};

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A plain client of the port on the loopback.
class RawClient {
 public:
  explicit RawClient(uint16_t port) {
    const SocketAddress to = *numeric_address("127.0.0.1", port);
    // The listener may be a moment away.
    wait_until([&] {
      Result<Fd> fd = connect_to(to, nullptr, Clock::now() + 5s, [] { return false; });
      if (fd.ok()) fd_ = std::move(*fd);
      return fd_.valid();
    });
    EXPECT_TRUE(fd_.valid());
  }
  int fd() const { return fd_.get(); }
  void write(const std::string& bytes) {
    (void)!::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  /// Up to the end of the connection.
  std::string read_to_end() {
    std::string all;
    char c[256];
    const Stop never = [] { return false; };
    while (wait_for(fd_.get(), 1 /* POLLIN */, Clock::now() + kHang, never).ok()) {
      const ssize_t n = recv(fd_.get(), c, sizeof c, MSG_DONTWAIT);
      if (n <= 0) return all;
      all.append(c, static_cast<size_t>(n));
    }
    ADD_FAILURE() << "the connection was not closed";
    return all;
  }
  ControlLink as_link() { return ControlLink(std::move(fd_), 1 << 20); }

 private:
  Fd fd_;
};

/// A node that asks to join and then does nothing of its own: after this, node 0 has decided on it.
/// `answer`: what node 0 said.
inline ControlLink join_by_hand(const GroupConfig& config, const std::string& host, Frame* answer) {
  const Stop never = [] { return false; };
  RawClient client(parse_host_port(config.dist_init_addr)->port);
  const Status opened =
      open_as_client(client.fd(), Purpose::kControl,
                     control_key(config.token, config.dist_init_addr), Clock::now() + kHang, never);
  EXPECT_TRUE(opened.ok()) << (opened.ok() ? "" : opened.error().message);
  ControlLink link = client.as_link();
  link.send(MessageType::kJoin, encode(Join{config.node, host, all_facts(config)}));
  const Result<Frame> said = link.wait(Clock::now() + kHang, never);
  EXPECT_TRUE(said.ok()) << (said.ok() ? "" : said.error().message);
  if (said.ok()) *answer = *said;
  return link;
}

/// The first message of this type; others are skipped. Its body is empty when the link ends.
inline Frame wait_for_frame(ControlLink& link, MessageType type) {
  while (true) {
    Result<Frame> frame = link.wait(Clock::now() + kHang, [] { return false; });
    if (!frame.ok()) return Frame();
    if (frame->type == type) return *frame;
  }
}

/// Catches the end of a group.
class EndWatcher {
 public:
  explicit EndWatcher(Group& group) {
    group.on_end([this](const GroupEnd& end) {
      const std::lock_guard lock(mutex_);
      end_ = end;
      ++calls_;
      changed_.notify_all();
    });
  }
  GroupEnd wait() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kHang, [this] { return end_.has_value(); }));
    return end_.value_or(GroupEnd());
  }
  int calls() {
    const std::lock_guard lock(mutex_);
    return calls_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<GroupEnd> end_;
  int calls_ = 0;
};

}  // namespace capstan::comm::testing
