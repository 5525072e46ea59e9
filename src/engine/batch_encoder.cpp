#include <algorithm>
#include <cstring>
#include <string>

#include "engine/batch_message.h"
#include "engine/batch_wire.h"

namespace capstan::engine {
namespace {

using namespace wire;

/// How the rows can be told without listing them.
int mode_of(std::span<const int32_t> rows, const model::ForwardBatch& batch) {
  if (rows.empty()) return kNoRows;
  if (rows.size() == batch.tokens.size()) return kAllRows;  // ascending and distinct
  if (rows.size() != batch.sequences.size()) return kListedRows;
  for (size_t i = 0; i < rows.size(); ++i) {
    const kernels::SequenceSlice& s = batch.sequences[i];
    if (rows[i] != s.q_begin + s.q_len - 1) return kListedRows;
  }
  return kLastRows;
}

}  // namespace

void BatchEncoder::reserve(size_t bytes) {
  if (out_.size() < used_ + bytes) out_.resize((used_ + bytes) * 2);
}

void BatchEncoder::put_varint(uint64_t value) {
  while (value >= 0x80) {
    out_[used_++] = static_cast<std::byte>(value | 0x80);
    value >>= 7;
  }
  out_[used_++] = static_cast<std::byte>(value);
}

void BatchEncoder::put_zigzag(int64_t value) {
  put_varint((static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63));
}

void BatchEncoder::header(BatchKind kind, uint8_t modes) {
  used_ = 0;
  reserve(64);
  ++number_;
  out_[0] = std::byte{kMagic};
  out_[1] = std::byte{kVersion};
  out_[2] = static_cast<std::byte>(kind);
  out_[3] = static_cast<std::byte>(modes);
  for (int i = 0; i < 4; ++i) out_[4 + static_cast<size_t>(i)] = std::byte(number_ >> (8 * i));
  used_ = kHeaderBytes;
}

std::span<const std::byte> BatchEncoder::encode_stop() {
  header(BatchKind::kStop, 0);
  return std::span(out_).first(used_);
}

/// A mirror for a sequence not known: a forgotten one if the next few are, else a new one.
int BatchEncoder::take_mirror(uint64_t id) {
  constexpr int kLooks = 8;
  for (int look = 0; look < kLooks && !mirrors_.empty(); ++look) {
    cursor_ = (cursor_ + 1) % mirrors_.size();
    PageMirror& mirror = mirrors_[cursor_];
    if (number_ - mirror.last_seen <= kForgetAfter) continue;
    by_id_.erase(ids_[cursor_]);
    mirror.pages.clear();
    mirror.kv_len = 0;
    ids_[cursor_] = id;
    by_id_[id] = static_cast<int32_t>(cursor_);
    return static_cast<int>(cursor_);
  }
  mirrors_.emplace_back();
  ids_.push_back(id);
  const auto index = static_cast<int32_t>(mirrors_.size()) - 1;
  by_id_[id] = index;
  return index;
}

int BatchEncoder::find(uint64_t id, bool* fresh) {
  *fresh = false;
  const int32_t guess = previous_ < 0 ? first_ : mirrors_[static_cast<size_t>(previous_)].follower;
  if (guess >= 0 && ids_[static_cast<size_t>(guess)] == id) return guess;
  if (const auto found = by_id_.find(id); found != by_id_.end()) return found->second;
  *fresh = true;
  return take_mirror(id);
}

Status BatchEncoder::put_sequence(const model::ForwardBatch& batch, size_t index) {
  const kernels::SequenceSlice& s = batch.sequences[index];
  const int32_t start = s.kv_len - s.q_len;
  if (s.q_len < 1 || start < 0) {
    return internal_error("sequence " + std::to_string(index) + " of a step has " +
                          std::to_string(s.q_len) + " queries and " + std::to_string(s.kv_len) +
                          " keys");
  }
  const auto needed = static_cast<size_t>((s.kv_len + page_size_ - 1) / page_size_);
  const bool loose = batch.sequence_ids.empty();
  static const PageMirror kNothing;
  bool fresh = false;
  const int at = loose ? -1 : find(batch.sequence_ids[index], &fresh);
  const PageMirror& known = loose ? kNothing : mirrors_[static_cast<size_t>(at)];
  if (!loose && !fresh && known.last_seen == number_) {
    return internal_error("sequence " + std::to_string(batch.sequence_ids[index]) +
                          " is twice in a step");
  }
  const size_t common = std::min(needed, known.pages.size());
  size_t kept = common;
  if (common > 0 && std::memcmp(known.pages.data(), s.pages, common * sizeof(int32_t)) != 0) {
    kept = static_cast<size_t>(std::mismatch(s.pages, s.pages + common, known.pages.begin()).first -
                               s.pages);
  }
  const int32_t guess = previous_ < 0 ? first_ : mirrors_[static_cast<size_t>(previous_)].follower;
  uint8_t flags = 0;
  if (loose) flags |= kLoose;
  if (!loose && at == guess) flags |= kFollows;
  if (fresh) flags |= kFresh;
  if (s.q_len == 1) flags |= kOneQuery;
  if (start == known.kv_len) flags |= kContinues;
  if (kept == needed) flags |= kSamePages;
  if (kept < needed && kept == known.pages.size()) flags |= kAppends;

  reserve(32 + (needed - kept) * 6);
  out_[used_++] = std::byte{flags};
  if (!loose && at != guess) put_varint(static_cast<uint64_t>(at));
  if (s.q_len != 1) put_varint(static_cast<uint64_t>(s.q_len));
  if (start != known.kv_len) put_varint(static_cast<uint64_t>(start));
  if (kept < needed) {
    if (kept != known.pages.size()) put_varint(kept);
    int64_t before = kept > 0 ? s.pages[kept - 1] : 0;
    for (size_t i = kept; i < needed; ++i) {
      put_zigzag(s.pages[i] - before);
      before = s.pages[i];
    }
  }
  if (loose) return {};
  PageMirror& mirror = mirrors_[static_cast<size_t>(at)];
  if (kept < needed) {
    mirror.pages.resize(kept);
    mirror.pages.insert(mirror.pages.end(), s.pages + kept, s.pages + needed);
  }
  mirror.kv_len = s.kv_len;
  mirror.last_seen = number_;
  (previous_ < 0 ? first_ : mirrors_[static_cast<size_t>(previous_)].follower) = at;
  previous_ = at;
  return {};
}

void BatchEncoder::put_rows(std::span<const int32_t> rows) {
  reserve(10 + rows.size() * 5);
  put_varint(rows.size());
  int32_t before = -1;
  for (const int32_t row : rows) {
    put_varint(static_cast<uint64_t>(row - before - 1));
    before = row;
  }
}

/// Sequences of each group; the last has what is left.
void BatchEncoder::put_groups(std::span<const int32_t> groups) {
  reserve(10 + groups.size() * 5);
  put_varint(groups.size() - 1);
  for (size_t g = 1; g + 1 < groups.size(); ++g) {
    put_varint(static_cast<uint64_t>(groups[g] - groups[g - 1]));
  }
}

/// After a batch that was not sent: the receiver has not seen what its half-written message
/// changed.
void BatchEncoder::forget() {
  mirrors_.clear();
  ids_.clear();
  by_id_.clear();
  first_ = -1;
  cursor_ = 0;
  --number_;
}

Result<std::span<const std::byte>> BatchEncoder::encode(const model::ForwardBatch& batch,
                                                        BatchKind kind) {
  if (!batch.sequence_ids.empty() && batch.sequence_ids.size() != batch.sequences.size()) {
    return internal_error("a step has " + std::to_string(batch.sequences.size()) +
                          " sequences and " + std::to_string(batch.sequence_ids.size()) + " ids");
  }
  if (Status status = put_batch(batch, kind); !status.ok()) {
    forget();
    return status.error();
  }
  return std::span<const std::byte>(out_).first(used_);
}

Status BatchEncoder::put_batch(const model::ForwardBatch& batch, BatchKind kind) {
  const int logits = mode_of(batch.logit_rows, batch), hidden = mode_of(batch.hidden_rows, batch);
  const bool grouped = !batch.groups.empty();
  header(kind, static_cast<uint8_t>(logits | hidden << 2 | (grouped ? kGrouped : 0)));
  put_varint(batch.sequences.size());
  previous_ = -1;
  size_t row = 0;
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const kernels::SequenceSlice& s = batch.sequences[i];
    CAPSTAN_RETURN_IF_ERROR(put_sequence(batch, i));
    // The receiver will work these out; a step for which that is wrong must not go.
    for (int32_t p = s.kv_len - s.q_len; p < s.kv_len; ++p, ++row) {
      const int64_t slot = int64_t{s.pages[p / page_size_]} * page_size_ + p % page_size_;
      if (row >= batch.tokens.size() || batch.positions[row] != p || batch.slots[row] != slot) {
        return internal_error("row " + std::to_string(row) +
                              " of a step does not lie where its sequence's pages say");
      }
    }
  }
  if (row != batch.tokens.size()) return internal_error("a step has rows of no sequence");
  reserve(batch.tokens.size() * 5);
  for (const int32_t token : batch.tokens) put_varint(static_cast<uint32_t>(token));
  if (logits == kListedRows) put_rows(batch.logit_rows);
  if (hidden == kListedRows) put_rows(batch.hidden_rows);
  if (grouped) put_groups(batch.groups);
  return {};
}

}  // namespace capstan::engine
