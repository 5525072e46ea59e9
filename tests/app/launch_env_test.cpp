#include "app/launch_env.h"

#include <gtest/gtest.h>

#include <map>

namespace capstan::app {
namespace {

Environment table(std::map<std::string, std::string> values) {
  return [values = std::move(values)](const std::string& name) -> std::optional<std::string> {
    const auto at = values.find(name);
    if (at == values.end()) return std::nullopt;
    return at->second;
  };
}

TEST(LaunchEnvTest, WithoutVariablesTheFlagsAndTheirDefaultsHold) {
  const auto alone = place_of_node({}, table({}), "pc");
  ASSERT_TRUE(alone.ok());
  EXPECT_EQ(alone->nnodes, 1);
  EXPECT_EQ(alone->node_rank, 0);
  EXPECT_EQ(alone->dist_init_addr, "");
  EXPECT_TRUE(alone->notes.empty());
  const auto two = place_of_node({2, 1, "a:5000"}, table({}), "pc");
  ASSERT_TRUE(two.ok());
  EXPECT_EQ(two->nnodes, 2);
  EXPECT_EQ(two->node_rank, 1);
  EXPECT_EQ(two->dist_init_addr, "a:5000");
}

TEST(LaunchEnvTest, LeaderWorkerSetFillsAbsentFlags) {
  const auto env = table(
      {{"LWS_LEADER_ADDRESS", "r1-0.r1.ns"}, {"LWS_GROUP_SIZE", "4"}, {"LWS_WORKER_INDEX", "3"}});
  const auto place = place_of_node({}, env, "r1-0-3");
  ASSERT_TRUE(place.ok()) << place.error().message;
  EXPECT_EQ(place->nnodes, 4);
  EXPECT_EQ(place->node_rank, 3);
  EXPECT_EQ(place->dist_init_addr, "r1-0.r1.ns:20000");
  EXPECT_EQ(place->notes.size(), 3u);
  const auto flags = place_of_node({2, 1, "other:5000"}, env, "r1-0-3");
  ASSERT_TRUE(flags.ok());
  EXPECT_EQ(flags->nnodes, 2);
  EXPECT_EQ(flags->node_rank, 1);
  EXPECT_EQ(flags->dist_init_addr, "other:5000");
  EXPECT_TRUE(flags->notes.empty());
}

TEST(LaunchEnvTest, GroupOfOneNeedsNoRendezvous) {
  const auto place = place_of_node(
      {}, table({{"LWS_LEADER_ADDRESS", "r1-0.r1.ns"}, {"LWS_GROUP_SIZE", "1"}}), "r1-0");
  ASSERT_TRUE(place.ok());
  EXPECT_EQ(place->nnodes, 1);
  EXPECT_EQ(place->node_rank, 0);
  EXPECT_EQ(place->dist_init_addr, "");
}

TEST(LaunchEnvTest, OlderLeaderWorkerSetTellsTheIndexInThePodName) {
  const std::map<std::string, std::string> values = {
      {"LWS_LEADER_ADDRESS", "r1-10.r1.ns"}, {"LWS_GROUP_SIZE", "2"}, {"LWS_WORKER_INDEX", ""}};
  EXPECT_EQ(place_of_node({}, table(values), "r1-10")->node_rank, 0);
  EXPECT_EQ(place_of_node({}, table(values), "r1-10-1.r1.ns.svc")->node_rank, 1);
  // Not a pod of that group: "r1-1" only begins like a leader.
  for (const char* host : {"r1-1", "r1-100", "elsewhere", "r1-10-"}) {
    const auto place = place_of_node({}, table(values), host);
    ASSERT_FALSE(place.ok()) << host;
    EXPECT_NE(place.error().message.find("LWS_WORKER_INDEX"), std::string::npos);
    EXPECT_NE(place.error().message.find(host), std::string::npos);
  }
  const auto wrong = place_of_node({}, table(values), "r1-10-x");
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.error().message.find("'x'"), std::string::npos) << wrong.error().message;
}

TEST(LaunchEnvTest, StatefulSetTellsPodIndex) {
  const NodeFlags flags{2, std::nullopt, "r1:5000"};
  EXPECT_EQ(place_of_node(flags, table({{"POD_INDEX", "1"}}), "r1-1")->node_rank, 1);
  EXPECT_EQ(place_of_node(flags, table({}), "r1-1")->node_rank, 0);
  // A replica of a set that serves alone is no second node.
  EXPECT_EQ(place_of_node({}, table({{"POD_INDEX", "1"}}), "r1-1")->node_rank, 0);
}

TEST(LaunchEnvTest, VariablesThatMakeNoSenseAreNamedWithTheirValue) {
  const auto size = place_of_node({}, table({{"LWS_GROUP_SIZE", "two"}}), "h");
  ASSERT_FALSE(size.ok());
  EXPECT_NE(size.error().message.find("LWS_GROUP_SIZE is 'two'"), std::string::npos);
  const auto index =
      place_of_node({}, table({{"LWS_GROUP_SIZE", "2"}, {"LWS_WORKER_INDEX", "2"}}), "h");
  ASSERT_FALSE(index.ok());
  EXPECT_NE(index.error().message.find("LWS_WORKER_INDEX is '2', which is no number from 0 to 1"),
            std::string::npos)
      << index.error().message;
  EXPECT_FALSE(place_of_node({}, table({{"LWS_GROUP_SIZE", "0"}}), "h").ok());
}

TEST(LaunchEnvTest, LeaderAddressMayHaveAPort) {
  const auto place = place_of_node({},
                                   table({{"LWS_LEADER_ADDRESS", "r1-0.r1.ns:6000"},
                                          {"LWS_GROUP_SIZE", "2"},
                                          {"LWS_WORKER_INDEX", "1"}}),
                                   "h");
  ASSERT_TRUE(place.ok());
  EXPECT_EQ(place->dist_init_addr, "r1-0.r1.ns:6000");
}

TEST(LaunchEnvTest, TokenAndInterface) {
  EXPECT_EQ(group_token(table({})), "");
  EXPECT_EQ(group_token(table({{"CAPSTAN_GROUP_TOKEN", "s3cret\n"}})), "s3cret");
  EXPECT_EQ(socket_interface(table({})), "");
  EXPECT_EQ(socket_interface(table({{"NCCL_SOCKET_IFNAME", "^docker"}})), "^docker");
  EXPECT_EQ(socket_interface(table({{"NCCL_SOCKET_IFNAME", "ib"}, {"GLOO_SOCKET_IFNAME", "eth0"}})),
            "eth0");
}

}  // namespace
}  // namespace capstan::app
