#include "cache/radix_tree.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <random>
#include <unordered_map>

namespace capstan::cache {
namespace {

using Tokens = std::vector<int32_t>;

/// A pool, a tree, and the two things a request does with them.
struct Fixture {
  Fixture(int pages, int page_size, EvictionPolicy policy = EvictionPolicy::kLru)
      : pool(pages, page_size), tree(pool, policy) {}

  RadixTree::Match peek(const Tokens& tokens, uint64_t ns = 0) const {
    return tree.peek(ns, tokens, 1 << 20);
  }
  /// As a request does: takes what is cached, computes the rest, leaves all whole pages. Returns
  /// the page table.
  std::vector<int32_t> put(const Tokens& tokens, uint64_t ns = 0) {
    std::vector<int32_t> table;
    RadixTree::Pin pin = tree.acquire(ns, tokens, 1 << 20, table);
    const int want = static_cast<int>(tokens.size()) / pool.page_size();
    const int missing = want - static_cast<int>(table.size());
    if (missing > pool.free_pages()) tree.evict(missing - pool.free_pages());
    EXPECT_TRUE(pool.allocate(missing, table));
    tree.extend(pin, ns, tokens, table);
    EXPECT_EQ(pin.pages(), want);
    EXPECT_EQ(tree.path_pages(pin), table);
    return table;
  }
  ::testing::AssertionResult sound() const {
    for (const Status& status : {pool.check(), tree.check()}) {
      if (!status.ok()) return ::testing::AssertionFailure() << status.error().message;
    }
    return ::testing::AssertionSuccess();
  }

