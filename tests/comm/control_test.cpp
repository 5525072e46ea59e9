// The parts below the group: addresses, secrets, frames, the clock of heartbeats.
#include <gtest/gtest.h>

#include <random>

#include "comm/address.h"
#include "comm/control_link.h"
#include "comm/control_message.h"
#include "comm/control_throttle.h"
#include "comm/heartbeat.h"
#include "comm/secret.h"

namespace capstan::comm {
namespace {

using namespace std::chrono_literals;

TEST(AddressTest, HostAndPort) {
  EXPECT_EQ(parse_host_port("node-a:5000")->host, "node-a");
  EXPECT_EQ(parse_host_port("node-a:5000")->port, 5000);
  EXPECT_EQ(parse_host_port("r1-0.r1.ns:20000")->text(), "r1-0.r1.ns:20000");
  EXPECT_EQ(parse_host_port("[::1]:65535")->host, "::1");
  EXPECT_EQ(parse_host_port("[fe80::1%eth0]:1")->text(), "[fe80::1%eth0]:1");
}

Interface make(const std::string& name, const std::string& address, bool loopback = false,
               bool link_local = false) {
  return {name, *numeric_address(address, 0), loopback, link_local};
}

TEST(AddressTest, InterfaceRulesAreThoseOfNccl) {
  const std::vector<Interface> all = {make("lo", "127.0.0.1", true),
                                      make("docker0", "172.17.0.1"),
                                      make("eth0", "fe80::1", false, true),
                                      make("eth0", "2001:db8::1"),
                                      make("eth0", "10.0.0.1"),
                                      make("eth1", "10.1.0.1"),
                                      make("ib0", "10.2.0.1")};
  const auto pick = [&](const std::string& spec, int family = AF_INET) -> std::string {
    const auto chosen = select_interface(spec, all, family);
    return chosen.ok() ? chosen->address.host() : chosen.error().message;
  };
  EXPECT_EQ(pick("eth"), "10.0.0.1");
  EXPECT_EQ(pick("eth", AF_INET6), "2001:db8::1");
  EXPECT_EQ(pick("ib,eth"), "10.2.0.1");  // in the order of the list
  EXPECT_EQ(pick("=eth1"), "10.1.0.1");
  EXPECT_EQ(pick("ens,ib0"), "10.2.0.1");
  EXPECT_EQ(pick("10.1.0.1"), "10.1.0.1");
  EXPECT_EQ(pick("lo"), "127.0.0.1");
  EXPECT_EQ(pick("^docker"), "10.0.0.1");  // and the loopback is never meant
  EXPECT_EQ(pick("^docker,eth"), "10.2.0.1");
  EXPECT_EQ(pick("^=docker,=eth0,=eth1"), "172.17.0.1");  // "docker" is not docker0
  EXPECT_EQ(pick("^=docker0,eth0"), "10.1.0.1");
  const std::string none = pick("=eth");
  EXPECT_NE(none.find("'=eth'"), std::string::npos) << none;
  EXPECT_NE(none.find("docker0 (172.17.0.1), eth0 (fe80::1)"), std::string::npos) << none;
  EXPECT_NE(pick("10.9.9.9").find("no interface"), std::string::npos);
  EXPECT_NE(pick("^,").find("names no interface"), std::string::npos);
}

TEST(AddressTest, MachineHasALoopback) {
  const auto all = list_interfaces();
  EXPECT_TRUE(std::any_of(all.begin(), all.end(),
                          [](const Interface& i) { return i.loopback && i.name == "lo"; }));
  EXPECT_FALSE(host_name().empty());
}

TEST(SecretTest, HmacIsTheStandards) {
  // RFC 4231, test cases 2 and 6 (a key longer than a block).
  EXPECT_EQ(hex(view(hmac("Jefe", "what do ya want for nothing?"))),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(hex(view(hmac(std::string(131, '\xaa'),
                          "Test Using Larger Than Block-Size Key - Hash Key First"))),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
  EXPECT_FALSE(equal(random_digest(), random_digest()));
}

TEST(MessageTest, MessagesComeBackAsTheyWere) {
  Join join;
  ASSERT_TRUE(decode(encode(Join{3, "host", {{"a", "1"}, {"", ""}}}), join));
  EXPECT_EQ(join.node, 3);
  EXPECT_EQ(join.facts, (Facts{{"a", "1"}, {"", ""}}));
  GroupEnd end, was{false, 2, 17, "b", 1ull << 40, "its connection broke"};
  ASSERT_TRUE(decode(encode(was), end));
  EXPECT_EQ(end.describe(),
            "rank 17 (node 2, host b) failed at step 1099511627776: its connection broke");
  std::vector<Beat> beats;
  ASSERT_TRUE(decode(encode(std::vector<Beat>{{true, 5, 6, "x"}, {false, 0, 0, ""}}), beats));
  EXPECT_EQ(beats.size(), 2u);
  EXPECT_FALSE(beats[1].joined);
  Failure failure;
  ASSERT_TRUE(decode(encode(Failure{-1, true, "w"}), failure));
  EXPECT_EQ(failure.rank, -1);
}

TEST(MessageTest, DamagedMessagesAreNoticed) {
  const std::string good = encode(ExchangeAnswer{7, "", {"one", "two", "three"}});
  ExchangeAnswer answer;
  ASSERT_TRUE(decode(good, answer));
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_FALSE(decode(good.substr(0, size), answer)) << size;
  }
  EXPECT_FALSE(decode(good + "x", answer));
  // A count that promises more than there is must not reserve it.
  EXPECT_FALSE(decode(std::string(12, '\0') + "\xff\xff\xff\xff", answer));
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string text = good;
    for (int k = 0; k < 3; ++k) text[random() % text.size()] = static_cast<char>(random());
    Join join;
    Start start;
    GroupEnd end;
    std::vector<Beat> beats;
    (void)decode(text, answer);
    (void)decode(text, join);
    (void)decode(text, start);
    (void)decode(text, end);
    (void)decode(text, beats);
  }
}

class LinkTest : public ::testing::Test {
 protected:
  LinkTest() {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
    a_ = ControlLink(Fd(fds[0]), 4 << 20);
    b_ = ControlLink(Fd(fds[1]), 4 << 20);
  }
  ControlLink a_, b_;
};

TEST_F(LinkTest, FramesArriveWholeAndInOrderHoweverTheyAreCut) {
  a_.send(MessageType::kExchange, std::string(3 << 20, 'x'));
  for (int i = 0; i < 100; ++i) a_.send(MessageType::kHeartbeat, std::to_string(i));
  std::vector<Frame> frames;
  while (frames.size() < 101 && a_.open() && b_.open()) {
    a_.flush();
    b_.receive(frames);
  }
  ASSERT_EQ(frames.size(), 101u);
  EXPECT_EQ(frames[0].body, std::string(3 << 20, 'x'));
  for (int i = 0; i < 100; ++i) EXPECT_EQ(frames[1 + i].body, std::to_string(i));
}

TEST_F(LinkTest, LastWordsAreHeardBeforeTheEnd) {
  a_.send(MessageType::kEnd, "bye");
  a_.flush();
  b_.send(MessageType::kHeartbeat, "unread");
  b_.flush();
  a_.close();
  // Writing into the closed connection must not lose what waits to be read.
  b_.send(MessageType::kHeartbeat, "more");
  b_.flush();
  std::vector<Frame> frames;
  b_.receive(frames);
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].body, "bye");
  EXPECT_FALSE(b_.open());
}

