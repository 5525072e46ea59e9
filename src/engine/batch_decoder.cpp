#include <algorithm>
#include <string>

#include "engine/batch_message.h"
#include "engine/batch_wire.h"

namespace capstan::engine {

using namespace wire;

/// Bytes, front to back; after the end everything is 0 and ok() false.
class BatchDecoder::Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes)
      : at_(bytes.data()), end_(bytes.data() + bytes.size()) {}
  size_t left() const { return static_cast<size_t>(end_ - at_); }
  bool ok() const { return ok_; }
  uint8_t byte() {
    if (at_ == end_) return fail();
    return static_cast<uint8_t>(*at_++);
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t b = byte();
      value |= uint64_t{b & 0x7Fu} << shift;
      if (b < 0x80) return value;
    }
    return fail();
  }
  int64_t zigzag() {
    const uint64_t z = varint();
    return static_cast<int64_t>(z >> 1) ^ -static_cast<int64_t>(z & 1);
  }

 private:
  uint8_t fail() {
    ok_ = false;
    at_ = end_;
    return 0;
  }
  const std::byte* at_;
  const std::byte* end_;
  bool ok_ = true;
};

Error BatchDecoder::corrupt(const std::string& what) const {
  return data_loss("the message of a step (number " + std::to_string(number_) +
                   ") is not what rank 0 can have sent: " + what);
}

Status BatchDecoder::decode(std::span<const std::byte> message) {
  Reader in(message);
  batch_ = {};
  if (message.size() < kHeaderBytes) {
    return corrupt("it has " + std::to_string(message.size()) + " bytes");
  }
  if (const int magic = in.byte(); magic != kMagic)
    return corrupt("its first byte is " + std::to_string(magic));
  if (const int version = in.byte(); version != kVersion) {
    return corrupt("its format is version " + std::to_string(version) + ", this program's " +
                   std::to_string(kVersion));
  }
  const int kind = in.byte();
  if (kind < 1 || kind > 3) return corrupt("its kind is " + std::to_string(kind));
  kind_ = static_cast<BatchKind>(kind);
  const int modes = in.byte();
  if (modes >= 2 * kGrouped) return corrupt("its modes are " + std::to_string(modes));
  uint32_t number = 0;
  for (int i = 0; i < 4; ++i) number |= uint32_t{in.byte()} << (8 * i);
  if (number != number_ + 1) {
    return corrupt("number " + std::to_string(number) + " came instead of " +
                   std::to_string(number_ + 1));
  }
  number_ = number;
  if (kind_ != BatchKind::kStop) {
    CAPSTAN_RETURN_IF_ERROR(read_sequences(in));
    CAPSTAN_RETURN_IF_ERROR(read_tokens(in));
    CAPSTAN_RETURN_IF_ERROR(read_rows(in, "logit row", modes & 3, logit_rows_));
    CAPSTAN_RETURN_IF_ERROR(read_rows(in, "hidden row", modes >> 2 & 3, hidden_rows_));
    groups_.clear();
    if ((modes & kGrouped) != 0) CAPSTAN_RETURN_IF_ERROR(read_groups(in));
    batch_.tokens = tokens_;
    batch_.positions = positions_;
    batch_.slots = slots_;
    batch_.sequences = sequences_;
    batch_.logit_rows = logit_rows_;
    batch_.hidden_rows = hidden_rows_;
    batch_.groups = groups_;
  }
  if (!in.ok()) return corrupt("it ends too early");
  if (in.left() > 0) return corrupt(std::to_string(in.left()) + " bytes are left over");
  return {};
}

