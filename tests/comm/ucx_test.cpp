// UCX between nodes: when it is chosen, and what is particular to it as a transport.
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "comm/fabric.h"
#include "comm/group_fixture.h"
#include "comm/values.h"

namespace capstan::comm {
namespace {

using namespace std::chrono_literals;
using testing::contains;

const std::vector<std::string> kNames = {"node 0 (host a)", "node 1 (host b)"};

UcxSupport with_rdma() { return {"1.13.1", "", "mlx5_0:1"}; }

TEST(UcxChoice, AutoTellsOfUcxWhereAllNodesHaveRdma) {
  std::vector<UcxSupport> nodes = {{"", "", "mlx5_0, mlx5_1"}, {"", "", "mlx5_0"}};
  const std::string hint = ucx_hint(nodes);
  EXPECT_EQ(hint,
            "tensors go through TCP; all nodes have RDMA devices (mlx5_0, mlx5_1 here): "
            "--comm-transport ucx, on all nodes, is available to use them");
  EXPECT_FALSE(contains(hint, "\n"));
  nodes[1].rdma.clear();
  EXPECT_EQ(ucx_hint(nodes), "");
  nodes[1] = {"", "built without", "mlx5_0"};
  EXPECT_EQ(ucx_hint(nodes), "");
}

TEST(UcxChoice, AskingForAutoDoesNotLoadUcx) {
  const UcxSupport support = ucx_support(Transport::kAuto);
  EXPECT_EQ(support.version, "");
  EXPECT_EQ(support.lack.empty(), ucx_built_in());
}

TEST(UcxChoice, ANodeThatCannotIsAnErrorWithTheRemedy) {
  std::vector<UcxSupport> nodes = {with_rdma(), {"", "built without; install libucx-dev", ""}};
  const Status lacking = check_ucx(nodes, kNames);
  EXPECT_EQ(lacking.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(lacking.error().message,
            "UCX was asked for, but node 1 (host b) cannot use UCX: built without; install "
            "libucx-dev, or use --comm-transport tcp on all nodes");
  nodes[1] = with_rdma();
  nodes[1].version = "1.16.0";
  const Status other = check_ucx(nodes, kNames);
  EXPECT_TRUE(contains(other.error().message, "1.16.0") &&
              contains(other.error().message, "1.13.1"));
  nodes[1] = with_rdma();
  nodes[1].rdma.clear();
  EXPECT_TRUE(check_ucx(nodes, kNames).ok()) << "asked for, so also over TCP";
}

TEST(UcxChoice, FactsTravel) {
  UcxSupport out;
  ASSERT_TRUE(decode(encode(with_rdma()), out));
  EXPECT_EQ(out.version, "1.13.1");
  EXPECT_EQ(out.rdma, "mlx5_0:1");
  EXPECT_FALSE(decode("short", out));
}

TEST(UcxChoice, ListsOfTransports) {
  EXPECT_TRUE(ucx_is_rdma("rc_mlx5"));
  EXPECT_FALSE(ucx_is_rdma("tcp"));
  for (const char* list : {"", "all", "rc", "ib", "rc_x,sm", "tcp,rc_mlx5", "^tcp", "^rc_v"}) {
    EXPECT_TRUE(ucx_list_allows(list, "rc_mlx5")) << list;
  }
  for (const char* list : {"tcp", "tcp,sm,self", "rc_v", "^rc", "^ib", "^tcp,rc_mlx5", "ud"}) {
    EXPECT_FALSE(ucx_list_allows(list, "rc_mlx5")) << list;
  }
  EXPECT_TRUE(ucx_list_allows("mlx5_0:1,eth0", "mlx5_0:1"));
  EXPECT_FALSE(ucx_list_allows("mlx5_1:1", "mlx5_0:1"));
}

TEST(UcxChoice, WithoutItAGroupIsRefused) {
  if (ucx_built_in()) GTEST_SKIP() << "built with UCX";
  EXPECT_TRUE(contains(ucx_support(Transport::kUcx).lack, "libucx-dev"));
  auto links = make_links(Way::kUcx, 2);
  const auto made = make_group(topology_of({Way::kUcx, 2, 1}, 0, ""), std::move(links[0]));
  EXPECT_TRUE(contains(made.error().message, "--comm-transport tcp"));
  close(links[1][0].fd);
}

class Ucx : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!ucx_built_in()) GTEST_SKIP() << "built without UCX";
  }
};

TEST_F(Ucx, LoadingItLeavesSignalsAlone) {
  struct sigaction before[32] = {}, after = {};
  for (int number = 1; number < 32; ++number) sigaction(number, nullptr, &before[number]);
  const UcxSupport support = ucx_support(Transport::kUcx);
  EXPECT_EQ(support.lack, "");
  EXPECT_NE(support.version, "");
  Ranks ranks = make_ranks({Way::kUcx, 2, 1});
  for (int number = 1; number < 32; ++number) {
    sigaction(number, nullptr, &after);
    EXPECT_EQ(before[number].sa_handler, after.sa_handler) << number;
  }
}

