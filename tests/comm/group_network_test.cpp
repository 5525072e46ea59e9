// Two nodes in network namespaces with a link between them that can be cut. Needs root; skipped
// without.
#include <cstdlib>

#include "comm/group_process.h"

namespace capstan::comm::testing {
namespace {

class GroupNetworkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "network namespaces need root";
    const std::string id = std::to_string(getpid() % 100000);
    for (int i = 0; i < 2; ++i) {
      names_[i] = "capstan-" + id + "-" + std::to_string(i);
      device_[i] = "cg" + id + "." + std::to_string(i);
      if (!run("ip netns add " + names_[i])) GTEST_SKIP() << "no network namespaces here";
    }
    if (!run("ip link add " + device_[0] + " netns " + names_[0] + " type veth peer name " +
             device_[1] + " netns " + names_[1])) {
      GTEST_SKIP() << "no virtual Ethernet here";
    }
    for (int i = 0; i < 2; ++i) {
      in(i, "ip link set lo up");
      in(i, "ip addr add 10.231.7." + std::to_string(i + 1) + "/24 dev " + device_[i]);
      in(i, "ip link set " + device_[i] + " up");
    }
  }
  void TearDown() override {
    for (auto& node : nodes_) node.reset();
    for (const std::string& name : names_) {
      if (!name.empty()) run("ip netns del " + name);
    }
  }
  static bool run(const std::string& command) {
    return std::system((command + " 2>/dev/null").c_str()) == 0;
  }
  void in(int i, const std::string& command) {
    EXPECT_TRUE(run("ip netns exec " + names_[i] + " " + command)) << command;
  }
  void start(int node, int timeout_ms) {
    nodes_[node] =
        std::make_unique<Process>(2, node, "10.231.7.1:5000", timeout_ms,
                                  std::vector<std::string>{"ip", "netns", "exec", names_[node]});
  }

  std::string names_[2], device_[2];
  std::unique_ptr<Process> nodes_[2];
};

TEST_F(GroupNetworkTest, NamespacesOfOneMachineShareMemoryAndACutLinkEndsBothSides) {
  start(0, 4000);
  start(1, 4000);
  for (auto& node : nodes_) EXPECT_EQ(node->line("joined"), "joined by shared memory");
  in(0, "ip link set " + device_[0] + " down");
  EXPECT_TRUE(nodes_[0]->line("end: ").starts_with("end: node 1 rank 2 "));
  EXPECT_TRUE(nodes_[1]->line("end: ").starts_with("end: node 0 rank 0 "));
  EXPECT_EQ(nodes_[0]->exit_code(), 3);
  EXPECT_EQ(nodes_[1]->exit_code(), 3);
}

TEST_F(GroupNetworkTest, MemberWaitsForAnAddressThatComesToLifeLater) {
  in(0, "ip addr del 10.231.7.1/24 dev " + device_[0]);  // nothing answers at the address
  start(1, 20000);
  EXPECT_TRUE(contains(nodes_[1]->line("["), "looks for node 0"));
  EXPECT_TRUE(contains(nodes_[1]->line("["), "cannot be joined yet"));
  in(0, "ip addr add 10.231.7.1/24 dev " + device_[0]);
  start(0, 20000);
  for (auto& node : nodes_) ASSERT_FALSE(node->line("joined").empty()) << node->log();
  // The same port again, at once, after an end without farewells.
  nodes_[0]->signal(SIGKILL);
  EXPECT_EQ(nodes_[0]->exit_code(), 128 + SIGKILL);
  EXPECT_EQ(nodes_[1]->exit_code(), 3);
  start(0, 20000);
  start(1, 20000);
  for (auto& node : nodes_) ASSERT_FALSE(node->line("joined").empty()) << node->log();
  nodes_[0]->order('r');
  EXPECT_EQ(nodes_[0]->exit_code(), 0);
  EXPECT_EQ(nodes_[1]->exit_code(), 0);
}

}  // namespace
}  // namespace capstan::comm::testing