Status BatchDecoder::read_sequences(Reader& in) {
  const uint64_t count = in.varint();
  if (count > in.left()) {
    return corrupt(std::to_string(count) + " sequences in " + std::to_string(in.left()) + " bytes");
  }
  sequences_.clear();
  positions_.clear();
  slots_.clear();
  table_index_.clear();
  loose_ = 0;
  previous_ = -1;
  int64_t rows = 0;
  for (size_t i = 0; i < count; ++i) CAPSTAN_RETURN_IF_ERROR(read_sequence(in, i, &rows));
  // Tables may have moved while more of them were made; now they stay.
  positions_.resize(static_cast<size_t>(rows));
  slots_.resize(static_cast<size_t>(rows));
  size_t row = 0;
  for (size_t i = 0; i < count; ++i) {
    kernels::SequenceSlice& s = sequences_[i];
    const int32_t at = table_index_[i];
    s.pages = at >= 0 ? mirrors_[static_cast<size_t>(at)].pages.data()
                      : loose_pages_[static_cast<size_t>(~at)].data();
    for (int32_t p = s.kv_len - s.q_len; p < s.kv_len; ++p, ++row) {
      positions_[row] = p;
      slots_[row] =
          int64_t{s.pages[p / limits_.page_size]} * limits_.page_size + p % limits_.page_size;
    }
  }
  return {};
}

Status BatchDecoder::read_sequence(Reader& in, size_t index, int64_t* rows) {
  const std::string name = "sequence " + std::to_string(index);
  const uint8_t flags = in.byte();
  if (flags > kAllFlags) return corrupt(name + " has flags " + std::to_string(flags));
  const bool loose = (flags & kLoose) != 0;
  int32_t at = -1;
  if (!loose) {
    int64_t wanted = previous_ < 0 ? first_ : mirrors_[static_cast<size_t>(previous_)].follower;
    if ((flags & kFollows) == 0)
      wanted = static_cast<int64_t>(std::min<uint64_t>(in.varint(), INT32_MAX));
    const auto known = static_cast<int64_t>(mirrors_.size());
    const bool fresh = (flags & kFresh) != 0;
    if (wanted < 0 || wanted > known || (wanted == known && !fresh)) {
      return corrupt(name + " is number " + std::to_string(wanted) + " of " +
                     std::to_string(known) + " known ones");
    }
    if (wanted == known) mirrors_.emplace_back();
    at = static_cast<int32_t>(wanted);
    PageMirror& mirror = mirrors_[static_cast<size_t>(at)];
    if (mirror.last_seen == number_) return corrupt(name + " is there twice");
    if (fresh) {
      mirror.pages.clear();
      mirror.kv_len = 0;
    }
  } else {
    if (loose_ == loose_pages_.size()) loose_pages_.emplace_back();
    loose_pages_[loose_].clear();
    at = ~static_cast<int32_t>(loose_++);
  }
  std::vector<int32_t>& pages =
      at >= 0 ? mirrors_[static_cast<size_t>(at)].pages : loose_pages_[static_cast<size_t>(~at)];
  const int64_t before = at >= 0 ? mirrors_[static_cast<size_t>(at)].kv_len : 0;
  const uint64_t queries = (flags & kOneQuery) != 0 ? 1 : in.varint();
  const uint64_t start = (flags & kContinues) != 0 ? static_cast<uint64_t>(before) : in.varint();
  const int64_t capacity = int64_t{limits_.num_pages} * limits_.page_size;
  if (queries < 1 || queries > in.left() || start > static_cast<uint64_t>(capacity) ||
      queries > static_cast<uint64_t>(capacity) - start || start + queries > INT32_MAX) {
    return corrupt(name + " has " + std::to_string(queries) + " queries from position " +
                   std::to_string(start) + " on; the cache holds " + std::to_string(capacity) +
                   " tokens and " + std::to_string(in.left()) + " bytes follow");
  }
  const auto kv_len = static_cast<int32_t>(start + queries);
  const auto needed =
      static_cast<size_t>((int64_t{kv_len} + limits_.page_size - 1) / limits_.page_size);
  if ((flags & kSamePages) != 0) {
    if (needed > pages.size()) {
      return corrupt(name + " needs " + std::to_string(needed) + " pages and has " +
                     std::to_string(pages.size()));
    }
  } else {
    const uint64_t kept = (flags & kAppends) != 0 ? pages.size() : in.varint();
    if (kept > pages.size() || kept >= needed || needed - kept > in.left()) {
      return corrupt(name + " keeps " + std::to_string(kept) + " of " +
                     std::to_string(pages.size()) + " pages, needs " + std::to_string(needed) +
                     ", and " + std::to_string(in.left()) + " bytes follow");
    }
    CAPSTAN_RETURN_IF_ERROR(read_pages(in, index, kept, needed, pages));
  }
  sequences_.push_back(
      {static_cast<int32_t>(*rows), static_cast<int32_t>(queries), kv_len, nullptr});
  table_index_.push_back(at);
  *rows += static_cast<int64_t>(queries);
  if (*rows > static_cast<int64_t>(in.left())) {  // every row has a token to come
    return corrupt(std::to_string(*rows) + " rows, but " + std::to_string(in.left()) +
                   " bytes follow");
  }
  if (at < 0) return {};
  PageMirror& mirror = mirrors_[static_cast<size_t>(at)];
  mirror.kv_len = kv_len;
  mirror.last_seen = number_;
  (previous_ < 0 ? first_ : mirrors_[static_cast<size_t>(previous_)].follower) = at;
  previous_ = at;
  return {};
}

