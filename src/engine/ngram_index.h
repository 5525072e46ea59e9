// Finds where the end of a text occurred before in the same text.
//
// As a compressor of the LZ77 family does: positions are chained by a hash of the last few tokens,
// newest first, and the first kLooks of a chain are compared. Two chains: five tokens, for code and
// quotations, whose short sequences repeat everywhere; and two. The place that was right last time
// is tried too, however far down its chain. append() is O(1) amortised, find() O(1).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace capstan::engine {

class NgramIndex {
 public:
  static constexpr int kShortest = 2;  // tokens of a match
  static constexpr int kLongest = 32;  // longer matches count as this

  void append(int32_t token);
  /// Writes into `out` (resized) up to `most` tokens that followed the longest earlier occurrence
  /// of the text's end, the latest of equal ones; a repetition that runs into the end of the text
  /// is continued. Returns the length of the match; 0 without one.
  int find(int most, std::vector<int32_t>& out);
  int64_t size() const { return static_cast<int64_t>(text_.size()); }

 private:
  static constexpr int kLooks = 16;

  /// Positions whose last `order` tokens have the same hash.
  struct Chain {
    int order;
    std::vector<int32_t> newest = {};  // by hash; -1: none
    std::vector<int32_t> before = {};  // by position
  };

  uint64_t hash(int order, int64_t end) const;
  void link(Chain& chain, int64_t end);
  int common(int64_t end) const;
  void look(const Chain& chain, int& length, int64_t& best) const;

  std::vector<int32_t> text_;
  Chain long_{5}, short_{kShortest};
  int64_t follows_ = -1;  // the position that the text's end repeats, by the last find(); -1: none
};

}  // namespace capstan::engine
