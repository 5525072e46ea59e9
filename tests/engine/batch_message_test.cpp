// The message of a step: whatever the scheduler does to its batches, the receiver sees the same.
#include "engine/batch_message.h"

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <numeric>
#include <random>

namespace capstan::engine {
namespace {

constexpr int kPageSize = 4, kPages = 4096;
constexpr int64_t kVocab = 1000;

/// A batch with its arrays.
struct Batch {
  std::vector<int32_t> tokens, positions, logit_rows, hidden_rows;
  std::vector<int64_t> slots;
  std::vector<kernels::SequenceSlice> sequences;
  std::vector<uint64_t> ids;
  std::vector<int32_t> groups;
  std::deque<std::vector<int32_t>> tables;

  void add(uint64_t id, int32_t start, int32_t count, std::vector<int32_t> pages,
           std::mt19937& rng) {
    tables.push_back(std::move(pages));
    const auto begin = static_cast<int32_t>(tokens.size());
    for (int32_t p = start; p < start + count; ++p) {
      tokens.push_back(static_cast<int32_t>(rng() % kVocab));
      positions.push_back(p);
      slots.push_back(int64_t{tables.back()[static_cast<size_t>(p / kPageSize)]} * kPageSize +
                      p % kPageSize);
    }
    sequences.push_back({begin, count, start + count, tables.back().data()});
    ids.push_back(id);
  }
  void last_rows() {
    for (const auto& s : sequences) logit_rows.push_back(s.q_begin + s.q_len - 1);
  }
  model::ForwardBatch view(bool with_ids = true) const {
    model::ForwardBatch b{tokens, positions, slots, sequences, logit_rows};
    b.hidden_rows = hidden_rows;
    if (with_ids) b.sequence_ids = ids;
    b.groups = groups;
    return b;
  }
};

std::vector<int32_t> pages(std::initializer_list<int32_t> p) { return p; }

template <class T>
std::vector<T> copy(std::span<const T> s) {
  return {s.begin(), s.end()};
}

void expect_same(const model::ForwardBatch& got, const model::ForwardBatch& sent) {
  EXPECT_EQ(copy(got.tokens), copy(sent.tokens));
  EXPECT_EQ(copy(got.positions), copy(sent.positions));
  EXPECT_EQ(copy(got.slots), copy(sent.slots));
  EXPECT_EQ(copy(got.logit_rows), copy(sent.logit_rows));
  EXPECT_EQ(copy(got.hidden_rows), copy(sent.hidden_rows));
  EXPECT_EQ(copy(got.groups), copy(sent.groups));
  ASSERT_EQ(got.sequences.size(), sent.sequences.size());
  for (size_t i = 0; i < sent.sequences.size(); ++i) {
    const auto &g = got.sequences[i], &s = sent.sequences[i];
    EXPECT_EQ(g.q_begin, s.q_begin);
    EXPECT_EQ(g.q_len, s.q_len);
    EXPECT_EQ(g.kv_len, s.kv_len);
    const int32_t needed = (s.kv_len + kPageSize - 1) / kPageSize;
    EXPECT_EQ(std::vector<int32_t>(g.pages, g.pages + needed),
              std::vector<int32_t>(s.pages, s.pages + needed))
        << "sequence " << i;
  }
}

struct Wire {
  BatchEncoder encoder{kPageSize};
  BatchDecoder decoder{{kPageSize, kPages, kVocab}};
  size_t bytes = 0;  // of the last message

