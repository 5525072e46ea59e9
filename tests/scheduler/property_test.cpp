// A million random steps: arrivals, cancellations in every state, tiny pools, every policy. After
// each step all invariants hold; every position that a step reads holds the right KV; every request
// ends once, with the output it has when it runs alone; nothing is left over.
//
// CAPSTAN_PROPERTY_STEPS sets the number of steps in all.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <random>

#include "scheduler/oracle.h"
#include "scheduler/scheduler.h"

namespace capstan::scheduler {
namespace {

constexpr int kShards = 8;      // test cases, so that they can run side by side
constexpr int kVocabulary = 3;  // small, so that prefixes meet by chance too

int64_t steps_in_all() {
  if (const char* given = std::getenv("CAPSTAN_PROPERTY_STEPS")) return std::atoll(given);
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(NDEBUG)
  return 50'000;
#else
  return 1'000'000;
#endif
}

class Dice {
 public:
  explicit Dice(uint64_t seed) : random_(seed) {}
  int below(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }
  int between(int a, int b) { return a + below(b - a + 1); }
  bool percent(int p) { return below(100) < p; }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[below(static_cast<int>(values.size()))];
  }

 private:
  std::mt19937_64 random_;
};

SchedulerConfig random_config(Dice& dice) {
  SchedulerConfig c;
  c.page_size = dice.one_of({1, 1, 2, 3, 16});
  c.num_pages = c.page_size == 16 ? dice.between(4, 16)
                                  : dice.between(16, dice.one_of({60, 120, 240})) / c.page_size + 4;
  c.policy = dice.one_of({Policy::kLpm, Policy::kFcfs, Policy::kFcfs, Policy::kRandom,
                          Policy::kDfsWeight, Policy::kLof});
  c.eviction_policy = dice.one_of({cache::EvictionPolicy::kLru, cache::EvictionPolicy::kLru,
                                   cache::EvictionPolicy::kSlru, cache::EvictionPolicy::kLfu});
  c.disable_radix_cache = dice.percent(15);
  c.max_running_requests = dice.between(1, 12);
  c.max_queued_requests = dice.percent(30) ? dice.between(1, 6) : -1;
  c.chunked_prefill_size = dice.percent(15) ? -1 : c.page_size * dice.between(1, 20);
  c.max_prefill_tokens = dice.between(1, 100);
  c.mixed_prefill_tokens = dice.one_of({-1, 0, 0, 1, 5});
  c.context_length = dice.percent(40) ? dice.between(10, 60) : 0;
  if (c.policy == Policy::kFcfs || c.policy == Policy::kLof) {
    c.enable_priority = dice.percent(50);
    c.low_priority_values_first = dice.percent(30);
    c.priority_preemption_threshold = dice.between(0, 2);
    c.disable_priority_preemption = dice.percent(20);
    c.retract_by_priority = dice.percent(50);
    c.priority_ageing_per_second = dice.one_of({0.0, 0.0, 0.5, 5.0});
  }
  c.conservativeness = dice.one_of({0.0, 0.0, 0.1, 0.3, 1.0, 2.0});
  c.clip_max_new_tokens = dice.one_of({1, 4, 16, 4096});
  c.max_passed_over = dice.between(1, 20);
  c.in_batch_sharing_tokens = dice.one_of({-1, 1, 4, 8});
  c.random_seed = static_cast<uint64_t>(dice.below(1000));
  return c;
}

/// What the loads of a test case went through, to show that they reach what they are meant to.
struct Coverage {
  int64_t steps = 0, working_steps = 0, mixed_steps = 0, items = 0;
  int64_t requests = 0, undisturbed = 0, cached_tokens = 0, retractions = 0, pushed_out = 0;
  int64_t failed_steps = 0, evicted_tokens = 0, preemptions = 0;
  int64_t drafts = 0, drafts_refused = 0, accepted = 0;
};

/// One random configuration under one random load.
class RandomLoad {
 public:
  RandomLoad(uint64_t seed, Coverage& coverage)
      : coverage_(coverage),
        dice_(seed),
        config_(random_config(dice_)),
        oracle_(config_, kVocabulary) {
    auto scheduler = Scheduler::create(config_);
    EXPECT_TRUE(scheduler.ok()) << (scheduler.ok() ? "" : scheduler.error().message);
    scheduler_ = std::move(*scheduler);
    arrival_percent_ = dice_.between(5, 60);
    cancel_percent_ = dice_.one_of({0, 1, 5});
    fail_percent_ = dice_.one_of({0, 0, 2});
    draft_percent_ = dice_.one_of({0, 50, 100});
    most_drafts_ = dice_.one_of({1, 3, 8, 40});
    right_percent_ = dice_.one_of({0, 50, 90, 100});
    for (auto& story : stories_) {
      story.resize(80);
      for (int32_t& token : story) token = dice_.below(kVocabulary);
    }
  }

