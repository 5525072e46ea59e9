// Whoever does not belong to the group, and talks to its port.
#include <poll.h>
#include <sys/resource.h>

#include "comm/group_fixture.h"

namespace capstan::comm::testing {
namespace {

const Stop kNever = [] { return false; };

GroupTiming quick() {
  GroupTiming timing;
  timing.backoff = 10ms;
  timing.backoff_limit = 100ms;
  return timing;
}

std::string key_of(const GroupConfig& config) {
  return control_key(config.token, config.dist_init_addr);
}

/// A leader of two nodes that waits for node 1, and strangers before it.
class StrangerTest : public ::testing::Test {
 protected:
  /// Nobody is given up for being slow, so no answer depends on how fast this test runs.
  explicit StrangerTest(Duration opening = 1h)
      : config_(make_config(2, 0, free_port())), leader_(config_, timing_(opening)) {}
  static GroupTiming timing_(Duration opening) {
    GroupTiming timing = quick();
    timing.opening = opening;
    return timing;
  }
  uint16_t port() const { return parse_host_port(config_.dist_init_addr)->port; }
  /// Whatever came before: the group forms and works.
  void expect_that_the_group_forms() {
    EXPECT_FALSE(leader_.done());
    Joiner one(make_config(2, 1, port()), quick());
    ASSERT_TRUE(leader_.result().ok()) << leader_.error();
    ASSERT_TRUE(one.result().ok()) << one.error();
    expect_that_it_works(**leader_.result(), **one.result());
    (*leader_.result())->release();
  }
  static void expect_that_it_works(Group& a, Group& b) {
    std::thread other([&] { EXPECT_TRUE(b.exchange("works", "b").ok()); });
    EXPECT_TRUE(a.exchange("works", "a").ok());
    other.join();
  }

