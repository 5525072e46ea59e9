// Waiting requests that may be admitted, in the order in which they should be.
#pragma once

#include <set>
#include <span>
#include <vector>

#include "cache/radix_tree.h"
#include "scheduler/scheduler.h"
#include "scheduler/sequence.h"

namespace capstan::scheduler {

/// Static policies (kFcfs, kLof, kRandom) cost O(log n) per insertion and removal and O(1) to look
/// at the next; kLpm and kDfsWeight order the kWindow oldest on request.
class WaitQueue {
 public:
  /// Requests that kLpm and kDfsWeight look at. SGLang drops to fcfs above this number instead.
  static constexpr size_t kWindow = 128;

  WaitQueue(Policy policy, int max_passed_over) : policy_(policy), patience_(max_passed_over) {}

  void insert(Sequence* sequence);
  void erase(Sequence* sequence);
  /// Erases a request that is being admitted, and keeps count of those passed over.
  void admitted(Sequence* sequence);
  size_t size() const { return by_age_.size(); }
  bool empty() const { return by_age_.empty(); }
  bool contains(Sequence* sequence) const { return by_age_.contains(sequence); }

  /// Prepares next() for one plan.
  void begin_plan(const cache::RadixTree& tree, int page_size);
  /// The request to try next; null when none is left to try. It stays queued until erased, and is
  /// returned again until then.
  Sequence* next();

  /// The waiting request that would be served last, among those that never ran and do not bypass
  /// the queue limit; null if there is none.
  Sequence* least_urgent() const;

  Status check() const;

 private:
  struct ByAge {
    bool operator()(const Sequence* a, const Sequence* b) const {
      return a->rank != b->rank ? a->rank < b->rank : a->arrival < b->arrival;
    }
  };
  struct ByKey {
    bool operator()(const Sequence* a, const Sequence* b) const {
      if (a->rank != b->rank) return a->rank < b->rank;
      return a->policy_key != b->policy_key ? a->policy_key < b->policy_key
                                            : a->arrival < b->arrival;
    }
  };

  bool dynamic() const { return policy_ == Policy::kLpm || policy_ == Policy::kDfsWeight; }
  bool keyed() const { return policy_ == Policy::kLof || policy_ == Policy::kRandom; }
  void order_by_match(const cache::RadixTree& tree, int page_size);
  void order_by_weight(const cache::RadixTree& tree, int page_size);

  Policy policy_;
  int patience_;
  std::set<Sequence*, ByAge> by_age_;
  std::set<Sequence*, ByKey> by_key_;  // keyed policies only
  std::vector<Sequence*> order_;       // dynamic policies: this plan's order
  size_t order_next_ = 0;
  int passed_over_ = 0;  // admissions since the oldest of its time was admitted
};

/// Pages of `sequence` that may come from the cache: the last token is always computed, for its
/// logits, and so is what logprob_start asks for.
int usable_pages(const Sequence& sequence, int page_size);

}  // namespace capstan::scheduler