  void go() {
    const int busy = dice_.between(100, 600);
    for (int i = 0; i < busy && !broken(); ++i) step(true);
    // Now all must come to an end, whoever they are: every step computes at least one token, and
    // what is computed twice after a retraction is bounded by what the survivors write meanwhile.
    int64_t left = 100;
    for (const RequestId id : live_) {
      const RequestSpec& spec = oracle_.known().at(id).spec;
      left += 2 * (static_cast<int64_t>(spec.prompt.size()) + spec.max_new_tokens);
    }
    while (!scheduler_->idle() && !broken()) {
      if (left-- == 0) ADD_FAILURE() << live_.size() << " requests do not come to an end";
      step(false);
    }
    if (!broken()) at_end();
    coverage_.steps += steps_;
  }

 private:
  bool broken() const { return ::testing::Test::HasFailure(); }

  RequestSpec random_request() {
    RequestSpec spec;
    spec.id = ++last_id_;
    const int pool = config_.num_pages * config_.page_size;
    const auto& story = stories_[static_cast<size_t>(dice_.below(3))];
    const int shared = dice_.below(std::min(pool / dice_.one_of({2, 4, 8}), 80));
    spec.prompt.assign(story.begin(), story.begin() + shared);
    const int tail = dice_.between(shared == 0 ? 1 : 0, 10);
    for (int i = 0; i < tail; ++i) spec.prompt.push_back(dice_.below(kVocabulary));
    spec.max_new_tokens = dice_.percent(10) ? 0 : dice_.between(1, 40);
    spec.priority = dice_.between(-3, 3);
    spec.cache_namespace = dice_.percent(80) ? 0 : static_cast<uint64_t>(dice_.between(1, 3));
    spec.no_cache = dice_.percent(5);
    spec.bypass_queue_limit = dice_.percent(5);
    if (dice_.percent(10)) spec.logprob_start = dice_.below(20);
    spec.arrival = now_;
    return spec;
  }

  void arrive() {
    RequestSpec spec = random_request();
    const int copies = dice_.percent(15) ? dice_.between(2, 5) : 1;
    if (copies > 1) spec.sibling_group = spec.id;
    for (int i = 0; i < copies; ++i) {
      if (i > 0) spec.id = ++last_id_;
      const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
      const int64_t context = config_.context_length;
      const int64_t output = context > 0 ? std::min<int64_t>(spec.max_new_tokens, context - prompt)
                                         : spec.max_new_tokens;
      const bool fits_context =
          context == 0 || prompt + std::min(spec.max_new_tokens, 1) <= context;
      const bool fits = fits_context && prompt + output <= config_.num_pages * config_.page_size;
      const Status status = scheduler_->add(spec);
      if (!fits) {
        ASSERT_FALSE(status.ok());
        ASSERT_EQ(status.error().code, ErrorCode::kOutOfRange);
        return;
      }
      if (!status.ok()) {
        ASSERT_EQ(status.error().code, ErrorCode::kResourceExhausted) << status.error().message;
        ASSERT_GE(config_.max_queued_requests, 0);
        return;
      }
      oracle_.known().emplace(spec.id, know(spec, config_.context_length, kVocabulary, steps_));
      live_.push_back(spec.id);
      // A full queue may have pushed out another; the next plan says which.
    }
  }

  /// What follows in truth, with errors strewn in, for whoever is there: the scheduler must ignore
  /// what it cannot use.
  void propose_some() {
    for (const RequestId id : live_) {
      Known& request = oracle_.known().at(id);
      request.proposed.clear();
      if (!dice_.percent(draft_percent_)) continue;
      const int count = dice_.between(1, most_drafts_);
      for (int i = 0; i < count; ++i) {
        const size_t at = request.outputs() + static_cast<size_t>(i);
        const bool right = at < request.solo.size() && dice_.percent(right_percent_);
        request.proposed.push_back(right ? request.solo[at] : dice_.below(kVocabulary));
      }
      scheduler_->propose(id, request.proposed);
    }
    scheduler_->propose(last_id_ + 1, std::vector<int32_t>{0, 1});
  }

