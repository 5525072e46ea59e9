// How nodes find each other: orders of starting, differing values, restarts, limits of time.
#include "comm/rendezvous.h"

#include <filesystem>

#include "comm/group_fixture.h"

namespace capstan::comm::testing {
namespace {

GroupTiming quick() {
  GroupTiming timing;
  timing.backoff = 10ms;
  timing.backoff_limit = 100ms;
  return timing;
}

std::string host() { return host_name(); }

TEST(RendezvousTest, MembersMayStartLongBeforeTheLeader) {
  const uint16_t port = free_port();
  Joiner one(make_config(3, 1, port), quick()), two(make_config(3, 2, port), quick());
  std::this_thread::sleep_for(300ms);
  EXPECT_FALSE(one.done());
  Joiner zero(make_config(3, 0, port), quick());
  ASSERT_TRUE(zero.result().ok()) << zero.error();
  ASSERT_TRUE(one.result().ok()) << one.error();
  ASSERT_TRUE(two.result().ok()) << two.error();
  (*zero.result())->release();
}

TEST(RendezvousTest, NamesAndIpv6Work) {
  for (const std::string host : {"localhost", "[::1]"}) {
    const uint16_t port = free_port();
    std::vector<GroupConfig> configs;
    for (int i = 0; i < 2; ++i) {
      configs.push_back(make_config(2, i, port));
      configs.back().dist_init_addr = host + ":" + std::to_string(port);
    }
    auto joined = join_all(configs, quick());
    ASSERT_TRUE(joined[0].ok()) << joined[0].error().message;
    ASSERT_TRUE(joined[1].ok()) << joined[1].error().message;
    (*joined[0])->release();
  }
}

TEST(RendezvousTest, DifferingValuesArePrintedOnAllSides) {
  const uint16_t port = free_port();
  Joiner zero(make_config(3, 0, port), quick());
  Frame answer;
  ControlLink two = join_by_hand(make_config(3, 2, port), host(), &answer);
  EXPECT_EQ(answer.type, MessageType::kWelcome);
  GroupConfig other = make_config(3, 1, port);
  other.facts = {{"version", "1"}, {"tp-size", "8"}, {"kv", "fp8"}};
  Joiner one(other, quick());
  EXPECT_EQ(zero.code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(zero.error(), "node 1 (host " + host() +
                              "): tp-size is 8, here it is 6; kv is fp8, here it is absent");
  EXPECT_EQ(one.code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(one.error(), "node 0 (host " + host() +
                             "): tp-size is 6, here it is 8; kv is absent, here it is fp8");
  Refusal refusal;
  ASSERT_TRUE(decode(wait_for_frame(two, MessageType::kRefuse).body, refusal));
  EXPECT_EQ(refusal.code, ErrorCode::kInvalidArgument);
  EXPECT_FALSE(refusal.retry);
  EXPECT_EQ(refusal.what, "node 1 (host " + host() + "): tp-size is 8, on node 0 (host " + host() +
                              ") it is 6; kv is fp8, on node 0 (host " + host() + ") it is absent");
}

TEST(RendezvousTest, DifferentNumbersOfNodesAreNamed) {
  const uint16_t port = free_port();
  GroupConfig three = make_config(3, 1, port);
  three.facts = make_config(2, 0, port).facts;
  Joiner zero(make_config(2, 0, port), quick()), one(three, quick());
  EXPECT_EQ(zero.error(), "node 1 (host " + host() + "): nnodes is 3, here it is 2");
  EXPECT_EQ(one.error(), "node 0 (host " + host() + "): nnodes is 2, here it is 3");
}

TEST(RendezvousTest, TwoNodesOfOneNumberAreNamedEverywhere) {
  const uint16_t port = free_port();
  Joiner zero(make_config(3, 0, port), quick()), first(make_config(3, 1, port), quick()),
      second(make_config(3, 1, port), quick());
  for (Joiner* node : {&zero, &first, &second}) {
    EXPECT_EQ(node->code(), ErrorCode::kInvalidArgument);
    EXPECT_TRUE(contains(node->error(), "two nodes have --node-rank 1: host " + host()))
        << node->error();
  }
}

TEST(RendezvousTest, NumbersOutsideTheGroupAreRefusedAtOnce) {
  for (const int node : {-1, 2, 7}) {
    Joiner bad(make_config(2, node, free_port()));
    EXPECT_EQ(bad.code(), ErrorCode::kInvalidArgument);
    EXPECT_EQ(bad.error(),
              "--node-rank " + std::to_string(node) + " is outside 0 to 1 (--nnodes 2)");
  }
}

TEST(RendezvousTest, MalformedAddressesAreRefusedWithTheValue) {
  for (const std::string address :
       {"", "node-a", "node-a:", ":5000", "node-a:0", "node-a:65536", "node-a:50x", "::1:5000",
        "[::1]5000", "[::1:5000", "http://a:5000", "$(LWS_LEADER_ADDRESS):20000"}) {
    GroupConfig config = make_config(2, 1, 1);
    config.dist_init_addr = address;
    Joiner node(config);
    EXPECT_EQ(node.code(), ErrorCode::kInvalidArgument) << address;
    EXPECT_TRUE(contains(node.error(), "'" + address + "'")) << node.error();
    EXPECT_TRUE(contains(node.error(), "give HOST:PORT")) << node.error();
  }
}

TEST(RendezvousTest, TakenPortIsNamed) {
  Result<Fd> taken = listen_on(nullptr, 0);
  ASSERT_TRUE(taken.ok());
  const uint16_t port = local_address(taken->get()).port();
  Joiner zero(make_config(2, 0, port));
  EXPECT_EQ(zero.code(), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(contains(zero.error(), "port " + std::to_string(port) + ": Address already in use"))
      << zero.error();
  EXPECT_TRUE(contains(zero.error(), "another one")) << zero.error();
}

TEST(RendezvousTest, LeaderNamesTheMissingNodesWhenTheTimeIsOver) {
  const uint16_t port = free_port();
  std::vector<std::unique_ptr<Joiner>> nodes;
  for (int i = 0; i < 3; ++i) {
    GroupConfig config = make_config(4, i, port);
    config.dist_timeout = std::chrono::seconds(i == 0 ? 1 : 600);
    nodes.push_back(std::make_unique<Joiner>(config, quick()));
  }
  EXPECT_EQ(nodes[0]->code(), ErrorCode::kUnavailable);
  const std::string said = nodes[0]->error();
  const size_t end = said.find(" of 0 to 3 did not join within --dist-timeout 1 s");
  ASSERT_NE(end, std::string::npos) << said;
  const std::string missing = said.substr(0, end);
  EXPECT_TRUE(missing.starts_with("node ") && missing.ends_with("3")) << said;
  for (int i = 1; i < 3; ++i) {
    // On a machine that is stopped for that second, nobody is in time: such a node tries on.
    if (contains(missing, std::to_string(i))) nodes[i]->cancel();
    const ErrorCode code = nodes[i]->code();
    EXPECT_TRUE(code == ErrorCode::kUnavailable || contains(missing, std::to_string(i)))
        << nodes[i]->error();
  }
}

TEST(RendezvousTest, MemberSaysWhatItTriedWhenTheTimeIsOver) {
  GroupConfig config = make_config(2, 1, free_port());
  config.dist_timeout = std::chrono::seconds(1);
  Joiner refused(config, quick());
  config.dist_init_addr = "capstan-no-such-host.invalid:5000";
  Joiner unknown(config, quick());
  EXPECT_EQ(refused.code(), ErrorCode::kUnavailable);
  EXPECT_TRUE(contains(refused.error(), "Connection refused")) << refused.error();
  EXPECT_TRUE(contains(refused.error(), "--dist-timeout 1 s")) << refused.error();
  EXPECT_EQ(unknown.code(), ErrorCode::kUnavailable);
  EXPECT_TRUE(contains(unknown.error(), "capstan-no-such-host.invalid")) << unknown.error();
}

TEST(RendezvousTest, AfterTheFirstMeetingTheWaitIsBounded) {
  const uint16_t port = free_port();
  GroupTiming timing = quick();
  timing.forming = 500ms;
  Joiner zero(make_config(3, 0, port), timing), one(make_config(3, 1, port), timing);
  EXPECT_EQ(zero.code(), ErrorCode::kUnavailable);
  EXPECT_TRUE(contains(zero.error(), "node 2 of 0 to 2 did not join within 500 ms of the first"))
      << zero.error();
  EXPECT_EQ(one.code(), ErrorCode::kUnavailable) << one.error();
}

TEST(RendezvousTest, CancellingEndsEveryKindOfWaiting) {
  const uint16_t port = free_port();
  GroupConfig nowhere = make_config(2, 1, free_port());
  GroupConfig unreachable = nowhere;
  unreachable.dist_init_addr = "192.0.2.1:5000";  // of documentation: nothing answers
  GroupConfig unknown = nowhere;
  unknown.dist_init_addr = "capstan-no-such-host.invalid:5000";
  Joiner waiting_leader(make_config(3, 0, port)), joined_member(make_config(3, 1, port)),
      refused(nowhere), silent(unreachable), unresolved(unknown);
  std::this_thread::sleep_for(300ms);
  for (Joiner* node : {&waiting_leader, &joined_member, &refused, &silent, &unresolved}) {
    EXPECT_FALSE(node->done());
    node->cancel();
    EXPECT_EQ(node->code(), ErrorCode::kAborted) << node->error();
  }
}

TEST(RendezvousTest, MembersOutliveARestartOfTheLeader) {
  const uint16_t port = free_port();
  Joiner one(make_config(3, 1, port), quick());
  for (int restart = 0; restart < 3; ++restart) {
    Joiner zero(make_config(3, 0, port), quick());
    std::this_thread::sleep_for(150ms);
  }  // cancelled, its sockets closed
  EXPECT_FALSE(one.done());
  Joiner zero(make_config(3, 0, port), quick()), two(make_config(3, 2, port), quick());
  ASSERT_TRUE(zero.result().ok()) << zero.error();
  ASSERT_TRUE(one.result().ok()) << one.error();
  ASSERT_TRUE(two.result().ok()) << two.error();
  (*zero.result())->release();
}

TEST(RendezvousTest, MemberThatLeavesEarlyIsAwaitedAgain) {
  const uint16_t port = free_port();
  Joiner zero(make_config(3, 0, port), quick());
  {
    Joiner one(make_config(3, 1, port), quick());
    std::this_thread::sleep_for(200ms);
  }
  Joiner one(make_config(3, 1, port), quick()), two(make_config(3, 2, port), quick());
  ASSERT_TRUE(zero.result().ok()) << zero.error();
  ASSERT_TRUE(one.result().ok()) << one.error();
  ASSERT_TRUE(two.result().ok()) << two.error();
  (*zero.result())->release();
}

TEST(RendezvousTest, MemberThatFellSilentIsReplaced) {
  GroupConfig leader = make_config(2, 0, free_port());
  leader.heartbeat_timeout = 3s;
  Joiner zero(leader, quick());
  // A host that lost its power: it joined, and nothing tells of its end.
  GroupConfig member = leader;
  member.node = 1;
  Frame answer;
  const ControlLink ghost = join_by_hand(member, "ghost", &answer);
  EXPECT_EQ(answer.type, MessageType::kWelcome);
  // A group of two starts at once, so only its end shows: the ghost is found out.
  EXPECT_EQ(zero.code(), ErrorCode::kUnavailable);
  EXPECT_TRUE(contains(zero.error(), "rank 2 (node 1, host ghost) failed at step 0: no heartbeat"))
      << zero.error();

  // In a group that is not complete yet, the newcomer takes the place.
  const uint16_t port3 = free_port();
  GroupConfig leader3 = make_config(3, 0, port3);
  leader3.heartbeat_timeout = 3s;
  Joiner again(leader3, quick());
  ControlLink ghost3 = join_by_hand(make_config(3, 1, port3), "ghost", &answer);
  EXPECT_EQ(answer.type, MessageType::kWelcome);
  Joiner one(make_config(3, 1, port3), quick());
  // Until node 0 gives the ghost up: with node 2 the group would be complete.
  (void)wait_for_frame(ghost3, MessageType::kStart);
  EXPECT_FALSE(ghost3.open());
  Joiner two(make_config(3, 2, port3), quick());
  ASSERT_TRUE(again.result().ok()) << again.error();
  ASSERT_TRUE(one.result().ok()) << one.error();
  ASSERT_TRUE(two.result().ok()) << two.error();
  EXPECT_EQ((*again.result())->states()[1].host, host());
  (*again.result())->release();
}

TEST(RendezvousTest, LatecomerWaitsForTheNextGroupAtTheSamePort) {
  const uint16_t port = free_port();
  auto joined = join_all({make_config(2, 0, port), make_config(2, 1, port)}, quick());
  ASSERT_TRUE(joined[0].ok() && joined[1].ok());
  Joiner late(make_config(2, 1, port), quick());
  std::this_thread::sleep_for(300ms);
  EXPECT_FALSE(late.done());
  EXPECT_FALSE((*joined[0])->ended(nullptr));
  (*joined[0])->release();
  joined.clear();
  Joiner zero(make_config(2, 0, port), quick());  // binds the same port at once
  ASSERT_TRUE(zero.result().ok()) << zero.error();
  ASSERT_TRUE(late.result().ok()) << late.error();
  (*zero.result())->release();
}

TEST(RendezvousTest, InterfacesAreChosenByNameOrRefusedWithThoseThatExist) {
  const uint16_t port = free_port();
  std::vector<GroupConfig> configs;
  for (int i = 0; i < 2; ++i) {
    configs.push_back(make_config(2, i, port));
    configs.back().interface = i == 0 ? "lo" : "127.0.0.1";
  }
  auto joined = join_all(configs, quick());
  ASSERT_TRUE(joined[0].ok()) << joined[0].error().message;
  ASSERT_TRUE(joined[1].ok()) << joined[1].error().message;
  for (const NodeLink& link : (*joined[0])->take_links()) {
    EXPECT_EQ(local_address(link.fd).host(), "127.0.0.1");
    close(link.fd);
  }
  (*joined[0])->release();
  GroupConfig wrong = make_config(2, 1, port);
  wrong.interface = "nosuch0";
  Joiner node(wrong);
  EXPECT_EQ(node.code(), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(contains(node.error(), "'nosuch0'") && contains(node.error(), "lo (127.0.0.1)"))
      << node.error();
}

TEST(RendezvousTest, NothingLeaksADescriptor) {
  const auto open_files = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                         std::filesystem::directory_iterator());
  };
  const auto before = open_files();
  for (int round = 0; round < 3; ++round) {
    auto nodes = make_nodes(3, quick());
    ASSERT_EQ(nodes.size(), 3u);
    for (const NodeLink& link : nodes[0]->take_links()) close(link.fd);
    if (round == 0) nodes[0]->release();
    if (round == 1) nodes[1] = nullptr;
    nodes.clear();
    const uint16_t port = free_port();
    GroupConfig other = make_config(2, 1, port);
    other.facts.clear();
    (void)join_all({make_config(2, 0, port), other}, quick());
    Joiner cancelled(make_config(2, 0, port), quick()), refused(make_config(2, 1, 1), quick());
    std::this_thread::sleep_for(20ms);
  }
  EXPECT_EQ(open_files(), before);
}

}  // namespace
}  // namespace capstan::comm::testing
