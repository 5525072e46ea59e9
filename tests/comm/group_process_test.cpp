// Nodes as processes that are killed, stopped and continued.

#include <csignal>

#include "comm/group_process.h"

namespace capstan::comm::testing {
namespace {

class GroupProcessTest : public ::testing::Test {
 protected:
  void begin(int nodes, int node, int timeout_ms) {
    nodes_.push_back(std::make_unique<Process>(nodes, node, address_, timeout_ms));
  }
  void start(int nodes, int timeout_ms) {
    address_ = "127.0.0.1:" + std::to_string(free_port());
    for (int i = 0; i < nodes; ++i) begin(nodes, i, timeout_ms);
    for (auto& node : nodes_) {
      EXPECT_FALSE(node->line("joined").empty()) << node->log();
      // Steps have been told.
      EXPECT_FALSE(node->line("met").empty()) << node->log();
    }
  }
  /// All but `culprit` leave with 3 and say the same.
  void expect_end(int culprit, const std::string& line, int but = -1) {
    for (int i = 0; i < static_cast<int>(nodes_.size()); ++i) {
      if (i == culprit || i == but) continue;
      const std::string seen = nodes_[i]->line("end: ");
      EXPECT_TRUE(seen.starts_with(line)) << "node " << i << ": " << seen;
      EXPECT_EQ(nodes_[i]->exit_code(), 3);
    }
  }

  std::string address_ = "127.0.0.1:" + std::to_string(free_port());
  std::vector<std::unique_ptr<Process>> nodes_;
};

TEST_F(GroupProcessTest, ALeaderThatWasStoppedTakesItsSleepForNobodysSilence) {
  begin(3, 0, 5000);
  begin(3, 1, 5000);
  EXPECT_FALSE(nodes_[0]->line_with("joined from").empty());
  // As a machine that is suspended, for longer than the heartbeat's limit.
  nodes_[1]->hold();
  nodes_[0]->hold();
  std::this_thread::sleep_for(5500ms);
  nodes_[0]->go_on();
  std::this_thread::sleep_for(100ms);  // it looks before node 1 speaks
  nodes_[1]->go_on();
  begin(3, 2, 5000);
  for (auto& node : nodes_) EXPECT_FALSE(node->line("joined").empty()) << node->log();
  EXPECT_FALSE(contains(nodes_[0]->log(), "left before the group was complete"))
      << nodes_[0]->log();
  nodes_[0]->order('r');
  for (auto& node : nodes_) EXPECT_EQ(node->exit_code(), 0) << node->log();
}

TEST_F(GroupProcessTest, NodesThatAreNotTakenInSayWhy) {
  start(2, 20000);
  Process late(2, 1, address_, 20000);
  EXPECT_TRUE(contains(late.line_with("cannot be joined yet"), "is complete and at work, with"));
  Process stranger(2, 1, address_, 20000, {"env", "CAPSTAN_GROUP_TOKEN=another"});
  EXPECT_TRUE(contains(stranger.line_with("cannot be joined yet"), "with another secret"));
  nodes_[0]->order('r');
  for (auto& node : nodes_) EXPECT_EQ(node->exit_code(), 0) << node->log();
}

TEST_F(GroupProcessTest, KilledNodeIsNamedByAll) {
  for (int culprit = 0; culprit < 3; ++culprit) {
    nodes_.clear();
    start(3, 20000);  // not the heartbeat tells of it
    nodes_[culprit]->signal(SIGKILL);
    expect_end(culprit, "end: node " + std::to_string(culprit) + " rank " +
                            std::to_string(2 * culprit) + " with step: its connection broke (");
  }
}

TEST_F(GroupProcessTest, StoppedMemberIsNamedByAllAndLearnsItWhenItGoesOn) {
  start(3, 3000);
  nodes_[1]->hold();
  expect_end(1, "end: node 1 rank 2 with step: no heartbeat for ");
  nodes_[1]->go_on();
  // It blames nobody else.
  EXPECT_TRUE(nodes_[1]->line("end: ").starts_with("end: node 1 rank 2 with step: "));
  EXPECT_TRUE(contains(nodes_[1]->log(), "this process did not run for ")) << nodes_[1]->log();
  EXPECT_EQ(nodes_[1]->exit_code(), 3);
}

TEST_F(GroupProcessTest, StoppedLeaderIsNamedByAllAndLearnsItWhenItGoesOn) {
  start(3, 3000);
  nodes_[0]->hold();
  expect_end(0, "end: node 0 rank 0 with step: no heartbeat for ");
  nodes_[0]->go_on();
  EXPECT_TRUE(nodes_[0]->line("end: ").starts_with("end: node 0 rank 0 with step: "));
  EXPECT_TRUE(contains(nodes_[0]->log(), "this process did not run for ")) << nodes_[0]->log();
  EXPECT_EQ(nodes_[0]->exit_code(), 3);
}

TEST_F(GroupProcessTest, ShortStopIsReportedAndSurvived) {
  start(2, 10000);
  nodes_[1]->hold();
  // Node 0 warns after a fifth of the limit.
  EXPECT_TRUE(contains(nodes_[0]->line_with("no heartbeat for"), "the group ends at 10.0 s"));
  std::this_thread::sleep_for(500ms);
  nodes_[1]->go_on();
  EXPECT_FALSE(nodes_[1]->line_with("this process did not run for").empty());
  nodes_[0]->hold();
  std::this_thread::sleep_for(300ms);
  nodes_[0]->go_on();
  std::this_thread::sleep_for(200ms);
  nodes_[0]->order('r');
  for (auto& node : nodes_) EXPECT_EQ(node->exit_code(), 0) << node->log();
}

TEST_F(GroupProcessTest, FailureIsToldToAll) {
  start(3, 20000);
  nodes_[2]->order('f');
  expect_end(-1, "end: node 2 rank 5 with step: disk error");
}

TEST_F(GroupProcessTest, ReleaseLeavesAllWithSuccess) {
  start(3, 20000);
  nodes_[0]->order('r');
  for (auto& node : nodes_) EXPECT_EQ(node->exit_code(), 0) << node->log();
}

TEST_F(GroupProcessTest, ReleaseDoesNotWaitForAStoppedNodeForEver) {
  start(3, 20000);
  nodes_[1]->hold();
  nodes_[0]->order('r');
  EXPECT_EQ(nodes_[0]->exit_code(), 0);
  EXPECT_EQ(nodes_[2]->exit_code(), 0);
  nodes_[1]->go_on();
  EXPECT_EQ(nodes_[1]->exit_code(), 0);  // the orderly end waited in its socket
}

}  // namespace
}  // namespace capstan::comm::testing
