// What a rank says of a node that does not keep to the protocol, and of links that do not fit.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <chrono>

#include "comm/fabric.h"
#include "comm/socket_mesh.h"

namespace capstan::comm {
namespace {

using namespace std::chrono_literals;

/// A group of two whose second node is played by the test, byte by byte.
class Impostor : public testing::Test {
 protected:
  void SetUp() override {
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    // A real node does the handshake, and from then on nothing.
    fd_ = dup(fds[1]);
    std::thread peer([&] {
      auto other = make_group({2, 1, 1, ""}, {{0, fds[1], "a"}});
      ASSERT_TRUE(other.ok());
      silent_ = std::move((*other)[0]);
    });
    auto made = make_group({2, 0, 1, ""}, {{1, fds[0], "b"}});
    peer.join();
    ASSERT_TRUE(made.ok());
    rank_ = std::move((*made)[0]);
  }
  void TearDown() override { close(fd_); }
  void say(const FrameHeader& header, const std::vector<float>& payload) {
    ASSERT_EQ(write(fd_, &header, sizeof(header)), static_cast<ssize_t>(sizeof(header)));
    ASSERT_EQ(write(fd_, payload.data(), payload.size() * 4),
              static_cast<ssize_t>(payload.size() * 4));
  }
  std::string sum_error() {
    std::vector<float> data(4, 1.0f);
    const Status s = rank_->all_reduce(data.data(), 4, DType::kF32);
    if (s.ok()) return "";
    EXPECT_EQ(s.error().code, ErrorCode::kUnavailable);
    return s.error().message;
  }
  FrameHeader header(uint64_t sequence, uint64_t length) const {
    FrameHeader h;
    h.sequence = sequence;
    h.length = length;
    return h;
  }