  PagePool pool;
  RadixTree tree;
};

TEST(RadixTree, SplitsAtPagesAndSharesThePrefix) {
  Fixture f(100, 2);
  const auto first = f.put({1, 2, 3, 4, 5, 6, 7, 8, 9});
  EXPECT_EQ(first.size(), 4u) << "the ninth token fills no page";
  EXPECT_EQ(f.peek({1, 2, 3, 4, 5, 6, 7, 8, 9}).pages, 4);
  EXPECT_EQ(f.peek({1, 2, 3, 4, 5, 0}).pages, 2) << "half a page is no hit";
  EXPECT_EQ(f.peek({1, 2, 3, 0}).pages, 1);
  EXPECT_EQ(f.peek({1, 0}).pages, 0);
  EXPECT_EQ(f.peek({}).pages, 0);
  const auto second = f.put({1, 2, 3, 4, 5, 0, 7, 8});
  EXPECT_EQ(second[0], first[0]);
  EXPECT_EQ(second[1], first[1]);
  EXPECT_NE(second[2], first[2]);
  EXPECT_EQ(f.tree.cached_pages(), 6);
  EXPECT_EQ(f.tree.stats().splits, 1u);
  EXPECT_TRUE(f.sound());
}

TEST(RadixTree, MaxPagesAreRespectedAndPinnedExactly) {
  Fixture f(100, 1);
  f.put({1, 2, 3, 4, 5});
  std::vector<int32_t> table;
  const auto pin = f.tree.acquire(0, Tokens{1, 2, 3, 4, 5}, 3, table);
  EXPECT_EQ(pin.pages(), 3);
  EXPECT_EQ(f.tree.evictable_pages(), 2) << "what the limit cut off stays evictable";
  EXPECT_EQ(f.tree.evict(100), 2);
  EXPECT_EQ(f.peek({1, 2, 3, 4, 5}).pages, 3);
  EXPECT_TRUE(f.sound());
}

TEST(RadixTree, DuplicatesGoBackToThePoolAndTheTableIsCorrected) {
  Fixture f(100, 2);
  std::vector<int32_t> a;
  std::vector<int32_t> b;
  ASSERT_TRUE(f.pool.allocate(3, a));
  ASSERT_TRUE(f.pool.allocate(4, b));
  RadixTree::Pin pin_a;
  RadixTree::Pin pin_b;
  f.tree.extend(pin_a, 0, Tokens{1, 2, 3, 4, 5, 6}, a);
  f.tree.extend(pin_b, 0, Tokens{1, 2, 3, 4, 9, 9, 8, 8}, b);
  EXPECT_EQ(b[0], a[0]);
  EXPECT_EQ(b[1], a[1]);
  EXPECT_EQ(f.tree.stats().duplicate_pages, 2u);
  EXPECT_EQ(f.pool.free_pages(), 95);
  EXPECT_TRUE(f.sound());
}

TEST(RadixTree, EvictsLeastRecentlyUsedFirstAndParentsLast) {
  Fixture f(10, 1);
  f.put({1, 2, 3});
  f.put({1, 2, 4});
  f.put({7, 8});
  f.put({1, 2, 3});  // used again
  EXPECT_EQ(f.tree.evict(1), 1);
  EXPECT_EQ(f.peek({1, 2, 4}).pages, 2);
  EXPECT_EQ(f.tree.evict(1), 1);
  EXPECT_EQ(f.peek({7, 8}).pages, 1) << "a leaf is trimmed from its end";
  EXPECT_EQ(f.tree.evict(2), 2);
  EXPECT_EQ(f.peek({7, 8}).pages, 0);
  EXPECT_EQ(f.peek({1, 2, 3}).pages, 2);
  EXPECT_TRUE(f.sound());
  EXPECT_EQ(f.tree.evict(100), 2);
  EXPECT_EQ(f.tree.evict(1), 0);
  EXPECT_EQ(f.pool.free_pages(), 10);
  EXPECT_EQ(f.tree.namespaces(), 0) << "an empty namespace must not be kept";
}

TEST(RadixTree, PinsProtectTheWholePathAndSurviveSplits) {
  Fixture f(20, 1);
  f.put({1, 2, 3, 4});
  f.put({1, 2, 5});
  std::vector<int32_t> table;
  auto pin = std::make_optional(f.tree.acquire(0, Tokens{1, 2, 3, 4}, 100, table));
  EXPECT_EQ(f.tree.exclusive_pages(*pin), 4);
  f.put({1, 9});  // splits above the pinned node
  EXPECT_EQ(f.tree.path_pages(*pin), table);
  EXPECT_EQ(f.tree.evict(100), 2);
  EXPECT_EQ(f.peek({1, 2, 3, 4}).pages, 4);
  RadixTree::Pin moved = std::move(*pin);
  pin.reset();
  EXPECT_EQ(f.tree.evictable_pages(), 0);
  std::vector<int32_t> other_table;
  auto other = f.tree.acquire(0, Tokens{1, 2}, 100, other_table);
  EXPECT_EQ(f.tree.exclusive_pages(moved), 2);
  moved.reset();
  EXPECT_EQ(f.tree.evictable_pages(), 2);
  EXPECT_TRUE(f.sound());
}

TEST(RadixTree, NamespacesShareNothing) {
  Fixture f(20, 1);
  const auto a = f.put({1, 2, 3}, 1);
  EXPECT_EQ(f.peek({1, 2, 3}, 2).pages, 0);
  const auto b = f.put({1, 2, 3}, 2);
  for (size_t i = 0; i < 3; ++i) EXPECT_NE(a[i], b[i]);
  EXPECT_TRUE(f.sound());
}

TEST(RadixTree, UsedMoreOftenStaysLongerUnderLfuAndSlru) {
  for (const auto policy : {EvictionPolicy::kLfu, EvictionPolicy::kSlru}) {
    Fixture f(20, 1, policy);
    for (int i = 0; i < 3; ++i) f.put({1, 2});
    f.put({3, 4});
    f.put({5, 6});
    EXPECT_EQ(f.tree.evict(4), 4);
    EXPECT_EQ(f.peek({1, 2}).pages, 2) << "oldest, but used again";
    EXPECT_TRUE(f.sound());
  }
}

TEST(RadixTree, EqualHashesOfDifferentTokensAreNoHit) {
  // Real collisions: with three tokens a page, find two pairs whose intermediate hashes agree in
  // the upper half (a birthday among 2^32), and choose third tokens that cancel the rest.
  const uint64_t root_id = 1;
  std::unordered_map<uint32_t, Tokens> upper_half;
  std::mt19937 random(1);
  Tokens a;
  Tokens b;
  for (int i = 0; a.empty() && i < (1 << 20); ++i) {
    const Tokens pair{static_cast<int32_t>(random()), static_cast<int32_t>(random())};
    const uint64_t h = RadixTree::page_hash(root_id, pair);
    const auto [other, is_new] = upper_half.emplace(static_cast<uint32_t>(h >> 32), pair);
    if (is_new) continue;
    const uint64_t g = RadixTree::page_hash(root_id, other->second);
    a = {pair[0], pair[1], 5};
    b = {other->second[0], other->second[1],
         static_cast<int32_t>(5 ^ static_cast<uint32_t>(h ^ g))};
  }
  ASSERT_FALSE(a.empty());
  ASSERT_NE(a, b);
  ASSERT_EQ(RadixTree::page_hash(root_id, a), RadixTree::page_hash(root_id, b));
  Fixture f(10, 3);
  const auto pages_a = f.put(a);
  EXPECT_EQ(f.peek(b).pages, 0);
  const auto pages_b = f.put(b);
  EXPECT_NE(pages_a, pages_b);
  EXPECT_EQ(f.put(a), pages_a);
  EXPECT_EQ(f.put(b), pages_b);
  EXPECT_TRUE(f.sound());
  EXPECT_EQ(f.tree.evict(1), 1);
  EXPECT_EQ(f.peek(b).pages, 1) << "the other one of the chain must still be found";
  EXPECT_TRUE(f.sound());
}

TEST(RadixTree, EvictionOfABranchCostsItsNodesOnly) {
  // Many leaves: each eviction must take the front of the list, whatever the size of the tree.
  Fixture f(100000, 1);
  for (int32_t i = 0; i < 50000; ++i) f.put({i, -i});
  EXPECT_TRUE(f.sound());
  for (int32_t i = 0; i < 50000; ++i) {
    ASSERT_EQ(f.tree.evict(2), 2);
    ASSERT_EQ(f.peek({i, -i}).pages, 0);
  }
  EXPECT_EQ(f.tree.cached_pages(), 0);
}

/// The same cache, naively: one entry for each cached prefix of whole pages.
class NaiveCache {
 public:
  struct Entry {
    int locks = 0;
    uint64_t unlocked_at = 0;
  };
  using Key = std::pair<uint64_t, Tokens>;

