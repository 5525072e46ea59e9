// A node of a group over UCX that the test plays, message by message. Only where UCX is built in.
#pragma once

#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <csignal>
#include <cstring>
#include <future>

#include "comm/control_message.h"
#include "comm/fabric.h"
#include "comm/group_fixture.h"
#include "comm/socket_handshake.h"
#include "comm/ucx_worker.h"

namespace capstan::comm::testing {

/// Runs `body` in a process of its own. A worker to which strangers came is leaked (ucx_worker.h),
/// and in children of a process that has one UCX does not work: its thread is not there.
inline void in_a_process(const std::function<void()>& body) {
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() == parent) body();
    std::fflush(nullptr);
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

/// A worker of UCX, and all that comes to it.
class UcxPeer : public UcxHandler {
 public:
  explicit UcxPeer(const char* rendezvous_from = "inf") {
    setenv("UCX_TLS", "tcp", 1);
    setenv("UCX_RNDV_THRESH", rendezvous_from, 1);
    auto made = UcxWorker::make(2, "", this);
    EXPECT_TRUE(made.ok()) << made.error().message;
    worker_ = std::move(*made);
  }
  ~UcxPeer() override { worker_->close(std::chrono::seconds(2)); }

  UcxWorker& worker() { return *worker_; }
  std::string address() { return *worker_->address(); }
  void connect(int node, const std::string& address, uint64_t secret) {
    const Status s = worker_->connect(node, address, secret);
    EXPECT_TRUE(s.ok()) << s.error().message;
    to_ = node;
  }
  /// To the node that was connected last.
  void say(UcxHeader header, const void* data = nullptr, size_t bytes = 0) {
    std::unique_ptr<UcxPiece> piece = worker_->take_piece(bytes);
    if (bytes > 0) std::memcpy(piece->memory.data(), data, bytes);
    piece->bytes = bytes;
    piece->header = header;
    piece->node = to_;
    piece->outstanding = &outstanding_;
    worker_->post(std::move(piece));
  }
  /// Until UCX has let go of everything: for a rendezvous that is refused, until it is.
  bool settle(const std::function<void()>& meanwhile = {}) {
    const bool settled = wait_until([&] {
      worker_->progress();
      if (meanwhile) meanwhile();
      return outstanding_ == 0;
    });
    if (settled) worker_->set_wired();
    return settled;
  }

  std::vector<UcxHeader> heard;

 private:
  bool announced(const UcxHeader&, size_t) override { return true; }
  void arrived(const UcxHeader& header, const std::byte*, size_t) override {
    heard.push_back(header);
  }
  void posted_done(int, uint64_t) override {}
  void broken(int, const std::string&) override {}

  std::unique_ptr<UcxWorker> worker_;
  int to_ = -1;
  uint32_t outstanding_ = 0;
};

/// Rank 0 of two nodes is real, node 1 is played.
class UcxPlayed : public ::testing::Test {
 protected:
  void SetUp() override { begin(); }
  void TearDown() override { end(); }

  void begin() {
    links_ = make_links(Way::kUcx, 2);
    topologies_ = {topology_of({Way::kUcx, 2, 1}, 0, ""), topology_of({Way::kUcx, 2, 1}, 1, "")};
    peer_ = std::make_unique<UcxPeer>();
    real_ = std::async(std::launch::async,
                       [this, links = links_[0]] { return make_group(topologies_[0], links); });
    ASSERT_TRUE(greet(topologies_[1], links_[1]).ok());
    tell("", Writer().number(peer_->worker().secret()).text(peer_->address()).take());
    hear();
    Reader told(message_);
    secret_ = told.number();
    address_ = told.text();
    ASSERT_TRUE(told.done());
    peer_->connect(0, address_, secret_);
    tell("", "");
    hear();
  }
  void end() {
    rank_ = nullptr;
    if (!links_.empty()) close(link().fd);
    links_.clear();
    peer_ = nullptr;
  }

  const NodeLink& link() const { return links_[1][0]; }
  void tell(const std::string& error, const std::string& text) {
    EXPECT_TRUE(send_text(link(), Writer().text(error).text(text).take()).ok());
  }
  /// What node 0 says over the link: to `message_` and `error_`.
  void hear() {
    EXPECT_TRUE(wait_until([&] {
      peer_->worker().progress();
      pollfd fd{link().fd, POLLIN, 0};
      return poll(&fd, 1, 0) == 1;
    }));
    const std::string heard = receive_text(link()).value();
    Reader in(heard);
    error_ = in.text();
    message_ = in.text();
  }
  /// From the first message through UCX to the end of node 0's make_group().
  void join() {
    peer_->say(of_kind(UcxHeader::kHello));
    hear();
    EXPECT_EQ(error_, "");
    tell("", "");
    auto made = real_.get();
    ASSERT_TRUE(made.ok()) << made.error().message;
    rank_ = std::move((*made)[0]);
    peer_->worker().set_wired();
  }

  static UcxHeader of_kind(uint32_t kind) {
    UcxHeader header;
    header.kind = kind;
    header.node = 1;
    return header;
  }
  /// The next piece by `number`, of frame `sequence`.
  static UcxHeader piece(uint64_t number, uint64_t sequence, uint64_t length = 16,
                         uint64_t offset = 0, uint64_t channel = 0) {
    UcxHeader header = of_kind(UcxHeader::kData);
    header.channel = channel;
    header.number = number;
    header.sequence = sequence;
    header.length = length;
    header.offset = offset;
    return header;
  }
  void say(const UcxHeader& header, const std::vector<float>& data = {1, 2, 3, 4}) {
    peer_->say(header, data.data(), data.size() * 4);
  }

  /// Rank 0 adds `count` ones to what comes: its error, empty if none.
  std::future<std::string> begin_sum(size_t count = 4) {
    return std::async(std::launch::async, [this, count] {
      sum_.assign(count, 1.0f);
      const Status s = rank_->all_reduce(sum_.data(), static_cast<int64_t>(count), DType::kF32);
      return s.ok() ? std::string() : s.error().message;
    });
  }
  std::string end_of(std::future<std::string> sum) {
    EXPECT_TRUE(wait_until([&] {
      peer_->worker().progress();
      return sum.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
    }));
    return sum.get();
  }
  std::string sum(size_t count = 4) { return end_of(begin_sum(count)); }

  std::vector<std::vector<NodeLink>> links_;
  std::vector<Topology> topologies_;
  std::future<Result<std::vector<std::unique_ptr<Communicator>>>> real_;
  std::unique_ptr<UcxPeer> peer_;
  std::unique_ptr<Communicator> rank_;
  std::string address_, message_, error_;
  uint64_t secret_ = 0;
  std::vector<float> sum_;
};

/// The same, with strangers.
class UcxStrangers : public UcxPlayed {
 protected:
  void SetUp() override {}
  void TearDown() override {}
  void play(const std::function<void()>& body) {
    in_a_process([&] {
      begin();
      if (!HasFailure()) body();
      end();
    });
  }
};

}  // namespace capstan::comm::testing