  void cancel_one() {
    if (live_.empty()) return;
    const RequestId id = live_[static_cast<size_t>(dice_.below(static_cast<int>(live_.size())))];
    oracle_.known().at(id).cancelled = true;
    scheduler_->cancel(id, dice_.percent(50) ? FinishKind::kAbort : FinishKind::kStop);
  }

  void end(const std::vector<Finished>& finished) {
    for (const Finished& f : finished) {
      const bool pushed_out = f.message.find("The request queue is full") == 0;
      if (pushed_out) {
        ASSERT_TRUE(config_.enable_priority && config_.max_queued_requests >= 0);
        oracle_.known().at(f.id).cancelled = true;
        ++coverage_.pushed_out;
      }
      oracle_.end(f);
      std::erase(live_, f.id);
    }
  }

  void check() {
    const Status status = scheduler_->check_invariants();
    ASSERT_TRUE(status.ok()) << status.error().message;
  }

  void step(bool arrivals) {
    ++steps_;
    now_ += 0.01 * dice_.below(3);
    if (arrivals) {
      if (dice_.percent(arrival_percent_)) arrive();
      if (dice_.percent(cancel_percent_)) cancel_one();
    }
    propose_some();
    if (arrivals && dice_.percent(cancel_percent_)) cancel_one();
    const double planned_at = now_;
    const StepPlan plan = scheduler_->plan(planned_at);
    ASSERT_NO_FATAL_FAILURE(end(plan.finished));
    ASSERT_TRUE(!plan.items.empty() || live_.empty()) << "nothing runs though requests wait";
    check_totals(plan);
    count(plan);
    const bool fail = arrivals && dice_.percent(fail_percent_);
    std::vector<SampledToken> sampled = oracle_.run(plan, fail);
    for (const SampledToken& token : sampled) coverage_.accepted += token.accepted;
    ASSERT_NO_FATAL_FAILURE(check());
    if (arrivals && dice_.percent(arrival_percent_ / 2)) arrive();
    if (arrivals && dice_.percent(cancel_percent_)) cancel_one();
    if (fail) {
      ++coverage_.failed_steps;
      ASSERT_NO_FATAL_FAILURE(end(scheduler_->abandon(plan)));
    } else {
      if (cancel_percent_ > 0 && !plan.items.empty() && dice_.below(200) == 0) {
        // The model breaks for one request.
        const auto at = static_cast<size_t>(dice_.below(static_cast<int>(plan.items.size())));
        if (plan.items[at].samples && !oracle_.known().at(plan.items[at].id).cancelled) {
          oracle_.spoil(plan.items[at]);
          sampled[at].stop = FinishKind::kAbort;
          oracle_.known().at(plan.items[at].id).cancelled = true;
        }
      }
      oracle_.book(plan, sampled);
      now_ += 0.001 * (plan.decode_tokens > 0) + 0.0001 * plan.prefill_tokens;
      ASSERT_NO_FATAL_FAILURE(end(scheduler_->commit(plan, sampled, now_)));
    }
    ASSERT_NO_FATAL_FAILURE(check());
    for (const RequestId id : live_) {
      Known& request = oracle_.known().at(id);
      if (request.cancelled) continue;  // already unknown to the scheduler, or soon
      ASSERT_GE(scheduler_->retractions(id), request.retractions);
      request.retractions = scheduler_->retractions(id);
    }
  }

  void count(const StepPlan& plan) {
    coverage_.working_steps += !plan.items.empty();
    coverage_.mixed_steps += plan.prefill_tokens > 0 && plan.decode_tokens > 0;
    coverage_.items += static_cast<int64_t>(plan.items.size());
    for (const PlanItem& item : plan.items) {
      const Known& request = oracle_.known().at(item.id);
      const int room = request.max_new - static_cast<int>(request.outputs()) - 1;
      coverage_.drafts += item.drafts;
      coverage_.drafts_refused +=
          item.is_decode && item.drafts < std::min(room, static_cast<int>(request.proposed.size()));
    }
    coverage_.cached_tokens += plan.cached_tokens;
    coverage_.retractions += plan.retracted;
    // Somebody new comes in a plan that pushes back another only by preemption.
    coverage_.preemptions += plan.retracted > 0 && plan.admitted > 0;
  }