  void pass(const model::ForwardBatch& batch, BatchKind kind = BatchKind::kForward) {
    const auto message = encoder.encode(batch, kind);
    ASSERT_TRUE(message.ok()) << message.error().message;
    bytes = message->size();
    const std::vector<std::byte> sent(message->begin(), message->end());
    const Status status = decoder.decode(sent);
    ASSERT_TRUE(status.ok()) << status.error().message;
    EXPECT_EQ(decoder.kind(), kind);
    expect_same(decoder.batch(), batch);
  }
};

TEST(BatchMessage, DecodeStepsCostAFewBytesPerSequence) {
  std::mt19937 rng(1);
  Wire wire;
  for (int step = 0; step < 40; ++step) {
    Batch b;
    for (int s = 0; s < 100; ++s) {
      std::vector<int32_t> table(30);
      std::iota(table.begin(), table.end(), s * 30);
      b.add(static_cast<uint64_t>(s) + 7, step == 0 ? 0 : 20 + step, step == 0 ? 21 : 1, table,
            rng);
    }
    b.last_rows();
    wire.pass(b.view());
    if (step > 1 && (21 + step) % kPageSize > 1) {
      EXPECT_LE(wire.bytes, 8u + 2 + 100 * 3);  // a flag byte and at most two of a token
    }
  }
  EXPECT_EQ(wire.encoder.mirrors(), 100u);
}

TEST(BatchMessage, PagesMayChangeInTheMiddle) {
  std::mt19937 rng(2);
  Wire wire;
  const std::vector<std::vector<int32_t>> tables = {
      pages({5, 6, 7, 8}),    pages({5, 9, 7, 8}), pages({5, 9, 7, 8}), pages({4, 9, 7, 8, 3}),
      pages({4, 9, 7, 8, 3}), pages({1}),          pages({1, 2, 3}),
  };
  for (const auto& table : tables) {
    Batch b;
    b.add(1, static_cast<int32_t>(table.size()) * kPageSize - 2, 2, table, rng);
    b.last_rows();
    wire.pass(b.view());
  }
}

TEST(BatchMessage, ShorterViewsKeepTheTable) {
  std::mt19937 rng(3);
  Wire wire;
  const auto table = pages({5, 6, 7, 8});
  for (const int32_t end : {16, 6, 16, 1, 13}) {
    Batch b;
    b.add(1, end - 1, 1, table, rng);
    wire.pass(b.view(), end == 6 ? BatchKind::kDraft : BatchKind::kForward);
    if (end != 16) {
      EXPECT_LE(wire.bytes, 8u + 1 + 4);
    }
  }
}

TEST(BatchMessage, SequencesWithoutIdsAreSentWhole) {
  std::mt19937 rng(4);
  Wire wire;
  for (int step = 0; step < 3; ++step) {
    Batch b;
    for (int s = 0; s < 5; ++s) b.add(0, 5, 3, pages({s, s + 1}), rng);
    b.hidden_rows = {0, 3, 14};
    wire.pass(b.view(false));
  }
  EXPECT_EQ(wire.encoder.mirrors(), 0u);
}

TEST(BatchMessage, ForgottenMirrorsAreTakenAgain) {
  std::mt19937 rng(5);
  Wire wire;
  for (uint64_t step = 0; step < 4000; ++step) {
    Batch b;
    b.add(step / 3, static_cast<int32_t>(step % 3), 1,
          pages({static_cast<int32_t>(step / 3 % kPages)}), rng);
    b.last_rows();
    wire.pass(b.view());
  }
  EXPECT_LT(wire.encoder.mirrors(), 200u) << "one sequence at a time, 3 steps each";
  Batch b;  // one forgotten comes back
  b.add(2, 9, 2, pages({9, 8, 7}), rng);
  wire.pass(b.view());
}

/// Sequences come, grow by chunks and tokens, lose drafts, are preempted, come back with other
/// pages, and end.
TEST(BatchMessage, RandomHistories) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::mt19937 rng(seed);
    Wire wire;
    struct Sequence {
      int32_t length = 0;
      std::vector<int32_t> pages;
    };
    std::map<uint64_t, Sequence> live;
    uint64_t next_id = 1;
    const auto any = [&](int n) { return static_cast<int>(rng() % static_cast<uint32_t>(n)); };
    for (int step = 0; step < 400; ++step) {
      if (any(4) == 0 || live.empty()) live[next_id++] = {};
      if (any(12) == 0) live.erase(live.begin());
      Batch b;
      for (auto& [id, s] : live) {
        if (any(10) == 0) continue;  // waits
        if (any(30) == 0) {          // preempted; back with less and elsewhere
          s.length = any(s.length + 1);
          for (int32_t& p : s.pages) p = any(kPages);
        }
        if (any(25) == 0 && !s.pages.empty())
          s.pages[static_cast<size_t>(any(static_cast<int>(s.pages.size())))] = any(kPages);
        if (any(8) == 0) s.length = std::max(0, s.length - any(4));  // drafts that did not hold
        const int count = any(3) == 0 ? 1 + any(40) : 1;
        while (static_cast<int>(s.pages.size()) * kPageSize < s.length + count) {
          s.pages.push_back(any(kPages));
        }
        b.add(id, s.length, count, s.pages, rng);
        s.length += count;
        if (s.length > 300) s.length = 0;
      }
      if (b.tokens.empty()) continue;
      const int rows = any(4);
      if (rows == 0) b.last_rows();
      for (int32_t r = 0; r < static_cast<int32_t>(b.tokens.size()); ++r) {
        if (rows == 1 && any(3) == 0) b.logit_rows.push_back(r);
        if (rows == 2) b.hidden_rows.push_back(r);
      }
      if (rows == 1) b.hidden_rows = b.logit_rows;
      if (any(3) == 0) {
        const auto sequences = static_cast<int32_t>(b.sequences.size());
        b.groups = {0, any(sequences + 1), any(sequences + 1), sequences};
        std::sort(b.groups.begin(), b.groups.end());
      }
      ASSERT_NO_FATAL_FAILURE(
          wire.pass(b.view(any(20) != 0), any(5) == 0 ? BatchKind::kDraft : BatchKind::kForward));
      if (any(15) == 0) {  // a batch that contradicts itself is refused, and the next goes through
        Batch wrong = b;
        wrong.slots.back() ^= 1;
        EXPECT_FALSE(wire.encoder.encode(wrong.view(), BatchKind::kForward).ok());
      }
    }
  }
}