  GroupConfig config_;
  Joiner leader_;
};

/// Where strangers are given up soon.
class SlowStrangerTest : public StrangerTest {
 protected:
  SlowStrangerTest() : StrangerTest(300ms) {}
};

TEST_F(StrangerTest, HttpClientIsToldWhereItIs) {
  RawClient client(port());
  client.write("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::string answer = client.read_to_end();
  EXPECT_TRUE(answer.starts_with("HTTP/1.0 400 ")) << answer;
  EXPECT_TRUE(contains(answer, "not its API")) << answer;
  expect_that_the_group_forms();
}

TEST_F(StrangerTest, GarbageIsRefused) {
  RawClient noise(port()), almost(port()), empty(port());
  noise.write(std::string(100000, '\xff'));
  almost.write("CAPSTAN\n" + std::string(72, '\0'));
  noise.read_to_end();
  almost.read_to_end();
  { RawClient gone(port()); }
  expect_that_the_group_forms();
}

TEST_F(SlowStrangerTest, SilentAndSlowOnesLoseTheConnection) {
  RawClient silent(port()), slow(port());
  for (const char c : std::string("CAPST")) {
    slow.write(std::string(1, c));
    std::this_thread::sleep_for(50ms);
  }
  silent.read_to_end();
  slow.read_to_end();
  expect_that_the_group_forms();
}

TEST_F(StrangerTest, ManyUnfinishedOpeningsKeepNobodyOut) {
  std::vector<std::unique_ptr<RawClient>> crowd;
  for (int i = 0; i < 200; ++i) crowd.push_back(std::make_unique<RawClient>(port()));
  expect_that_the_group_forms();
}

TEST_F(StrangerTest, AuthenticatedNonsenseIsRefusedWithoutHarm) {
  for (const std::string& frame : {std::string("\xff\xff\xff\xff\x01", 5),  // 4 GiB are announced
                                   std::string("\x03\0\0\0\x01zzz", 8),     // no request
                                   std::string("\0\0\0\0\x05", 5)}) {       // a heartbeat first
    RawClient client(port());
    ASSERT_TRUE(open_as_client(client.fd(), Purpose::kControl, key_of(config_),
                               Clock::now() + kHang, kNever)
                    .ok());
    client.write(frame);
    client.read_to_end();
  }
  expect_that_the_group_forms();
}

TEST_F(SlowStrangerTest, AMessageThatIsAnnouncedAndNeverSentIsNotAwaited) {
  RawClient client(port());
  // Given up within it or after it.
  (void)open_as_client(client.fd(), Purpose::kControl, key_of(config_), Clock::now() + kHang,
                       kNever);
  client.write(std::string("\xff\xff\0\0\x01", 5));
  client.read_to_end();
  expect_that_the_group_forms();
}

TEST_F(SlowStrangerTest, SilentOnesDoNotHarmARunningGroup) {
  Joiner one(make_config(2, 1, port()), quick());
  ASSERT_TRUE(leader_.result().ok()) << leader_.error();
  ASSERT_TRUE(one.result().ok()) << one.error();
  RawClient silent(port());
  silent.read_to_end();
  EXPECT_FALSE((*leader_.result())->ended(nullptr));
  expect_that_it_works(**leader_.result(), **one.result());
  (*leader_.result())->release();
}

TEST_F(StrangerTest, WrongTokenIsRefusedAndKeepsTrying) {
  GroupConfig wrong = make_config(2, 1, port());
  wrong.token = "another secret";
  Joiner stranger(wrong, quick());
  std::this_thread::sleep_for(300ms);
  EXPECT_FALSE(stranger.done());
  expect_that_the_group_forms();
  EXPECT_FALSE(stranger.done());
  stranger.cancel();
  EXPECT_EQ(stranger.code(), ErrorCode::kAborted);
}

TEST_F(StrangerTest, RunningGroupIsNotHarmed) {
  Joiner one(make_config(2, 1, port()), quick());
  ASSERT_TRUE(leader_.result().ok()) << leader_.error();
  ASSERT_TRUE(one.result().ok()) << one.error();
  Group& a = **leader_.result();
  Group& b = **one.result();
  {
    RawClient http(port()), noise(port());
    http.write("GET / HTTP/1.1\r\n\r\n");
    EXPECT_TRUE(http.read_to_end().starts_with("HTTP/1.0 400 "));
    noise.write(std::string(100000, 'x'));
    noise.read_to_end();
    // Nodes of another group, and of this one, which is complete, whatever their values.
    RawClient stranger(port());
    const Status refused =
        open_as_client(stranger.fd(), Purpose::kControl, control_key("", config_.dist_init_addr),
                       Clock::now() + kHang, kNever);
    ASSERT_FALSE(refused.ok());
    EXPECT_TRUE(contains(refused.error().message, "CAPSTAN_GROUP_TOKEN"))
        << refused.error().message;
    GroupConfig other = make_config(2, 1, port());
    other.facts.clear();
    Frame answer;
    const ControlLink late = join_by_hand(other, "late", &answer);
    Refusal refusal;
    ASSERT_TRUE(answer.type == MessageType::kRefuse && decode(answer.body, refusal));
    EXPECT_TRUE(refusal.retry);
    EXPECT_TRUE(contains(refusal.what, "is complete and at work, with host " + host_name()))
        << refusal.what;
  }
  EXPECT_FALSE(a.ended(nullptr));
  expect_that_it_works(a, b);
  a.release();
}

TEST_F(StrangerTest, AnotherProtocolOfTheSameGroupIsNamedOnBothSides) {
  RawClient client(port());
  const HelloBytes hello = encode_hello({2, "0.2.0", Purpose::kControl, random_digest()});
  client.write(std::string(hello.data(), hello.size()));
  HelloBytes server{};
  Digest proof{};
  ASSERT_TRUE(
      read_all(client.fd(), server.data(), server.size(), Clock::now() + kHang, kNever).ok());
  ASSERT_TRUE(read_all(client.fd(), proof.data(), proof.size(), Clock::now() + kHang, kNever).ok());
  ASSERT_TRUE(equal(proof, server_proof(key_of(config_), hello, server)));
  client.write(std::string(view(client_proof(key_of(config_), hello, server))));
  EXPECT_EQ(leader_.code(), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(contains(leader_.error(), "is Capstan 0.2.0 with protocol 2, here it is " +
                                            std::string(own_version()) + " with protocol 1"))
      << leader_.error();
}

TEST_F(StrangerTest, AnotherProtocolOfAStrangerIsOnlyRefused) {
  RawClient client(port());
  const HelloBytes hello = encode_hello({2, "0.2.0", Purpose::kControl, random_digest()});
  client.write(std::string(hello.data(), hello.size()) + std::string(32, 'p'));
  client.read_to_end();
  expect_that_the_group_forms();
}

/// What a member meets at the address of its leader.
class ImpostorTest : public ::testing::Test {
 protected:
  ImpostorTest() : listener_(listen_on(nullptr, 0).value()) {
    port_ = local_address(listener_.get()).port();
  }
  Fd accept_one() {
    EXPECT_TRUE(wait_for(listener_.get(), POLLIN, Clock::now() + kHang, kNever).ok());
    return Fd(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  }
  /// The impostor goes, and the leader comes up at its port.
  void expect_that_the_leader_is_found(Joiner& member) {
    listener_.reset();
    Joiner leader(make_config(2, 0, port_), quick());
    ASSERT_TRUE(leader.result().ok()) << leader.error();
    ASSERT_TRUE(member.result().ok()) << member.error();
    (*leader.result())->release();
  }

  Fd listener_;
  uint16_t port_ = 0;
};

TEST_F(ImpostorTest, PeerThatHangsUpInTheOpeningIsTriedAgain) {
  Joiner member(make_config(2, 1, port_), quick());
  for (int i = 0; i < 3; ++i) accept_one();
  Fd fd = accept_one();
  char hello[kHelloSize];
  ASSERT_TRUE(read_all(fd.get(), hello, sizeof hello, Clock::now() + kHang, kNever).ok());
  (void)!send(fd.get(), hello, 40, MSG_NOSIGNAL);
  fd.reset();
  EXPECT_FALSE(member.done());
  expect_that_the_leader_is_found(member);
}

TEST_F(ImpostorTest, SilentPeerIsGivenUpAndTriedAgain) {
  GroupTiming timing = quick();
  timing.opening = 200ms;
  Joiner member(make_config(2, 1, port_), timing);
  Fd first = accept_one(), second = accept_one();  // the second attempt shows that it gave up
  EXPECT_FALSE(member.done());
  expect_that_the_leader_is_found(member);
}

TEST_F(ImpostorTest, ServerThatDoesNotKnowTheSecretLearnsNothing) {
  Joiner member(make_config(2, 1, port_), quick());
  Fd fd = accept_one();
  HelloBytes hello{};
  ASSERT_TRUE(read_all(fd.get(), hello.data(), hello.size(), Clock::now() + kHang, kNever).ok());
  // Its own greeting back, with a proof that it cannot have.
  const std::string reply = std::string(hello.data(), hello.size()) + std::string(32, 'p');
  (void)!send(fd.get(), reply.data(), reply.size(), MSG_NOSIGNAL);
  char more = 0;
  EXPECT_FALSE(read_all(fd.get(), &more, 1, Clock::now() + kHang, kNever).ok());
  expect_that_the_leader_is_found(member);
}

TEST_F(ImpostorTest, OtherProgramIsTakenForWhatItIs) {
  GroupConfig config = make_config(2, 1, port_);
  config.dist_timeout = std::chrono::seconds(1);
  Joiner member(config, quick());
  Fd fd = accept_one();
  const std::string banner = "SSH-2.0-OpenSSH_9.2p1 Debian-2 " + std::string(100, ' ');
  (void)!send(fd.get(), banner.data(), banner.size(), MSG_NOSIGNAL);
  char hello[kHelloSize];
  (void)read_all(fd.get(), hello, sizeof hello, Clock::now() + kHang, kNever);
  listener_.reset();
  EXPECT_EQ(member.code(), ErrorCode::kUnavailable);
}

TEST(OpeningTest, LinkOfAnEarlierIncarnationIsRefused) {
  const std::string control = control_key("secret", "a:1");
  EXPECT_NE(link_key(control, "session 1"), link_key(control, "session 2"));
  EXPECT_NE(link_key(control, "session 1"), control);
  EXPECT_NE(control_key("", "a:1"), control_key("a:1", ""));
  Acceptor acceptor(listen_on(nullptr, 0).value(), Purpose::kLink, link_key(control, "session 2"),
                    {});
  for (const std::string session : {"session 1", "session 2"}) {
    RawClient client(acceptor.port());
    std::atomic<bool> over{false};
    Status status;
    std::thread opener([&] {
      status = open_as_client(client.fd(), Purpose::kLink, link_key(control, session),
                              Clock::now() + kHang, kNever);
      over = true;
    });
    while (!over) {
      EXPECT_TRUE(acceptor.advance(Clock::now()).empty());
      std::this_thread::sleep_for(1ms);
    }
    opener.join();
    EXPECT_EQ(status.ok(), session == "session 2");
    if (!status.ok()) {
      EXPECT_TRUE(contains(status.error().message, "another incarnation"));
    }
  }
}

TEST(OpeningTest, WithoutDescriptorsTheAcceptorPausesAndGoesOnLater) {
#if defined(__SANITIZE_ADDRESS__)
  // UBSan looks at memory through a pipe before it follows a pointer to an object, and takes the
  // object for broken when it gets none.
  GTEST_SKIP() << "needs a program that needs no descriptors";
#endif
  Acceptor acceptor(listen_on(nullptr, 0).value(), Purpose::kControl, "key", {});
  RawClient client(acceptor.port());
  const HelloBytes hello = encode_hello({1, "0.1.0", Purpose::kControl, random_digest()});
  client.write(std::string(hello.data(), hello.size()));
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none{0, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const TimePoint now = Clock::now() + 1h;  // pauses end in its future, not in ours
  EXPECT_TRUE(acceptor.advance(now).empty());
  std::vector<pollfd> watched;
  acceptor.collect(watched);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  // The listener stays readable: whoever polls it now would spin.
  EXPECT_TRUE(watched.empty());
  EXPECT_EQ(acceptor.next(now), now + 100ms);
  (void)acceptor.advance(now + 101ms);
  acceptor.collect(watched);
  ASSERT_EQ(watched.size(), 1u);  // the client; the pause of the listener is over by `now` only
  char answer = 0;
  EXPECT_TRUE(wait_until([&] {
    (void)acceptor.advance(now + 102ms);
    return recv(client.fd(), &answer, 1, MSG_DONTWAIT) == 1;
  }));
  EXPECT_EQ(answer, 'C');
}

TEST(OpeningTest, ClientNamesAnotherProtocolOfAServerThatKnowsTheSecret) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  Fd mine(fds[0]), theirs(fds[1]);
  std::thread server([&] {
    HelloBytes client{};
    ASSERT_TRUE(
        read_all(theirs.get(), client.data(), client.size(), Clock::now() + kHang, kNever).ok());
    const HelloBytes hello = encode_hello({2, "0.2.0", Purpose::kControl, random_digest()});
    const Digest proof = server_proof("key", client, hello);
    const std::string reply = std::string(hello.data(), hello.size()) + std::string(view(proof));
    (void)!send(theirs.get(), reply.data(), reply.size(), MSG_NOSIGNAL);
    Digest answer{};
    ASSERT_TRUE(
        read_all(theirs.get(), answer.data(), answer.size(), Clock::now() + kHang, kNever).ok());
    EXPECT_TRUE(equal(answer, client_proof("key", client, hello)));
  });
  const Status status =
      open_as_client(mine.get(), Purpose::kControl, "key", Clock::now() + kHang, kNever);
  server.join();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kInvalidArgument);
  EXPECT_TRUE(contains(status.error().message, "Capstan 0.2.0 with protocol 2, here it is"));
}

}  // namespace
}  // namespace capstan::comm::testing
