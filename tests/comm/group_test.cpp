// The running group: exchanges, states, and how it ends.
#include "comm/group.h"

#include <fcntl.h>

#include <algorithm>
#include <random>

#include "comm/group_fixture.h"

namespace capstan::comm::testing {
namespace {

TEST(GroupTest, NodesJoinAndGetLinksToEachOther) {
  auto nodes = make_nodes(3);
  ASSERT_EQ(nodes.size(), 3u);
  std::vector<std::vector<NodeLink>> links;
  for (auto& node : nodes) links.push_back(node->take_links());
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(links[i].size(), 2u);
    EXPECT_TRUE(nodes[i]->take_links().empty());
    const Topology topology = nodes[i]->topology();
    EXPECT_EQ(topology.nodes, 3);
    EXPECT_EQ(topology.node, i);
    EXPECT_EQ(topology.ranks_per_node, 2);
    EXPECT_EQ(topology.shared_memory, "");
  }
  // What goes in at one end comes out at the other, and nothing else waits there.
  for (int i = 0; i < 3; ++i) {
    for (const NodeLink& link : links[i]) {
      EXPECT_EQ(fcntl(link.fd, F_GETFL) & O_NONBLOCK, 0);
      const char text[2] = {static_cast<char>('0' + i), static_cast<char>('0' + link.node)};
      ASSERT_EQ(send(link.fd, text, 2, MSG_NOSIGNAL), 2);
    }
  }
  for (int i = 0; i < 3; ++i) {
    for (const NodeLink& link : links[i]) {
      char text[4] = "";
      ASSERT_EQ(recv(link.fd, text, sizeof text, 0), 2);
      EXPECT_EQ(text[0], '0' + link.node);
      EXPECT_EQ(text[1], '0' + i);
      EXPECT_EQ(link.host, host_name());
    }
    for (const NodeLink& link : links[i]) close(link.fd);
  }
  nodes[0]->release();
}

TEST(GroupTest, ExchangeGivesEverybodysTextInOrder) {
  auto nodes = make_nodes(3);
  ASSERT_EQ(nodes.size(), 3u);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 20; ++round) {
        const auto all = nodes[i]->exchange("round " + std::to_string(round),
                                            std::to_string(i) + "/" + std::to_string(round));
        ASSERT_TRUE(all.ok()) << all.error().message;
        ASSERT_EQ(all->size(), 3u);
        for (int k = 0; k < 3; ++k) {
          EXPECT_EQ((*all)[k], std::to_string(k) + "/" + std::to_string(round));
        }
      }
      // Up to 1 MiB, and empty.
      const auto big = nodes[i]->exchange("big", std::string(i == 1 ? 0 : kExchangeLimit, 'a' + i));
      ASSERT_TRUE(big.ok()) << big.error().message;
      EXPECT_EQ((*big)[0], std::string(kExchangeLimit, 'a'));
      EXPECT_EQ((*big)[1], "");
      EXPECT_EQ((*big)[2], std::string(kExchangeLimit, 'c'));
      const auto too_big = nodes[i]->exchange("too big", std::string(kExchangeLimit + 1, 'x'));
      ASSERT_FALSE(too_big.ok());
      EXPECT_EQ(too_big.error().code, ErrorCode::kInvalidArgument);
    });
  }
  for (std::thread& t : threads) t.join();
  nodes[0]->release();
}

TEST(GroupTest, ExchangesOfDifferentNamesFailOnAllNodesAndNameBoth) {
  auto nodes = make_nodes(3);
  ASSERT_EQ(nodes.size(), 3u);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      const auto all = nodes[i]->exchange(i == 1 ? "digest" : "self-test", "x");
      ASSERT_FALSE(all.ok());
      EXPECT_EQ(all.error().code, ErrorCode::kInternal);
      EXPECT_NE(all.error().message.find("'digest' on node 1"), std::string::npos)
          << all.error().message;
      EXPECT_NE(all.error().message.find("'self-test' on node"), std::string::npos)
          << all.error().message;
      // The group goes on.
      const auto next = nodes[i]->exchange("next", "y");
      EXPECT_TRUE(next.ok());
    });
  }
  for (std::thread& t : threads) t.join();
  nodes[0]->release();
}