TEST_F(Ucx, SaysSo) {
  Ranks alone = make_ranks({Way::kUcx, 2, 1});
  EXPECT_EQ(alone[0]->transport(), "ucx");
  Ranks shared = make_ranks({Way::kUcx, 2, 2});
  EXPECT_EQ(shared[0]->transport(), "shared memory + ucx");
}

TEST_F(Ucx, NodesThatDifferAreRefusedWithTheValues) {
  auto links = make_links(Way::kTcp, 2);
  std::thread other([&] {
    const auto made = make_group(topology_of({Way::kTcp, 2, 1}, 1, ""), std::move(links[1]));
    ASSERT_FALSE(made.ok());
    EXPECT_TRUE(contains(made.error().message, "ranks, UCX, this node (1)") &&
                contains(made.error().message, "ranks, sockets"))
        << made.error().message;
  });
  const auto made = make_group(topology_of({Way::kUcx, 2, 1}, 0, ""), std::move(links[0]));
  other.join();
  ASSERT_FALSE(made.ok());
  EXPECT_TRUE(contains(made.error().message, "ranks, sockets, this node (0)") &&
              contains(made.error().message, "ranks, UCX"))
      << made.error().message;
}

TEST_F(Ucx, WithoutAWayAllNodesAreTold) {
  auto links = make_links(Way::kUcx, 2);
  const Topology topologies[] = {topology_of({Way::kUcx, 2, 1}, 0, ""),
                                 topology_of({Way::kUcx, 2, 1}, 1, "")};
  const auto join = [&](int node) {
    const auto made = make_group(topologies[node], std::move(links[static_cast<size_t>(node)]));
    EXPECT_FALSE(made.ok());
    return made.ok() ? "" : made.error().message;
  };
  std::string theirs;
  setenv("UCX_TLS", "nosuch", 1);  // before there are threads
  std::thread other([&] { theirs = join(1); });
  const std::string mine = join(0);
  other.join();
  setenv("UCX_TLS", "tcp", 1);
  for (const std::string& text : {mine, theirs}) {
    EXPECT_TRUE(contains(text, "UCX_TLS") && contains(text, "--comm-transport tcp")) << text;
  }
}

/// Messages run ahead of who reads them as far as the window reaches, and no further.
TEST_F(Ucx, FramesThatComeTooEarlyAreKeptInOrderAndBounded) {
  Ranks ranks = make_ranks({Way::kUcx, 2, 1});
  constexpr int kFrames = 40;
  const auto bytes = [](int i) { return i % 3 == 0 ? 300000 + i : 5 + i; };
  std::atomic<int> sent{0};
  std::thread giver([&] {
    for (int i = 0; i < kFrames; ++i) {
      const std::vector<std::byte> message(static_cast<size_t>(bytes(i)), std::byte(i));
      ASSERT_TRUE(ranks[0]->send_message(message).ok());
      sent.store(i + 1);
    }
  });
  std::thread taker([&] {
    std::this_thread::sleep_for(30ms);
    EXPECT_LT(sent.load(), kFrames) << "a sender that runs ahead must wait";
    for (int i = 0; i < kFrames; ++i) {
      const auto got = ranks[1]->receive_message();
      ASSERT_TRUE(got.ok()) << got.error().message;
      ASSERT_EQ(static_cast<int>(got->size()), bytes(i));
      EXPECT_EQ(got->front(), std::byte(i));
      EXPECT_EQ(got->back(), std::byte(i));
      if (i % 10 == 0) std::this_thread::sleep_for(2ms);
    }
  });
  giver.join();
  taker.join();
}

/// Two groups of the same nodes, driven by different threads in different order.
TEST_F(Ucx, ChannelsDoNotWaitForEachOther) {
  Ranks ranks = make_ranks({Way::kUcx, 2, 2});
  on_all(ranks, [&](Communicator& c) {
    auto pair = c.subgroup(std::vector<int>{c.rank() % 2, c.rank() % 2 + 2});
    ASSERT_TRUE(pair.ok()) << pair.error().message;
    for (int round = 0; round < 30; ++round) {
      if ((c.rank() + round) % 3 == 0) std::this_thread::sleep_for(1ms);
      const int64_t count = round % 5 == 0 ? 150001 : 100;
      auto data = values(DType::kF32, c.rank(), count, round);
      ASSERT_TRUE((*pair)->all_reduce(data.data(), count, DType::kF32).ok());
      EXPECT_TRUE(data == sums(DType::kF32, {{c.rank() % 2}, {c.rank() % 2 + 2}}, count, round));
    }
    ASSERT_TRUE(c.barrier().ok());
  });
}

