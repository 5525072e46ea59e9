// How often a request generated each token: sparse, since a request uses few of the vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace capstan::engine {

class TokenCounts {
 public:
  struct Entry {
    int32_t token;
    int32_t count;
  };

  void add(int32_t token) {
    const auto [it, inserted] = index_.try_emplace(token, static_cast<int32_t>(entries_.size()));
    if (inserted) {
      entries_.push_back({token, 1});
    } else {
      ++entries_[static_cast<size_t>(it->second)].count;
    }
  }
  bool contains(int32_t token) const { return index_.contains(token); }
  /// Distinct tokens in order of first appearance.
  std::span<const Entry> entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
  std::unordered_map<int32_t, int32_t> index_;  // token -> position in entries_
};

}  // namespace capstan::engine
