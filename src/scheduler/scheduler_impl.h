// The one implementation of Scheduler. Internal to this folder; its members are spread over
// scheduler.cpp (arrival, departure, figures), plan.cpp, drafts.cpp, commit.cpp and invariants.cpp.
#pragma once

#include <memory>
#include <random>
#include <unordered_map>
#include <vector>

#include "cache/page_pool.h"
#include "cache/radix_tree.h"
#include "scheduler/scheduler.h"
#include "scheduler/sequence.h"
#include "scheduler/step_budget.h"
#include "scheduler/wait_queue.h"

namespace capstan::scheduler {

class SchedulerImpl final : public Scheduler {
 public:
  explicit SchedulerImpl(const SchedulerConfig& config);

  Status add(RequestSpec spec) override;
  void cancel(RequestId id, FinishKind kind) override;
  void propose(RequestId id, std::span<const int32_t> drafts) override;
  StepPlan plan(double now) override;
  std::vector<Finished> commit(const StepPlan& plan, std::span<const SampledToken> sampled,
                               double now) override;
  std::vector<Finished> abandon(const StepPlan& plan) override;
  int64_t max_request_tokens() const override;
  bool flush_cache() override;
  bool idle() const override { return requests_.empty() && ended_.empty(); }
  SchedulerStats stats() const override;
  int retractions(RequestId id) const override;
  Status check_invariants() const override;

 private:
  struct Group {
    Sequence* leader = nullptr;  // the others wait for its prefill
    int members = 0;
  };

  // Pages and tokens.
  int pages_for(int64_t tokens) const {
    return static_cast<int>((tokens + config_.page_size - 1) / config_.page_size);
  }
  int available_pages() const { return pool_.free_pages() + tree_.evictable_pages(); }
  int future_pages(const Sequence& sequence, double share) const;
  int32_t take_page();
  void keep_computed(Sequence& sequence);
  void release_memory(Sequence& sequence, bool keep);

  // Arrival and departure.
  long double base_priority(const Sequence& sequence) const;
  void enqueue(Sequence& sequence);
  bool fresh(const Sequence& s) const { return !s.admitted && !s.spec.bypass_queue_limit; }
  void park(Sequence& sequence, Sequence& leader, int pages, bool as_sibling);
  void unpark(Sequence& sequence);
  void wake_followers(Sequence& leader, bool leader_left);
  Finished finish(Sequence& sequence, FinishKind kind, std::string message, bool keep);
  void forget(Sequence& sequence);

  // plan()
  void make_decode_room(StepPlan& plan);
  void make_draft_room(const StepPlan& plan);
  void drop_drafts(Sequence& sequence);
  Sequence* choose_victim() const;
  void retract(Sequence& victim, StepPlan& plan);
  void schedule_prefill(StepPlan& plan);
  bool try_admit(Sequence& sequence, StepPlan& plan);
  bool fits(int needed, int future, int newly_locked, int gained_pages, int gained_slots,
            int freed_reserve);
  bool preempt_for(const Sequence& sequence, int needed, int future,
                   const cache::RadixTree::Match& match, StepPlan& plan);
  Sequence* worth_waiting_for(const Sequence& sequence, int matched, int& shared) const;
  int joining() const;
  void give_chunk(Sequence& sequence);
  void build_items(StepPlan& plan);
  int reserved_pages();

  // commit()
  void commit_item(Sequence& sequence, const PlanItem& item, const SampledToken* sampled,
                   std::vector<Finished>& finished);

  SchedulerConfig config_;
  cache::PagePool pool_;
  cache::RadixTree tree_;  // before requests_, whose pins must go first
  StepBudget step_budget_;
  NewTokenRatio ratio_;
  std::mt19937_64 random_;

  std::unordered_map<RequestId, std::unique_ptr<Sequence>> requests_;
  std::unordered_map<uint64_t, Group> groups_;
  WaitQueue queue_;
  std::vector<Sequence*> running_;    // in order of admission
  std::vector<Sequence*> in_flight_;  // parallel to the items of the plan not yet committed
  std::vector<Finished> ended_;       // for the next plan() to report
  int fresh_waiting_ = 0;             // never ran and count against the queue limit
  uint64_t arrivals_ = 0;
  uint64_t plan_number_ = 0;
  double plan_time_ = 0;
  SchedulerStats counters_;

  // Within one plan().
  std::vector<Sequence*> prefilling_;
  int reserved_ = -1;  // pages that running requests are assumed to ask for yet; -1: unknown
};

}  // namespace capstan::scheduler
