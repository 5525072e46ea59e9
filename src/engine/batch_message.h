// The message that starts a step: rank 0's batch, as the other ranks need it to run their shards.
//
// What the receiver can work out is not sent: positions and slots follow from lengths and page
// tables, and of a page table only what changed since the last message crosses the wire. Both sides
// keep the tables ("mirrors"); the sender compares every table with its mirror, so the receiver's
// is right however the scheduler came to change it. A decode step of 256 sequences takes about 1.1
// kB.
//
// Layout, little endian; v = LEB128 varint, z = zigzag varint:
//   u8 magic, u8 version, u8 kind, u8 modes, u32 number (one more than the message before)
//   v sequences, then for each: u8 flags, and what the flags leave open:
//     v mirror, v queries, v first position, v pages kept of the mirror, z per further page
//     (difference to the page before it)
//   v per token
//   v rows, v per row (difference to the row before), for logits and for hidden states, where their
//   mode is "listed"
//   with groups of attention: v groups, v sequences of each but the last
// kStop ends after the number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "model/model.h"

namespace capstan::engine {

enum class BatchKind : uint8_t { kForward = 1, kDraft = 2, kStop = 3 };

/// A sequence as one side believes the other to know it.
struct PageMirror {
  std::vector<int32_t> pages;
  int32_t kv_len = 0;      // after the last message that named it
  uint32_t last_seen = 0;  // that message's number
  int32_t follower = -1;   // the mirror named after it then
};

/// Rank 0's side. One message after the other, in the order in which they are sent.
class BatchEncoder {
 public:
  explicit BatchEncoder(int page_size) : page_size_(page_size) {}

  /// The message of a step; valid until the next call. Sequences without an id (ForwardBatch
  /// .sequence_ids is empty) are sent whole. kInternal when positions or slots are not those that
  /// follow from the page tables; the next batch may be sent all the same.
  Result<std::span<const std::byte>> encode(const model::ForwardBatch& batch, BatchKind kind);
  /// The message after which no other follows.
  std::span<const std::byte> encode_stop();

  uint32_t number() const { return number_; }  // of the last message
  size_t mirrors() const { return mirrors_.size(); }

 private:
  void header(BatchKind kind, uint8_t modes);
  Status put_batch(const model::ForwardBatch& batch, BatchKind kind);
  void forget();
  int find(uint64_t id, bool* fresh);
  int take_mirror(uint64_t id);
  Status put_sequence(const model::ForwardBatch& batch, size_t index);
  void put_rows(std::span<const int32_t> rows);
  void put_groups(std::span<const int32_t> groups);
  void put_varint(uint64_t value);
  void put_zigzag(int64_t value);
  void reserve(size_t bytes);

  const int page_size_;
  uint32_t number_ = 0;
  std::vector<PageMirror> mirrors_;
  std::vector<uint64_t> ids_;  // of each mirror
  std::unordered_map<uint64_t, int32_t> by_id_;
  int32_t first_ = -1;     // mirror named first in the last message
  int32_t previous_ = -1;  // mirror named last so far
  size_t cursor_ = 0;      // where the search for a forgotten mirror goes on
  std::vector<std::byte> out_;
  size_t used_ = 0;
};

/// What a message may ask for.
struct BatchLimits {
  int page_size = 0;
  int num_pages = 0;
  int64_t vocab_size = 0;
};

/// The receiver's side.
class BatchDecoder {
 public:
  explicit BatchDecoder(const BatchLimits& limits) : limits_(limits) {}

  /// kDataLoss for anything that is not the next message of the sender, naming the field; the
  /// decoder is of no use afterwards. Never reads or allocates beyond what the message's size
  /// warrants.
  Status decode(std::span<const std::byte> message);

  BatchKind kind() const { return kind_; }
  uint32_t number() const { return number_; }
  /// Arrays live until the next decode(); matrices are left empty.
  const model::ForwardBatch& batch() const { return batch_; }

 private:
  class Reader;
  Status read_sequences(Reader& in);
  Status read_sequence(Reader& in, size_t index, int64_t* rows);
  Status read_pages(Reader& in, size_t index, size_t kept, size_t needed,
                    std::vector<int32_t>& pages);
  Status read_tokens(Reader& in);
  Status read_rows(Reader& in, const char* what, int mode, std::vector<int32_t>& rows);
  Status read_groups(Reader& in);
  Error corrupt(const std::string& what) const;

  const BatchLimits limits_;
  BatchKind kind_ = BatchKind::kStop;
  uint32_t number_ = 0;
  std::vector<PageMirror> mirrors_;
  int32_t first_ = -1, previous_ = -1;
  std::vector<std::vector<int32_t>> loose_pages_;  // of sequences without a mirror
  size_t loose_ = 0;
  std::vector<int32_t> table_index_;  // >= 0: mirror, < 0: ~index into loose_pages_
  std::vector<int32_t> tokens_, positions_, logit_rows_, hidden_rows_, groups_;
  std::vector<int64_t> slots_;
  std::vector<kernels::SequenceSlice> sequences_;
  model::ForwardBatch batch_;
};

}  // namespace capstan::engine