Status BatchDecoder::read_pages(Reader& in, size_t index, size_t kept, size_t needed,
                                std::vector<int32_t>& pages) {
  pages.resize(kept);
  int64_t page = kept > 0 ? pages[kept - 1] : 0;
  for (size_t i = kept; i < needed; ++i) {
    const int64_t difference = in.zigzag();
    // Pages are below 2^31, so a sum with anything of that size cannot overflow.
    const bool absurd = difference > INT32_MAX || difference < -int64_t{INT32_MAX};
    page = absurd ? -1 : page + difference;
    if (page < 0 || page >= limits_.num_pages) {
      return corrupt("page " + std::to_string(i) + " of sequence " + std::to_string(index) +
                     " is " + std::to_string(page) + "; the cache has " +
                     std::to_string(limits_.num_pages));
    }
    pages.push_back(static_cast<int32_t>(page));
  }
  return {};
}

Status BatchDecoder::read_tokens(Reader& in) {
  tokens_.resize(positions_.size());
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const uint64_t token = in.varint();
    if (token >= static_cast<uint64_t>(limits_.vocab_size)) {
      return corrupt("token " + std::to_string(i) + " is " + std::to_string(token) +
                     "; the vocabulary has " + std::to_string(limits_.vocab_size));
    }
    tokens_[i] = static_cast<int32_t>(token);
  }
  return {};
}

Status BatchDecoder::read_rows(Reader& in, const char* what, int mode, std::vector<int32_t>& rows) {
  rows.clear();
  const auto all = static_cast<int64_t>(tokens_.size());
  if (mode == kAllRows) {
    for (int32_t i = 0; i < all; ++i) rows.push_back(i);
  } else if (mode == kLastRows) {
    for (const kernels::SequenceSlice& s : sequences_) rows.push_back(s.q_begin + s.q_len - 1);
  } else if (mode == kListedRows) {
    const uint64_t count = in.varint();
    if (count > in.left()) {
      return corrupt(std::to_string(count) + " " + what + "s in " + std::to_string(in.left()) +
                     " bytes");
    }
    int64_t row = -1;
    for (uint64_t i = 0; i < count; ++i) {
      row += 1 + static_cast<int64_t>(std::min<uint64_t>(in.varint(), INT32_MAX));
      if (row >= all) {
        return corrupt(std::string(what) + " " + std::to_string(row) + " of " +
                       std::to_string(all));
      }
      rows.push_back(static_cast<int32_t>(row));
    }
  }
  return {};
}

Status BatchDecoder::read_groups(Reader& in) {
  const uint64_t count = in.varint();
  if (count < 1 || count > in.left() + 1) {
    return corrupt(std::to_string(count) + " groups of attention in " + std::to_string(in.left()) +
                   " bytes");
  }
  groups_.push_back(0);
  for (uint64_t g = 1; g < count; ++g) {
    const uint64_t sequences = in.varint();
    if (sequences > sequences_.size() - static_cast<size_t>(groups_.back())) {
      return corrupt("group " + std::to_string(g - 1) + " of attention has " +
                     std::to_string(sequences) + " of " + std::to_string(sequences_.size()) +
                     " sequences");
    }
    groups_.push_back(groups_.back() + static_cast<int32_t>(sequences));
  }
  groups_.push_back(static_cast<int32_t>(sequences_.size()));
  return {};
}

}  // namespace capstan::engine
