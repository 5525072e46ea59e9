// What a rank makes of messages through UCX that do not keep to the protocol, and of strangers.
#ifdef CAPSTAN_UCX_BUILT
#include "comm/ucx_peer.h"

#include "comm/ucx_mesh.h"

namespace capstan::comm::testing {
namespace {

using Sums = std::vector<float>;
const std::string kPeer = "rank 1 (node 1, host host1) sent ";

TEST_F(UcxPlayed, RightPiecesWork) {
  join();
  say(piece(0, 0));
  say(piece(1, 1));
  EXPECT_EQ(sum(), "");
  EXPECT_EQ(sum_, (Sums{2, 3, 4, 5}));
  EXPECT_EQ(sum(), "");
  // A frame in two pieces.
  say(piece(2, 2, 32));
  say(piece(3, 2, 32, 16));
  EXPECT_EQ(sum(8), "");
  EXPECT_EQ(sum_, (Sums{2, 3, 4, 5, 2, 3, 4, 5}));
}

// Secrets.

TEST(UcxSecret, OnlyWhoKnowsItIsListenedTo) {
  in_a_process([&] {
    UcxPeer server, stranger("1k"), member("1k");
    server.connect(1, member.address(), member.worker().secret());
    const std::vector<std::byte> bytes(64 << 10);
    for (const bool knows : {false, true}) {
      UcxPeer& client = knows ? member : stranger;
      client.connect(0, server.address(), server.worker().secret() ^ (knows ? 0 : 1));
      for (const uint32_t kind : {UcxHeader::kHello, UcxHeader::kData, UcxHeader::kCredit, 7u}) {
        UcxHeader header;
        header.kind = kind;
        header.node = 1;
        client.say(header);
        client.say(header, bytes.data(), 100);
        client.say(header, bytes.data(), bytes.size());  // answered when it has been looked at
      }
      ASSERT_TRUE(client.settle([&] { server.worker().progress(); }));
      if (!knows) {
        EXPECT_EQ(server.heard.size(), 0u);
        continue;
      }
      EXPECT_TRUE(wait_until([&] {
        client.worker().progress();
        server.worker().progress();
        return server.heard.size() == 12u;
      }));
    }
  });
}

TEST_F(UcxStrangers, AStrangerWithoutTheSecretDoesNotHarmARunningGroup) {
  play([&] {
    join();
    auto waiting = begin_sum();
    {
      UcxPeer stranger("1k");
      stranger.connect(0, address_, secret_ + 1);
      const std::vector<float> other(16 << 10, 9.0f);
      stranger.say(of_kind(UcxHeader::kHello));
      stranger.say(piece(0, 0), other.data(), 16);   // would be taken for the peer's
      stranger.say(piece(1, 99), other.data(), 16);  // would end the group, as all that follows
      UcxHeader credit = of_kind(UcxHeader::kCredit);
      credit.consumed = uint64_t{1} << 60;
      stranger.say(credit);
      for (uint64_t i = 0; i < 40; ++i) {
        stranger.say(piece(i, i, 64 << 10, 0, 5), other.data(), 64 << 10);
      }
      ASSERT_TRUE(stranger.settle());
    }  // goes without a word
    EXPECT_EQ(waiting.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
    say(piece(0, 0));
    EXPECT_EQ(end_of(std::move(waiting)), "");
    EXPECT_EQ(sum_, (Sums{2, 3, 4, 5}));
    // The secret is all that made the difference.
    UcxPeer knowing("1k");
    knowing.connect(0, address_, secret_);
    const float data[4] = {5, 6, 7, 8};
    knowing.say(piece(1, 1), data, sizeof(data));
    waiting = begin_sum();
    ASSERT_TRUE(knowing.settle());
    EXPECT_EQ(end_of(std::move(waiting)), "");
    EXPECT_EQ(sum_, (Sums{6, 7, 8, 9}));
  });
}

TEST_F(UcxStrangers, AGreetingWithoutTheSecretIsNoGreeting) {
  play([&] {
    UcxPeer stranger("1k");
    // All that node 0 lacks is node 1's greeting.
    ASSERT_TRUE(wait_until([&] {
      peer_->worker().progress();
      return !peer_->heard.empty();
    }));
    stranger.connect(0, address_, secret_ ^ (uint64_t{1} << 63));
    const std::vector<std::byte> bytes(64 << 10);
    stranger.say(of_kind(UcxHeader::kHello));
    stranger.say(of_kind(UcxHeader::kData), bytes.data(), bytes.size());
    ASSERT_TRUE(stranger.settle([&] { peer_->worker().progress(); }));
    // Node 0 still waits for node 1, and hears of its end.
    tell("enough", "");
    hear();
    EXPECT_EQ(error_, "node 1 (host host1): enough");
    const auto made = real_.get();
    ASSERT_FALSE(made.ok());
    EXPECT_EQ(made.error().message, "node 1 (host host1): enough");
  });
}

// Order.

TEST_F(UcxPlayed, AGapEndsTheGroupWithBothNumbers) {
  join();
  say(piece(0, 0));
  EXPECT_EQ(sum(), "");
  say(piece(1, 2));
  EXPECT_EQ(sum(), kPeer + "frame 2 where frame 1 was due");
}

TEST_F(UcxPlayed, AGapWithinAFrameEndsTheGroup) {
  join();
  say(piece(0, 0, 48));
  say(piece(1, 0, 48, 32));
  EXPECT_EQ(sum(12), kPeer + "byte 32 of frame 0 where byte 16 was due");
}

TEST_F(UcxPlayed, ARepeatedFrameEndsTheGroup) {
  join();
  say(piece(0, 0));
  EXPECT_EQ(sum(), "");
  say(piece(1, 0));
  EXPECT_EQ(sum(), kPeer + "frame 0 where frame 1 was due");
}

TEST_F(UcxPlayed, ARepeatedPieceEndsTheGroup) {
  join();
  say(piece(0, 0, 32));
  say(piece(1, 0, 32));
  EXPECT_EQ(sum(8), kPeer + "byte 0 of frame 0 where byte 16 was due");
}

TEST_F(UcxPlayed, ARepetitionOfWhatWaitsForItsTurnEndsTheGroup) {
  join();
  say(piece(1, 1));
  say(piece(2, 1));
  EXPECT_EQ(sum(), kPeer + "frame 1 where frame 0 was due");
}

TEST_F(UcxPlayed, OvertakingIsNoGap) {
  join();
  say(piece(2, 1, 32, 16), {7, 8, 9, 10});
  say(piece(1, 1, 32), {3, 4, 5, 6});
  ASSERT_TRUE(peer_->settle());
  auto waiting = begin_sum();
  say(piece(0, 0));
  EXPECT_EQ(end_of(std::move(waiting)), "");
  EXPECT_EQ(sum_, (Sums{2, 3, 4, 5}));
  EXPECT_EQ(sum(8), "");
  EXPECT_EQ(sum_, (Sums{4, 5, 6, 7, 8, 9, 10, 11}));
}

TEST_F(UcxPlayed, AFrameThatNeverComesEndsTheGroup) {
  join();
  say(piece(1, 1));  // number 0 was sent, and is lost
  EXPECT_EQ(sum(), kPeer + "frame 1 where frame 0 was due");
}

// Credit.

TEST_F(UcxPlayed, APeerMayUseAllItsCreditAndNotMore) {
  join();
  const std::vector<float> large(kUcxPieceBytes / 4);
  constexpr uint64_t kFit = kUcxWindow / (kUcxPieceBytes + kUcxPieceCost);
  auto waiting = begin_sum();
  for (uint64_t i = 0; i < kFit; ++i) say(piece(i, i, kUcxPieceBytes, 0, 77), large);
  say(piece(0, 0));
  ASSERT_EQ(end_of(std::move(waiting)), "");
  waiting = begin_sum();
  say(piece(kFit, kFit, kUcxPieceBytes, 0, 77), large);
  EXPECT_EQ(end_of(std::move(waiting)),
            kPeer + std::to_string((kFit + 1) * (kUcxPieceBytes + kUcxPieceCost)) +
                " bytes ahead of what was taken from it, where its credit is 2097152");
}

TEST_F(UcxPlayed, EmptyFramesCostCreditToo) {
  join();
  auto waiting = begin_sum();
  for (uint64_t i = 0; i <= kUcxWindow / kUcxPieceCost; ++i) say(piece(i, i, 0, 0, 77), {});
  EXPECT_EQ(end_of(std::move(waiting)),
            kPeer + "2097408 bytes ahead of what was taken from it, where its credit is 2097152");
}

TEST_F(UcxPlayed, ChannelsThatNobodyOpensAreBounded) {
  join();
  auto waiting = begin_sum();
  for (uint64_t i = 1; i <= kUcxUnknownChannels; ++i) say(piece(0, 0, 16, 0, i));
  say(piece(0, 0));
  ASSERT_EQ(end_of(std::move(waiting)), "");
  waiting = begin_sum();
  say(piece(0, 0, 16, 0, kUcxUnknownChannels + 1));
  EXPECT_EQ(end_of(std::move(waiting)),
            kPeer + "frames of more than 256 groups that do not exist here");
}

TEST_F(UcxPlayed, CreditForWhatWasNeverSentEndsTheGroup) {
  join();
  say(piece(0, 0));
  EXPECT_EQ(sum(), "");  // 16 bytes and the cost of a piece went out
  UcxHeader credit = of_kind(UcxHeader::kCredit);
  credit.consumed = 1000;
  auto waiting = begin_sum();
  peer_->say(credit);
  EXPECT_TRUE(contains(end_of(std::move(waiting)), kPeer + "credit for 1000 bytes, of "));
}

TEST_F(UcxPlayed, AKindThatDoesNotExistEndsTheGroup) {
  join();
  auto waiting = begin_sum();
  peer_->say(of_kind(99));
  EXPECT_EQ(end_of(std::move(waiting)),
            kPeer + "a message of kind 99 with 0 bytes, which is nothing");
}

}  // namespace
}  // namespace capstan::comm::testing
#endif