TEST(BatchMessage, RefusesWhatTheReceiverCouldNotWorkOut) {
  std::mt19937 rng(6);
  BatchEncoder encoder(kPageSize);
  Batch b;
  b.add(1, 0, 3, pages({5}), rng);
  b.add(2, 0, 3, pages({6}), rng);
  Batch moved = b, twice = b, rowless = b;
  moved.positions[1] = 7;
  twice.ids[1] = 1;
  rowless.sequences.pop_back();
  rowless.ids.pop_back();
  for (const Batch* wrong : {&moved, &twice, &rowless}) {
    EXPECT_FALSE(encoder.encode(wrong->view(), BatchKind::kForward).ok());
  }
  BatchDecoder decoder({kPageSize, kPages, kVocab});
  const auto good = encoder.encode(b.view(), BatchKind::kForward);
  ASSERT_TRUE(good.ok());
  EXPECT_TRUE(decoder.decode(*good).ok());
}

TEST(BatchMessage, ErrorsNameTheField) {
  std::mt19937 rng(7);
  const auto complaint = [&](int num_pages, int64_t vocab, auto change) {
    BatchEncoder encoder(kPageSize);
    Batch b;
    b.add(1, 0, 7, pages({5, 60}), rng);
    b.tokens = {0, 1, 2, 900, 4, 5, 6};
    b.logit_rows = {1, 6};
    const auto message = encoder.encode(b.view(), BatchKind::kForward);
    std::vector<std::byte> bytes(message->begin(), message->end());
    change(bytes);
    BatchDecoder decoder({kPageSize, num_pages, vocab});
    const Status status = decoder.decode(bytes);
    EXPECT_FALSE(status.ok());
    return status.ok() ? "" : status.error().message;
  };
  const auto leave = [](auto&) {};
  using Bytes = std::vector<std::byte>&;
  const auto has = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(complaint(60, kVocab, leave), "page 1 of sequence 0 is 60; the cache has 60");
  has(complaint(kPages, 900, leave), "token 3 is 900");
  has(complaint(1, kVocab, leave), "the cache holds 4 tokens");
  has(complaint(kPages, kVocab, [](Bytes m) { m.resize(5); }), "5 bytes");
  has(complaint(kPages, kVocab, [](Bytes m) { m.pop_back(); }), "logit rows in 1 bytes");
  has(complaint(kPages, kVocab, [](Bytes m) { m.push_back({}); }), "left over");
  has(complaint(kPages, kVocab, [](Bytes m) { m.back() = std::byte{0x80}; }), "ends too early");
  has(complaint(kPages, kVocab, [](Bytes m) { m[0] = {}; }), "first byte");
  has(complaint(kPages, kVocab, [](Bytes m) { m[1] = std::byte{9}; }), "version 9");
  has(complaint(kPages, kVocab, [](Bytes m) { m[2] = std::byte{9}; }), "kind is 9");
  has(complaint(kPages, kVocab, [](Bytes m) { m[4] = std::byte{3}; }),
      "number 3 came instead of 1");
}

TEST(BatchMessage, StopIsAMessageOfItsOwn) {
  BatchEncoder encoder(kPageSize);
  BatchDecoder decoder({kPageSize, kPages, kVocab});
  ASSERT_TRUE(decoder.decode(encoder.encode_stop()).ok());
  EXPECT_EQ(decoder.kind(), BatchKind::kStop);
}

// Damaged messages end in an error or in a batch that is sound; never in a crash.
TEST(BatchMessage, DamageIsNoticedOrHarmless) {
  std::mt19937 rng(8);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 3000; ++round) {
    BatchEncoder encoder(kPageSize);
    BatchDecoder decoder({kPageSize, 300, kVocab});
    for (int step = 0; step < 3; ++step) {
      Batch b;
      for (int s = 0; s < 4; ++s) {
        b.add(static_cast<uint64_t>(s), step * 5, 5, pages({s * 50, s * 50 + 1, 9, 200 + step}),
              rng);
      }
      b.logit_rows = {3, 4, 9};
      const auto message = encoder.encode(b.view(), BatchKind::kForward);
      ASSERT_TRUE(message.ok());
      std::vector<std::byte> bytes(message->begin(), message->end());
      for (int hits = static_cast<int>(rng() % 3); hits >= 0; --hits) {
        const size_t at = rng() % bytes.size();
        if (rng() % 8 == 0) {
          bytes.resize(at + 1);
        } else {
          bytes[at] = static_cast<std::byte>(rng());
        }
      }
      if (!decoder.decode(bytes).ok()) {
        ++refused;
        break;
      }
      ++accepted;
      const model::ForwardBatch& got = decoder.batch();
      for (const int32_t t : got.tokens) ASSERT_LT(t, kVocab);
      for (const int64_t slot : got.slots) ASSERT_LT(slot, 300 * kPageSize);
      for (const auto& s : got.sequences) {
        for (int32_t p = 0; p < (s.kv_len + kPageSize - 1) / kPageSize; ++p) {
          ASSERT_GE(s.pages[p], 0);
          ASSERT_LT(s.pages[p], 300);
        }
      }
    }
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(accepted, 100);
}

}  // namespace
}  // namespace capstan::engine