  explicit NaiveCache(int page_size) : page_size_(page_size) {}

  int match(uint64_t ns, const Tokens& tokens) const {
    int pages = 0;
    while (entries_.contains(prefix(ns, tokens, pages + 1))) ++pages;
    return pages;
  }
  void lock(uint64_t ns, const Tokens& tokens, int pages, int by) {
    ++clock_;
    for (int i = 1; i <= pages; ++i) {
      Entry& entry = entries_[prefix(ns, tokens, i)];
      entry.locks += by;
      if (by < 0 && entry.locks == 0) entry.unlocked_at = clock_;
    }
  }
  int evict(int pages) {
    int freed = 0;
    for (; freed < pages; ++freed) {
      auto victim = entries_.end();
      for (auto it = entries_.begin(); it != entries_.end(); ++it) {
        if (it->second.locks > 0) continue;
        if (victim == entries_.end() || it->second.unlocked_at < victim->second.unlocked_at ||
            (it->second.unlocked_at == victim->second.unlocked_at &&
             it->first.second.size() > victim->first.second.size())) {
          victim = it;
        }
      }
      if (victim == entries_.end()) break;
      entries_.erase(victim);
    }
    return freed;
  }
  size_t size() const { return entries_.size(); }
  int unlocked() const {
    int count = 0;
    for (const auto& [key, entry] : entries_) count += entry.locks == 0;
    return count;
  }

 private:
  Key prefix(uint64_t ns, const Tokens& tokens, int pages) const {
    const auto count = static_cast<size_t>(pages) * static_cast<size_t>(page_size_);
    if (count > tokens.size()) return {ns, Tokens{-1}};  // never an entry
    return {ns, Tokens(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(count))};
  }
  int page_size_;
  uint64_t clock_ = 0;
  std::map<Key, Entry> entries_;
};

TEST(RadixTree, AgreesWithANaiveCacheInHitsAndInEveryEviction) {
  struct Held {
    uint64_t ns;
    Tokens tokens;
    RadixTree::Pin pin;
    std::vector<int32_t> table;
  };
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
    const int page_size = 1 + below(3);
    const int num_pages = 12 + below(30);
    Fixture f(num_pages, page_size);
    NaiveCache naive(page_size);
    {
      std::vector<Held> held;
      for (int step = 0; step < 400; ++step) {
        const uint64_t ns = static_cast<uint64_t>(below(2));
        Tokens tokens(static_cast<size_t>(below(8 * page_size)));
        for (int32_t& token : tokens) token = below(2);
        switch (below(4)) {
          case 0: {  // a request starts and computes its prompt
            Held h{ns, tokens, {}, {}};
            h.pin = f.tree.acquire(ns, tokens, 1000, h.table);
            const int matched = h.pin.pages();
            ASSERT_EQ(matched, naive.match(ns, tokens));
            naive.lock(ns, tokens, matched, 1);
            const int want = static_cast<int>(tokens.size()) / page_size;
            const int missing = want - matched;
            if (missing > f.pool.free_pages()) {
              const int short_of = missing - f.pool.free_pages();
              ASSERT_EQ(f.tree.evict(short_of), naive.evict(short_of));
            }
            if (f.pool.allocate(missing, h.table)) {
              f.tree.extend(h.pin, ns, tokens, h.table);
              naive.lock(ns, tokens, want, 1);
              naive.lock(ns, tokens, matched, -1);
            } else {
              h.tokens.resize(static_cast<size_t>(matched * page_size));
            }
            held.push_back(std::move(h));
            break;
          }
          case 1:
          case 2:  // a request ends
            if (!held.empty()) {
              const auto at = held.begin() + below(static_cast<int>(held.size()));
              naive.lock(at->ns, at->tokens, at->pin.pages(), -1);
              held.erase(at);
            }
            break;
          case 3:
            ASSERT_EQ(f.peek(tokens, ns).pages, naive.match(ns, tokens));
            if (below(4) == 0) {
              const int count = below(5);
              ASSERT_EQ(f.tree.evict(count), naive.evict(count));
            }
            break;
        }
        ASSERT_EQ(static_cast<size_t>(f.tree.cached_pages()), naive.size());
        ASSERT_EQ(f.tree.evictable_pages(), naive.unlocked());
        ASSERT_TRUE(f.sound()) << "seed " << seed << " step " << step;
        for (const Held& h : held)
          ASSERT_EQ(f.tree.path_pages(h.pin).size(), static_cast<size_t>(h.pin.pages()));
      }
    }
    f.tree.clear();
    ASSERT_EQ(f.pool.free_pages(), num_pages);
    ASSERT_TRUE(f.sound());
  }
}

}  // namespace
}  // namespace capstan::cache