TEST(GroupTest, ReleaseEndsEveryNodeOrderly) {
  auto nodes = make_nodes(3);
  ASSERT_EQ(nodes.size(), 3u);
  std::vector<std::unique_ptr<EndWatcher>> ends;
  for (auto& node : nodes) ends.push_back(std::make_unique<EndWatcher>(*node));
  nodes[1]->release();  // not its business
  EXPECT_FALSE(nodes[0]->ended(nullptr));
  nodes[0]->set_step(41);
  nodes[0]->release();
  nodes[0]->release();
  EXPECT_TRUE(nodes[0]->ended(nullptr));
  for (auto& end : ends) {
    EXPECT_TRUE(end->wait().orderly);
    EXPECT_EQ(end->wait().step, 41u);
  }
  // Later calls are harmless, and a late listener hears of it.
  const auto late = nodes[1]->exchange("late", "");
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().code, ErrorCode::kUnavailable);
  nodes[2]->fail(4, internal_error("too late"));
  EndWatcher again(*nodes[2]);
  EXPECT_TRUE(again.wait().orderly);
  for (auto& end : ends) EXPECT_EQ(end->calls(), 1);
}

TEST(GroupTest, FailureOfAnyNodeIsToldToAllWithItsStepAndReason) {
  for (int culprit = 0; culprit < 3; ++culprit) {
    auto nodes = make_nodes(3);
    ASSERT_EQ(nodes.size(), 3u);
    std::vector<std::unique_ptr<EndWatcher>> ends;
    for (auto& node : nodes) ends.push_back(std::make_unique<EndWatcher>(*node));
    nodes[culprit]->set_step(7);
    nodes[culprit]->fail(2 * culprit + 1, internal_error("out of memory"));
    for (auto& end : ends) {
      const GroupEnd seen = end->wait();
      EXPECT_FALSE(seen.orderly);
      EXPECT_EQ(seen.describe(), "rank " + std::to_string(2 * culprit + 1) + " (node " +
                                     std::to_string(culprit) + ", host " + host_name() +
                                     ") failed at step 7: out of memory");
    }
  }
}

TEST(GroupTest, NodeThatLeavesIsNamedAndWaitingExchangesEnd) {
  for (int culprit = 0; culprit < 3; ++culprit) {
    auto nodes = make_nodes(3);
    ASSERT_EQ(nodes.size(), 3u);
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; ++i) {
      if (i == culprit) continue;
      threads.emplace_back([&, i] {
        const auto all = nodes[i]->exchange("never", "x");
        ASSERT_FALSE(all.ok());
        EXPECT_EQ(all.error().code, ErrorCode::kUnavailable);
        EXPECT_NE(all.error().message.find("rank " + std::to_string(2 * culprit) + " (node " +
                                           std::to_string(culprit)),
                  std::string::npos)
            << all.error().message;
        EXPECT_NE(all.error().message.find("it left the group"), std::string::npos);
      });
    }
    nodes[culprit] = nullptr;
    for (std::thread& t : threads) t.join();
  }
}

TEST(GroupTest, BrokenConnectionIsASymptomUntilTheGraceIsOver) {
  GroupTiming timing;
  timing.grace = 300ms;
  auto nodes = make_nodes(3, timing);
  ASSERT_EQ(nodes.size(), 3u);
  std::vector<std::unique_ptr<EndWatcher>> ends;
  for (auto& node : nodes) ends.push_back(std::make_unique<EndWatcher>(*node));
  // Nobody is dead: the node that reports is all that is known.
  nodes[1]->fail(3, unavailable("the connection to rank 5 (host b) broke"));
  for (auto& end : ends) {
    EXPECT_EQ(end->wait().rank, 3);
    EXPECT_EQ(end->wait().what, "the connection to rank 5 (host b) broke");
  }
}

TEST(GroupTest, BrokenConnectionIsBlamedOnTheNodeThatDies) {
  GroupTiming timing;
  timing.grace = 20s;  // the other verdict must win, however slow the machine is
  auto nodes = make_nodes(3, timing);
  ASSERT_EQ(nodes.size(), 3u);
  std::vector<std::unique_ptr<EndWatcher>> ends;
  for (int i = 0; i < 2; ++i) ends.push_back(std::make_unique<EndWatcher>(*nodes[i]));
  nodes[1]->fail(3, unavailable("the connection to rank 5 broke"));
  nodes[0]->fail(0, unavailable("the connection to rank 4 broke"));
  std::this_thread::sleep_for(100ms);
  nodes[2] = nullptr;
  for (auto& end : ends) {
    EXPECT_EQ(end->wait().node, 2);
    EXPECT_EQ(end->wait().rank, 4);
    EXPECT_EQ(end->wait().what, "it left the group");
  }
}