  int fd_ = -1;
  std::unique_ptr<Communicator> silent_;
  std::unique_ptr<Communicator> rank_;
};

TEST_F(Impostor, RightFramesWork) {
  say(header(0, 16), {1, 2, 3, 4});
  say(header(1, 16), {1, 2, 3, 4});
  EXPECT_EQ(sum_error(), "");
  EXPECT_EQ(sum_error(), "");
}

TEST_F(Impostor, ALargeFrameThatCameTooEarlyIsKeptAndAddedInPieces) {
  // Its head is read together with the small frame before it, when nobody waits for it yet.
  const int64_t count = (3 << 20) / 4 + 5;
  std::vector<float> theirs(count), mine(count);
  for (int64_t i = 0; i < count; ++i) {
    theirs[i] = static_cast<float>(i);
    mine[i] = 0.5f;
  }
  std::vector<std::byte> stream;
  const auto put = [&](const void* data, size_t bytes) {
    const auto* p = static_cast<const std::byte*>(data);
    stream.insert(stream.end(), p, p + bytes);
  };
  const FrameHeader small = header(0, 16);
  const FrameHeader large = header(1, static_cast<uint64_t>(count) * 4);
  put(&small, sizeof(small));
  put(theirs.data(), 16);
  put(&large, sizeof(large));
  put(theirs.data(), theirs.size() * 4);
  std::thread talker([&] {
    for (size_t at = 0; at < stream.size();) {
      const ssize_t n = write(fd_, stream.data() + at, stream.size() - at);
      ASSERT_GT(n, 0);
      at += static_cast<size_t>(n);
    }
  });
  std::thread listener([&] {
    std::vector<std::byte> sink(1 << 16);
    for (size_t left = stream.size(); left > 0;) {
      const ssize_t n = ::read(fd_, sink.data(), std::min(left, sink.size()));
      ASSERT_GT(n, 0);
      left -= static_cast<size_t>(n);
    }
  });
  std::this_thread::sleep_for(5ms);  // both frames are in the socket
  EXPECT_EQ(sum_error(), "");
  const Status s = rank_->all_reduce(mine.data(), count, DType::kF32);
  talker.join();
  listener.join();
  ASSERT_TRUE(s.ok()) << s.error().message;
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) wrong += mine[i] != 0.5f + static_cast<float>(i);
  EXPECT_EQ(wrong, 0);
}

TEST_F(Impostor, WrongSequenceNumber) {
  say(header(0, 16), {1, 2, 3, 4});
  EXPECT_EQ(sum_error(), "");
  say(header(2, 16), {1, 2, 3, 4});
  EXPECT_EQ(sum_error(), "rank 1 (node 1, host b) sent frame 2 where frame 1 was due");
}

TEST_F(Impostor, WrongLength) {
  say(header(0, 12), {1, 2, 3});
  EXPECT_EQ(sum_error(),
            "rank 1 (node 1, host b) sent a frame of 12 bytes where 16 were due: the ranks do not "
            "call the same operation");
}

TEST_F(Impostor, NoFrameAtAll) {
  FrameHeader h = header(0, 16);
  h.magic = 0x0a0d0a0d48545450;
  say(h, {1, 2, 3, 4});
  EXPECT_EQ(sum_error(),
            "rank 1 (node 1, host b) sent bytes that are no frame: the connection is out of step");
}

TEST_F(Impostor, ALengthThatNobodyCanHoldIsNotAllocated) {
  FrameHeader h = header(0, uint64_t{1} << 60);
  h.channel = 12345;
  say(h, {});
  EXPECT_EQ(sum_error(),
            "rank 1 (node 1, host b) sent a frame of 1152921504606846976 bytes unasked");
}

TEST_F(Impostor, AHalfFrameAndTheEnd) {
  say(header(0, 16), {1, 2});
  shutdown(fd_, SHUT_WR);
  EXPECT_EQ(sum_error(), "rank 1 (node 1, host b): its connection was closed");
}

TEST(Groups, NodesThatDifferAreRefusedWithTheValues) {
  auto links = make_links(Way::kUnix, 2);
  std::thread other([&] {
    const auto made = make_group({2, 1, 2, ""}, std::move(links[1]));
    ASSERT_FALSE(made.ok());
    EXPECT_EQ(made.error().message,
              "node 0 (host host0) is set up for 2 nodes of 1 ranks, sockets, this node (1) for 2 "
              "nodes of 2 ranks, sockets");
  });
  const auto made = make_group({2, 0, 1, ""}, std::move(links[0]));
  other.join();
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(made.error().message,
            "node 1 (host host1) is set up for 2 nodes of 2 ranks, sockets, this node (0) for 2 "
            "nodes of 1 ranks, sockets");
}

TEST(Groups, LinksThatDoNotFitTheTopologyAreRefused) {
  auto links = make_links(Way::kUnix, 3);
  const auto two = make_group({2, 0, 1, ""}, links[0]);
  EXPECT_EQ(two.error().code, ErrorCode::kInvalidArgument);
  links[1].pop_back();
  const auto missing = make_group({3, 1, 1, ""}, links[1]);
  EXPECT_EQ(missing.error().message, "links of a group: 1 for 2 other nodes");
  for (const NodeLink& link : links[2]) close(link.fd);
}

TEST(Groups, ASegmentLeftByAnotherRunIsReplaced) {
  const std::string name = segment_name();
  const int stale = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  ASSERT_GE(stale, 0);
  ASSERT_EQ(ftruncate(stale, 1 << 20), 0);
  close(stale);
  auto links = make_links(Way::kUnix, 2);
  std::thread other([&] {
    auto made = make_group({2, 1, 1, name}, std::move(links[1]));
    ASSERT_TRUE(made.ok()) << made.error().message;
    EXPECT_TRUE((*made)[0]->barrier().ok());
  });
  auto made = make_group({2, 0, 1, name}, std::move(links[0]));
  ASSERT_TRUE(made.ok()) << made.error().message;
  EXPECT_TRUE((*made)[0]->barrier().ok());
  EXPECT_EQ((*made)[0]->transport(), "shared memory");
  other.join();
  EXPECT_LT(shm_open(name.c_str(), O_RDONLY, 0), 0);
}

TEST(Groups, ASegmentThatCannotBeMadeIsExplainedOnAllNodes) {
  const std::string name = "/no/such/place";
  auto links = make_links(Way::kUnix, 2);
  std::thread other([&] {
    const auto made = make_group({2, 1, 1, name}, std::move(links[1]));
    ASSERT_FALSE(made.ok());
    EXPECT_NE(made.error().message.find("node 0: cannot make the shared memory segment"),
              std::string::npos)
        << made.error().message;
  });
  const auto made = make_group({2, 0, 1, name}, std::move(links[0]));
  other.join();
  ASSERT_FALSE(made.ok());
  EXPECT_NE(made.error().message.find("--comm-transport tcp"), std::string::npos);
  EXPECT_NE(made.error().message.find("--shm-size"), std::string::npos);
}

}  // namespace
}  // namespace capstan::comm