  void check_totals(const StepPlan& plan) {
    int prefill = 0;
    int decode = 0;
    for (const PlanItem& item : plan.items) (item.is_decode ? decode : prefill) += item.count;
    ASSERT_EQ(prefill, plan.prefill_tokens);
    ASSERT_EQ(decode, plan.decode_tokens);
    int drafts = 0;
    for (const PlanItem& item : plan.items) drafts += item.drafts;
    ASSERT_EQ(drafts, plan.draft_tokens);
    ASSERT_LE(static_cast<int>(plan.items.size()), config_.max_running_requests);
    if (config_.chunked_prefill_size > 0) {
      ASSERT_LE(prefill, config_.chunked_prefill_size);
    }
    const SchedulerStats stats = scheduler_->stats();
    ASSERT_EQ(stats.used_tokens + stats.evictable_tokens + stats.free_tokens, stats.total_tokens);
    ASSERT_EQ(stats.running + stats.waiting, static_cast<int>(live_.size()));
  }

  void at_end() {
    for (const auto& [id, request] : oracle_.known()) {
      ASSERT_TRUE(request.ended) << id;
      ++coverage_.requests;
      coverage_.undisturbed += !request.cancelled;
    }
    const SchedulerStats stats = scheduler_->stats();
    coverage_.evicted_tokens += static_cast<int64_t>(stats.evicted_tokens);
    EXPECT_EQ(stats.running, 0);
    EXPECT_EQ(stats.waiting, 0);
    EXPECT_EQ(stats.used_tokens, 0) << "memory leaks";
    EXPECT_EQ(stats.finished + stats.aborted, oracle_.known().size());
    EXPECT_TRUE(scheduler_->flush_cache());
    EXPECT_EQ(scheduler_->stats().free_tokens, stats.total_tokens);
    ASSERT_NO_FATAL_FAILURE(check());
  }

  Coverage& coverage_;
  Dice dice_;
  SchedulerConfig config_;
  Oracle oracle_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<int32_t> stories_[3];
  std::vector<RequestId> live_;
  RequestId last_id_ = 0;
  int64_t steps_ = 0;
  double now_ = 0;
  int arrival_percent_ = 0;
  int cancel_percent_ = 0;
  int fail_percent_ = 0;
  int draft_percent_ = 0;
  int most_drafts_ = 0;
  int right_percent_ = 0;
};

class Property : public ::testing::TestWithParam<int> {};

TEST_P(Property, RandomLoadsNeverBreakAnything) {
  Coverage c;
  for (uint64_t seed = 1; c.steps < steps_in_all() / kShards; ++seed) {
    const uint64_t shard_seed = seed * kShards + static_cast<uint64_t>(GetParam());
    RandomLoad(shard_seed, c).go();
    ASSERT_FALSE(HasFailure()) << "with seed " << shard_seed;
  }
  if (std::getenv("CAPSTAN_PROPERTY_VERBOSE") != nullptr) {
    std::cout << "steps " << c.steps << " working " << c.working_steps << " mixed " << c.mixed_steps
              << " items " << c.items << " requests " << c.requests << " undisturbed "
              << c.undisturbed << " cached " << c.cached_tokens << " evicted " << c.evicted_tokens
              << " retractions " << c.retractions << " preemptions " << c.preemptions
              << " pushed out " << c.pushed_out << " failed steps " << c.failed_steps << " drafts "
              << c.drafts << " refused " << c.drafts_refused << " accepted " << c.accepted << "\n";
  }
  RecordProperty("requests", std::to_string(c.requests));
  RecordProperty("retractions", std::to_string(c.retractions));
  // Loads that idle, or never meet the hard cases, would prove nothing.
  if (c.steps < 50'000) return;  // too few for rare events
  EXPECT_GT(c.working_steps, c.steps / 2);
  EXPECT_GT(c.mixed_steps, c.steps / 20);
  EXPECT_GT(c.items, c.steps);
  EXPECT_GT(c.requests, c.steps / 50);
  EXPECT_GT(c.undisturbed, c.requests / 2);
  EXPECT_GT(c.cached_tokens, c.requests);
  EXPECT_GT(c.evicted_tokens, c.requests);
  EXPECT_GT(c.retractions, c.steps / 200);
  EXPECT_GT(c.preemptions, c.steps / 2000);
  EXPECT_GT(c.pushed_out, c.steps / 2000);
  EXPECT_GT(c.failed_steps, c.steps / 1000);
  EXPECT_GT(c.drafts, c.steps / 2);
  EXPECT_GT(c.drafts_refused, c.steps / 1000);
  EXPECT_GT(c.accepted, c.steps / 10);
}

INSTANTIATE_TEST_SUITE_P(Shards, Property, ::testing::Range(0, kShards));

}  // namespace
}  // namespace capstan::scheduler