TEST_F(LinkTest, TooLongAMessageBreaksTheLinkBeforeItIsRead) {
  b_.set_max_body(10);
  a_.send(MessageType::kHeartbeat, std::string(10, 'x'));
  a_.send(MessageType::kHeartbeat, std::string(11, 'x'));
  a_.flush();
  std::vector<Frame> frames;
  b_.receive(frames);
  EXPECT_EQ(frames.size(), 1u);
  EXPECT_FALSE(b_.open());
  EXPECT_NE(b_.broken().find("11 bytes"), std::string::npos) << b_.broken();
}

TEST(HeartbeatTest, SilenceIsMeasuredFromTheLastWord) {
  const TimePoint start{};
  HeartbeatClock clock(2, 500ms, 15s, start);
  TimePoint now = start;
  for (; now < start + 14s; now += 500ms) {
    EXPECT_EQ(clock.tick(now), Duration::zero());
    clock.heard(1, now);
  }
  EXPECT_FALSE(clock.silent(0, now));
  for (; now < start + 15s; now += 500ms) clock.tick(now);
  EXPECT_TRUE(clock.silent(0, now));
  EXPECT_FALSE(clock.silent(1, now));
}

TEST(HeartbeatTest, OwnSleepIsNobodysSilence) {
  const TimePoint start{};
  HeartbeatClock clock(1, 500ms, 15s, start);
  clock.tick(start + 400ms);
  // Stopped for 40 s: all of it but the usual interval is this process's own.
  const Duration gap = clock.tick(start + 40400ms);
  EXPECT_EQ(gap, 39500ms);
  EXPECT_FALSE(clock.silent(0, start + 40400ms));
  EXPECT_LT(clock.age(0, start + 40400ms), 1s);
  // From then on the peer has its full time again.
  TimePoint now = start + 40400ms;
  while (!clock.silent(0, now)) clock.tick(now += 500ms);
  EXPECT_GT(now - (start + 40400ms), 13s);
  EXPECT_LT(now - (start + 40400ms), 16s);
}

TEST(HeartbeatTest, BeatsAreDueOncePerInterval) {
  const TimePoint start{};
  HeartbeatClock clock(1, 500ms, 15s, start);
  EXPECT_TRUE(clock.due(start));
  EXPECT_FALSE(clock.due(start + 499ms));
  EXPECT_TRUE(clock.due(start + 500ms));
  EXPECT_EQ(clock.next(), start + 1000ms);
}

TEST(ThrottleTest, OneLinePerInterval) {
  LogThrottle throttle(30s);
  const TimePoint start{};
  EXPECT_TRUE(throttle.due(start));
  int lines = 0;
  for (int s = 1; s <= 60; ++s) lines += throttle.due(start + std::chrono::seconds(s)) ? 1 : 0;
  EXPECT_EQ(lines, 2);
  EXPECT_EQ(throttle.suppressed(), 29);
}

}  // namespace
}  // namespace capstan::comm
