// What ranks see when another one goes away, says something wrong, or the process gives up.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <chrono>
#include <cstring>

#include "comm/fabric.h"
#include "comm/values.h"

namespace capstan::comm {
namespace {

using namespace std::chrono_literals;

/// An operation that never ends by itself: all but the last rank call it.
using Operation = std::function<Status(Communicator&)>;

struct Named {
  const char* name;
  Operation run;
};

std::vector<Named> operations(int64_t count) {
  const auto buffer = [count](int times) {
    return std::vector<float>(static_cast<size_t>(count * times), 1.0f);
  };
  return {
      {"all_reduce",
       [=](Communicator& c) {
         auto data = buffer(1);
         return c.all_reduce(data.data(), count, DType::kF32);
       }},
      {"all_gather",
       [=](Communicator& c) {
         auto send = buffer(1);
         auto recv = buffer(c.size());
         return c.all_gather(send.data(), recv.data(), count * 4);
       }},
      {"reduce_scatter",
       [=](Communicator& c) {
         auto send = buffer(c.size());
         auto recv = buffer(1);
         return c.reduce_scatter(send.data(), recv.data(), count, DType::kF32);
       }},
      {"all_to_all",
       [=](Communicator& c) {
         auto send = buffer(c.size());
         auto recv = buffer(c.size());
         return c.all_to_all(send.data(), recv.data(), count * 4);
       }},
      {"broadcast",
       [=](Communicator& c) {
         auto data = buffer(1);
         return c.broadcast(data.data(), count * 4, c.size() - 1);
       }},
      {"gather",
       [=](Communicator& c) {
         auto send = buffer(1);
         auto recv = buffer(c.size());
         const std::vector<int64_t> bytes(static_cast<size_t>(c.size()), count * 4);
         // Those that only give run ahead as far as buffers reach.
         Status s;
         while (s.ok()) s = c.gather(send.data(), recv.data(), bytes, 0);
         return s;
       }},
      {"barrier", [](Communicator& c) { return c.barrier(); }},
      {"message",
       [](Communicator& c) -> Status {
         const std::vector<std::byte> message(1 << 20);
         Status s;
         // Rank 0 runs ahead as far as buffers reach.
         while (s.ok()) s = c.rank() == 0 ? c.send_message(message) : c.receive_message().status();
         return s;
       }},
      {"subgroup",
       [=](Communicator& c) -> Status {
         std::vector<int> all;
         for (int r = 0; r < c.size(); ++r) all.push_back(r);
         auto sub = c.subgroup(all);
         if (!sub.ok()) return sub.error();
         auto data = buffer(1);
         return (*sub)->all_reduce(data.data(), count, DType::kF32);
       }},
  };
}

class Failures : public testing::TestWithParam<Shape> {};

TEST_P(Failures, AbortEndsEveryOperationOfTheProcess) {
  for (const int64_t count : {int64_t{16}, int64_t{200000}}) {
    for (const Named& operation : operations(count)) {
      for (const auto wait : {0ms, 30ms}) {  // while they spin, and while they sleep
        SCOPED_TRACE(operation.name);
        Ranks ranks = make_ranks(GetParam());
        std::vector<std::thread> threads;
        std::atomic<int> ended{0};
        for (size_t r = 0; r + 1 < ranks.size(); ++r) {
          threads.emplace_back([&, r] {
            const Status s = operation.run(*ranks[r]);
            ASSERT_FALSE(s.ok());
            EXPECT_EQ(s.error().code, ErrorCode::kUnavailable);
            EXPECT_EQ(s.error().message, "rank 7 (node 3, host x) was lost");
            const Status again = ranks[r]->barrier();
            ASSERT_FALSE(again.ok());
            EXPECT_EQ(again.error().message, "rank 7 (node 3, host x) was lost");
            ended.fetch_add(1);
          });
        }
        std::this_thread::sleep_for(wait);
        EXPECT_EQ(ended.load(), 0);
        // Every process of the group hears of it from the one that watches the group.
        for (size_t r = 0; r < ranks.size(); ++r) {
          ranks[r]->abort(internal_error("rank 7 (node 3, host x) was lost"));
        }
        ranks.back()->abort(internal_error("a later reason does not count"));
        for (auto& thread : threads) thread.join();
      }
    }
  }
}

TEST_P(Failures, ARankThatLeavesEndsTheOthersWait) {
  for (const Named& operation : operations(1000)) {
    if (std::strcmp(operation.name, "subgroup") == 0) continue;  // only a subgroup's own members
    SCOPED_TRACE(operation.name);
    Ranks ranks = make_ranks(GetParam());
    std::vector<std::thread> threads;
    const int per_node = GetParam().way == Way::kLocal ? 1 : GetParam().per_node;
    for (size_t r = 0; r + per_node < ranks.size(); ++r) {
      threads.emplace_back([&, r] {
        const Status s = operation.run(*ranks[r]);
        ASSERT_FALSE(s.ok());
        EXPECT_EQ(s.error().code, ErrorCode::kUnavailable);
        EXPECT_NE(s.error().message.find("rank "), std::string::npos) << s.error().message;
        ranks[r].reset();  // as a process that ends: the next one may hang on this one alone
      });
    }
    std::this_thread::sleep_for(2ms);
    for (int i = 0; i < per_node; ++i) ranks[ranks.size() - 1 - i].reset();  // the last node's
    for (size_t t = 0; t < threads.size(); ++t) threads[t].join();
  }
}

INSTANTIATE_TEST_SUITE_P(All, Failures,
                         testing::ValuesIn(shapes({{Way::kLocal, 1, 3},
                                                   {Way::kShared, 3, 1},
                                                   {Way::kUnix, 2, 1},
                                                   {Way::kTcp, 3, 1},
                                                   {Way::kTcp, 2, 2},
                                                   {Way::kUcx, 2, 1},
                                                   {Way::kUcx, 3, 1},
                                                   {Way::kUcx, 2, 2}})),
                         [](const auto& info) { return info.param.name(); });

/// Runs `child` in a process of its own, which dies with the test.
pid_t start(const std::function<int()>& child) {
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(9);
  _exit(child());
}

int wait_for(pid_t pid) {
  int status = 0;
  waitpid(pid, &status, 0);
  return status;
}

/// Keeps only the links of `node`; the other nodes' ends are other processes'.
std::vector<NodeLink> keep(std::vector<std::vector<NodeLink>>& links, int node) {
  for (size_t n = 0; n < links.size(); ++n) {
    if (static_cast<int>(n) == node) continue;
    for (const NodeLink& link : links[n]) close(link.fd);
  }
  return std::move(links[static_cast<size_t>(node)]);
}

class Processes : public testing::TestWithParam<Shape> {
 protected:
  /// Runs `body(ranks of the node)` in one process per node; their exit codes.
  std::vector<int> run(const std::function<int(int node, Ranks&)>& body,
                       const std::function<void(const std::vector<pid_t>&)>& meanwhile = {}) {
    const Shape shape = GetParam();
    auto links = make_links(shape.way, shape.nodes);
    const std::string segment = shape.way == Way::kShared ? segment_name() : "";
    std::vector<pid_t> children;
    for (int node = 0; node < shape.nodes; ++node) {
      children.push_back(start([&] {
        auto group = make_group(topology_of(shape, node, segment), keep(links, node));
        if (!group.ok()) {
          std::fprintf(stderr, "%s\n", group.error().message.c_str());
          return 100;
        }
        return body(node, *group);
      }));
    }
    for (auto& of_node : links) {
      for (const NodeLink& link : of_node) close(link.fd);
    }
    if (meanwhile) meanwhile(children);
    std::vector<int> codes;
    for (const pid_t child : children) codes.push_back(wait_for(child));
    if (!segment.empty()) {
      EXPECT_LT(shm_open(segment.c_str(), O_RDONLY, 0), 0) << segment << " was left behind";
    }
    return codes;
  }
};

TEST_P(Processes, AgreeToTheBit) {
  const Shape shape = GetParam();
  std::vector<std::vector<int>> nodes;
  for (int r = 0; r < shape.size(); ++r) {
    if (nodes.empty() || (shape.way != Way::kShared && r % shape.per_node == 0))
      nodes.emplace_back();
    nodes.back().push_back(r);
  }
  const auto codes = run([&](int, Ranks& ranks) {
    std::atomic<int> wrong{0};
    on_all(ranks, [&](Communicator& c) {
      for (const int64_t count : {7, 1536, 57344, 300001}) {
        auto data = values(DType::kF32, c.rank(), count);
        if (!c.all_reduce(data.data(), count, DType::kF32).ok()) wrong |= 1;
        if (data != sums(DType::kF32, nodes, count)) wrong |= 2;
      }
      std::vector<int> everybody(c.size());
      for (int r = 0; r < c.size(); ++r) everybody[r] = r;
      auto sub = c.subgroup(everybody);
      if (!sub.ok()) {
        wrong |= 4;
        return;
      }
      auto data = values(DType::kI64, c.rank(), 100001);
      if (!(*sub)->all_reduce(data.data(), 100001, DType::kI64).ok()) wrong |= 8;
      if (data != sums(DType::kI64, nodes, 100001)) wrong |= 16;
      if (!c.barrier().ok()) wrong |= 32;
    });
    return wrong.load();
  });
  for (const int code : codes) EXPECT_EQ(code, 0);
}

TEST_P(Processes, APeerKilledAmidAnAllReduceIsNamed) {
  // Shared between the processes: how far they are, and when the victim was killed.
  struct Shared {
    std::atomic<int> rounds[16];
    std::atomic<int64_t> killed_ns;
    std::atomic<int64_t> noticed_ns[16];
  };
  auto* shared = static_cast<Shared*>(
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(shared, MAP_FAILED);
  const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
  const int nodes = GetParam().nodes;
  const int per_node = GetParam().per_node;
  const auto codes = run(
      [&](int node, Ranks& ranks) {
        std::atomic<int> unnamed{0};
        on_all(ranks, [&](Communicator& c) {
          std::vector<float> data(200000, 1.0f);
          const auto count = static_cast<int64_t>(data.size());
          Status s;
          while ((s = c.all_reduce(data.data(), count, DType::kF32)).ok()) {
            shared->rounds[node].fetch_add(1);
          }
          shared->noticed_ns[node].store(now());
          // Every rank of this process says who it was: the last node, or one that noticed earlier
          // and left, which tells no more than that in a group without a watchman.
          const std::string victim = "rank " + std::to_string((nodes - 1) * per_node) + " (node " +
                                     std::to_string(nodes - 1) + ", host host" +
                                     std::to_string(nodes - 1) + ")";
          if (s.error().code != ErrorCode::kUnavailable) unnamed = 1;
          if (s.error().message.find(victim) == std::string::npos) {
            if (nodes == 2) unnamed = 2;
            if (s.error().message.find("(node ") == std::string::npos) unnamed = 3;
          }
        });
        return unnamed.load();
      },
      [&](const std::vector<pid_t>& children) {
        const auto alive = [&] {
          siginfo_t info{};
          waitid(P_PID, static_cast<id_t>(children.back()), &info, WEXITED | WNOHANG | WNOWAIT);
          return info.si_pid == 0;
        };
        while (shared->rounds[nodes - 1].load() < 5 && alive()) std::this_thread::sleep_for(1ms);
        shared->killed_ns.store(now());
        kill(children.back(), SIGKILL);
      });
  for (int node = 0; node + 1 < nodes; ++node) {
    EXPECT_EQ(codes[node], 0);
    RecordProperty("noticed_after_us_node" + std::to_string(node),
                   std::to_string((shared->noticed_ns[node] - shared->killed_ns) / 1000));
  }
  EXPECT_EQ(codes.back(), SIGKILL);
  munmap(shared, sizeof(Shared));
}

TEST_P(Processes, APeerKilledWhileTheOthersSleepWakesThem) {
  const int nodes = GetParam().nodes;
  const auto codes = run([&](int node, Ranks& ranks) {
    if (node == 0) {
      std::this_thread::sleep_for(60ms);  // the others sleep by now
      raise(SIGKILL);
    }
    std::atomic<int> wrong{0};
    on_all(ranks, [&](Communicator& c) {
      const auto got = c.receive_message();
      if (got.ok() || got.error().message.find("node ") == std::string::npos) wrong = 1;
    });
    return wrong.load();
  });
  EXPECT_EQ(codes[0], SIGKILL);
  for (int node = 1; node < nodes; ++node) EXPECT_EQ(codes[node], 0);
}

INSTANTIATE_TEST_SUITE_P(All, Processes,
                         testing::ValuesIn(shapes({{Way::kShared, 2, 1},
                                                   {Way::kShared, 3, 2},
                                                   {Way::kUnix, 2, 1},
                                                   {Way::kTcp, 2, 2},
                                                   {Way::kTcp, 3, 1},
                                                   {Way::kUcx, 2, 2},
                                                   {Way::kUcx, 3, 1},
                                                   {Way::kUcxAny, 2, 1},
                                                   {Way::kUcxAny, 3, 2}})),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace capstan::comm