TEST(GroupTest, StatesShowStepsAndPhasesOfAllNodesEverywhere) {
  auto nodes = make_nodes(3);
  ASSERT_EQ(nodes.size(), 3u);
  for (int i = 0; i < 3; ++i) {
    nodes[i]->set_step(100 + i);
    nodes[i]->set_phase("phase " + std::to_string(i));
  }
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(wait_until([&] {
      const auto states = nodes[i]->states();
      bool all = states.size() == 3;
      for (int k = 0; all && k < 3; ++k) {
        all = states[k].node == k && states[k].step == 100u + k && states[k].joined &&
              states[k].phase == "phase " + std::to_string(k) && states[k].host == host_name() &&
              states[k].seconds_since_heartbeat < 60;
      }
      return all;
    }));
    EXPECT_EQ(nodes[i]->states()[i].seconds_since_heartbeat, 0);
  }
  nodes[0]->release();
}

TEST(GroupTest, DestructionAtAnyMomentNeitherHangsNorCrashes) {
  std::mt19937 random(7);
  const auto pause = [&](unsigned most_ms) {
    std::this_thread::sleep_for(std::chrono::microseconds(random() % (1000 * most_ms)));
  };
  GroupTiming timing;
  timing.backoff = 2ms;
  for (int round = 0; round < 20; ++round) {
    const uint16_t port = free_port();
    std::vector<std::unique_ptr<Joiner>> nodes;
    for (int i = 0; i < 3; ++i) {
      nodes.push_back(std::make_unique<Joiner>(make_config(3, i, port), timing));
    }
    // Some rounds cut into the joining, others into the running group.
    pause(round % 2 == 0 ? 8 : 60);
    std::shuffle(nodes.begin(), nodes.end(), random);
    for (auto& node : nodes) {
      if (random() % 3 == 0 && node->done() && node->result().ok()) {
        (*node->result())->fail(0, unavailable("chance"));
      }
      node = nullptr;
      pause(3);
    }
  }
}

TEST(GroupTest, OneNodeAloneIsAGroupToo) {
  GroupConfig config;
  config.ranks_per_node = 4;
  auto group = Group::join(config, nullptr);
  ASSERT_TRUE(group.ok()) << group.error().message;
  EXPECT_TRUE((*group)->take_links().empty());
  const auto all = (*group)->exchange("digest", "abc");
  ASSERT_TRUE(all.ok());
  EXPECT_EQ(*all, std::vector<std::string>{"abc"});
  EXPECT_EQ((*group)->states().size(), 1u);
  EndWatcher end(**group);
  (*group)->fail(2, internal_error("disk error"));
  EXPECT_EQ(end.wait().rank, 2);
}

TEST(GroupTest, SharedMemoryIsChosenWhereTheNodesReallyShareIt) {
  const uint16_t port = free_port();
  std::vector<GroupConfig> configs;
  for (int i = 0; i < 2; ++i) {
    configs.push_back(make_config(2, i, port));
    configs.back().transport = Transport::kAuto;
  }
  auto joined = join_all(configs);
  ASSERT_TRUE(joined[0].ok()) << joined[0].error().message;
  ASSERT_TRUE(joined[1].ok()) << joined[1].error().message;
  const std::string name = (*joined[0])->topology().shared_memory;
  EXPECT_TRUE(name.starts_with("/capstan-")) << name;
  EXPECT_EQ(name, (*joined[1])->topology().shared_memory);
  // The probe is gone, and the segment is left for the collectives to make.
  EXPECT_NE(access(("/dev/shm" + name).c_str(), F_OK), 0);
  EXPECT_NE(access(("/dev/shm" + name + "-probe").c_str(), F_OK), 0);
  (*joined[0])->release();
}

}  // namespace
}  // namespace capstan::comm::testing
