// Groups of several nodes in threads of one process, over real sockets on the loopback.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/control_socket.h"
#include "comm/group_control.h"

namespace capstan::comm::testing {

using namespace std::chrono_literals;

/// Nothing here may hang; a limit that no slow machine reaches.
inline constexpr auto kHang = 60s;

/// A port that was free a moment ago.
inline uint16_t free_port() {
  Result<Fd> fd = listen_on(nullptr, 0);
  return fd.ok() ? local_address(fd->get()).port() : 0;
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
