#include "engine/ngram_index.h"

#include <algorithm>
#include <utility>

namespace capstan::engine {

// Of the tokens (end - order, end].
uint64_t NgramIndex::hash(int order, int64_t end) const {
  uint64_t h = 0;
  for (int64_t p = end - order + 1; p <= end; ++p) {
    h = (h ^ static_cast<uint32_t>(text_[static_cast<size_t>(p)])) * 0x9E3779B97F4A7C15u;
    h ^= h >> 29;
  }
  return h;
}

void NgramIndex::link(Chain& chain, int64_t end) {
  int32_t before = -1;
  if (end + 1 >= chain.order) {
    int32_t& newest = chain.newest[hash(chain.order, end) & (chain.newest.size() - 1)];
    before = std::exchange(newest, static_cast<int32_t>(end));
  }
  chain.before.push_back(before);
}

void NgramIndex::append(int32_t token) {
  if (follows_ >= 0)
    follows_ = text_[static_cast<size_t>(follows_ + 1)] == token ? follows_ + 1 : -1;
  text_.push_back(token);
  for (Chain* chain : {&long_, &short_}) {
    if (text_.size() <= chain->newest.size()) {
      link(*chain, size() - 1);
      continue;
    }
    chain->newest.assign(std::max<size_t>(64, 2 * chain->newest.size()), -1);
    chain->before.clear();
    for (int64_t p = 0; p < size(); ++p) link(*chain, p);
  }
}

/// How many tokens up to position `end` equal those at the end of the text.
int NgramIndex::common(int64_t end) const {
  int n = 0;
  while (n < kLongest && n <= end &&
         text_[static_cast<size_t>(end - n)] == text_[static_cast<size_t>(size() - 1 - n)]) {
    ++n;
  }
  return n;
}

void NgramIndex::look(const Chain& chain, int& length, int64_t& best) const {
  int64_t p = chain.before[static_cast<size_t>(size() - 1)];
  for (int i = 0; i < kLooks && p >= 0 && length < kLongest; ++i) {
    if (const int n = common(p); n > length) {
      length = n;
      best = p;
    }
    p = chain.before[static_cast<size_t>(p)];
  }
}

int NgramIndex::find(int most, std::vector<int32_t>& out) {
  out.clear();
  if (text_.empty()) return 0;
  int length = 0;
  int64_t best = -1;
  look(long_, length, best);
  if (length == 0) look(short_, length, best);
  if (follows_ >= 0) {
    if (const int n = common(follows_); n > length) {
      length = n;
      best = follows_;
    }
  }
  follows_ = -1;
  if (length < kShortest) return 0;
  follows_ = best;
  for (int64_t i = 1; i <= most; ++i) {
    const int64_t p = best + i;
    out.push_back(p < size() ? text_[static_cast<size_t>(p)]
                             : out[static_cast<size_t>(p - size())]);
  }
  return length;
}

}  // namespace capstan::engine