/// One group's large frame is taken up by another group's thread, which then stops: whoever the
/// frame is for must have been woken to give the sender leave to go on.
TEST_F(Ucx, ASleeperIsWokenForPiecesThatAnotherGroupTookUp) {
  Ranks ranks = make_ranks({Way::kUcx, 2, 2});
  on_all(ranks, [&](Communicator& c) {
    auto pair = c.subgroup(std::vector<int>{c.rank() % 2, c.rank() % 2 + 2});
    ASSERT_TRUE(pair.ok()) << pair.error().message;
    std::vector<std::byte> large(size_t{8} << 20);
    for (int round = 0; round < 40; ++round) {
      if (c.rank() % 2 == 0) {
        if (c.rank() == 2) std::fill(large.begin(), large.end(), std::byte(round));
        ASSERT_TRUE((*pair)->broadcast(large.data(), static_cast<int64_t>(large.size()), 1).ok());
        EXPECT_EQ(large[large.size() - 1], std::byte(round));
      } else {
        for (int i = 0; i < 20 * (round % 8); ++i) ASSERT_TRUE((*pair)->barrier().ok());
      }
      ASSERT_TRUE(c.barrier().ok());
    }
  });
}

/// Memory of an operation that was abandoned may go at once, whatever is still on its way.
TEST_F(Ucx, MemoryOfAnAbandonedOperationIsTheCallersAgain) {
  for (int round = 0; round < 20; ++round) {
    Ranks ranks = make_ranks({Way::kUcx, 2, 1});
    std::vector<std::thread> threads;
    for (int r = 0; r < 2; ++r) {
      threads.emplace_back([&, r] {
        Status s;
        while (s.ok()) {
          std::vector<float> data(2000000, 1.0f);
          s = ranks[r]->all_reduce(data.data(), static_cast<int64_t>(data.size()), DType::kF32);
        }
        EXPECT_EQ(s.error().message, "enough");
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(3 + round));
    for (auto& rank : ranks) rank->abort(unavailable("enough"));
    for (auto& thread : threads) thread.join();
  }
}

TEST_F(Ucx, ASleeperIsWokenByData) {
  Ranks ranks = make_ranks({Way::kUcx, 2, 1});
  std::thread taker([&] {
    for (int i = 0; i < 5; ++i) {
      const auto got = ranks[1]->receive_message();
      ASSERT_TRUE(got.ok()) << got.error().message;
      EXPECT_EQ(got->size(), 100000u * i + 1);
    }
  });
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(20ms);
    ASSERT_TRUE(ranks[0]->send_message(std::vector<std::byte>(100000 * i + 1)).ok());
  }
  taker.join();
}

TEST_F(Ucx, NothingLeaksADescriptor) {
  const auto open_files = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                         std::filesystem::directory_iterator());
  };
  { Ranks ranks = make_ranks({Way::kUcx, 2, 1}); }
  const auto before = open_files();
  for (int round = 0; round < 3; ++round) {
    Ranks ranks = make_ranks({Way::kUcx, 3, 1});
    on_all(ranks, [](Communicator& c) { ASSERT_TRUE(c.barrier().ok()); });
    if (round == 1) ranks[0]->abort(unavailable("enough"));
  }
  EXPECT_EQ(open_files(), before);
}

/// From the rendezvous to a sum, as servers do it.
class UcxGroups : public Ucx {
 protected:
  std::vector<GroupConfig> configs(Transport first, Transport second) {
    setenv("UCX_TLS", "tcp", 1);
    const uint16_t port = testing::free_port();
    std::vector<GroupConfig> out = {testing::make_config(2, 0, port),
                                    testing::make_config(2, 1, port)};
    out[0].transport = first;
    out[1].transport = second;
    return out;
  }
};

TEST_F(UcxGroups, AgreeAndWork) {
  auto both = configs(Transport::kUcx, Transport::kUcx);
  for (GroupConfig& config : both) config.interface = "lo";
  auto joined = testing::join_all(both);
  std::vector<std::thread> nodes;
  for (int node = 0; node < 2; ++node) {
    ASSERT_TRUE(joined[node].ok()) << joined[node].error().message;
    nodes.emplace_back([&, node] {
      Group& group = **joined[node];
      EXPECT_TRUE(group.topology().ucx);
      EXPECT_EQ(group.topology().interface, "lo");
      auto ranks = make_group(group.topology(), group.take_links());
      ASSERT_TRUE(ranks.ok()) << ranks.error().message;
      on_all(*ranks, [](Communicator& c) {
        float x = static_cast<float>(c.rank());
        ASSERT_TRUE(c.all_reduce(&x, 1, DType::kF32).ok());
        EXPECT_EQ(x, 6);
      });
    });
  }
  for (auto& node : nodes) node.join();
  (*joined[0])->release();
}

TEST_F(UcxGroups, DisagreementIsRefusedWithBothValues) {
  auto joined = testing::join_all(configs(Transport::kUcx, Transport::kTcp));
  for (const auto& node : joined) {
    ASSERT_FALSE(node.ok());
    EXPECT_TRUE(contains(node.error().message, "ucx") && contains(node.error().message, "tcp"))
        << node.error().message;
  }
}

}  // namespace
}  // namespace capstan::comm
