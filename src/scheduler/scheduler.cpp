#include "scheduler/scheduler.h"

#include <algorithm>
#include <string>

#include "scheduler/scheduler_impl.h"

namespace capstan::scheduler {
namespace {

Status validate(const SchedulerConfig& c) {
  const auto bad = [](const std::string& flag, int64_t value, const std::string& want) {
    return invalid_argument("--" + flag + " is " + std::to_string(value) + ": " + want, flag);
  };
  if (c.page_size < 1) return bad("page-size", c.page_size, "must be at least 1");
  if (c.num_pages < 1) {
    return bad(
        "max-total-tokens", c.num_pages * int64_t{c.page_size},
        "the KV pool must hold at least one page of " + std::to_string(c.page_size) + " tokens");
  }
  if (c.max_running_requests < 1) {
    return bad("max-running-requests", c.max_running_requests, "must be at least 1");
  }
  if (c.max_queued_requests != -1 && c.max_queued_requests < 1) {
    return bad("max-queued-requests", c.max_queued_requests,
               "must be at least 1, or absent for no limit");
  }
  if (c.chunked_prefill_size != -1 &&
      (c.chunked_prefill_size < 1 || c.chunked_prefill_size % c.page_size != 0)) {
    return bad("chunked-prefill-size", c.chunked_prefill_size,
               "must be -1 or a positive multiple of the page size " + std::to_string(c.page_size));
  }
  if (c.max_prefill_tokens < 1) {
    return bad("max-prefill-tokens", c.max_prefill_tokens, "must be at least 1");
  }
  if (c.mixed_prefill_tokens < -1) {
    return bad("mixed-prefill-tokens", c.mixed_prefill_tokens, "must be -1, 0 or positive");
  }
  if (!(c.mixed_step_ratio > 1)) {
    return invalid_argument(
        "--mixed-step-ratio is " + std::to_string(c.mixed_step_ratio) + ": must be above 1",
        "mixed-step-ratio");
  }
  if (c.context_length < 0) {
    return bad("context-length", c.context_length, "must be positive, or 0 for no limit");
  }
  if (!(c.conservativeness >= 0)) {
    return invalid_argument("--schedule-conservativeness is " + std::to_string(c.conservativeness) +
                                ": must not be negative",
                            "schedule-conservativeness");
  }
  if (c.clip_max_new_tokens < 1) {
    return bad("clip-max-new-tokens", c.clip_max_new_tokens, "must be at least 1");
  }
  if (!(c.priority_ageing_per_second >= 0)) {
    return invalid_argument("--priority-ageing-per-second is " +
                                std::to_string(c.priority_ageing_per_second) +
                                ": must not be negative",
                            "priority-ageing-per-second");
  }
  if (c.max_passed_over < 1) {
    return bad("max-passed-over", c.max_passed_over, "must be at least 1");
  }
  if (c.enable_priority && c.policy != Policy::kFcfs && c.policy != Policy::kLof) {
    return invalid_argument(
        "--enable-priority-scheduling needs --schedule-policy fcfs or lof: other policies have an "
        "order of their own",
        "schedule-policy");
  }
  return {};
}

}  // namespace

Result<Policy> parse_policy(std::string_view name) {
  if (name == "lpm") return Policy::kLpm;
  if (name == "fcfs") return Policy::kFcfs;
  if (name == "random") return Policy::kRandom;
  if (name == "dfs-weight") return Policy::kDfsWeight;
  if (name == "lof") return Policy::kLof;
  return invalid_argument("unknown schedule policy '" + std::string(name) +
                              "': use lpm, fcfs, random, dfs-weight or lof",
                          "schedule-policy");
}

Result<std::unique_ptr<Scheduler>> Scheduler::create(const SchedulerConfig& config) {
  CAPSTAN_RETURN_IF_ERROR(validate(config));
  return std::unique_ptr<Scheduler>(std::make_unique<SchedulerImpl>(config));
}

SchedulerImpl::SchedulerImpl(const SchedulerConfig& config)
    : config_(config),
      pool_(config.num_pages, config.page_size),
      tree_(pool_, config.eviction_policy),
      step_budget_(config),
      ratio_(config.conservativeness),
      random_(config.random_seed),
      queue_(config.policy, config.max_passed_over) {}

int64_t SchedulerImpl::max_request_tokens() const {
  const int64_t pool = int64_t{config_.num_pages} * config_.page_size;
  return config_.context_length > 0 ? std::min<int64_t>(pool, config_.context_length) : pool;
}

long double SchedulerImpl::base_priority(const Sequence& sequence) const {
  if (!config_.enable_priority) return 0;
  const auto priority = static_cast<long double>(sequence.spec.priority);
  return config_.low_priority_values_first ? -priority : priority;
}

Status SchedulerImpl::add(RequestSpec spec) {
  const auto prompt = static_cast<int64_t>(spec.prompt.size());
  if (prompt == 0) return invalid_argument("the prompt has no tokens", "prompt");
  if (spec.max_new_tokens < 0) {
    return invalid_argument(
        "max_new_tokens is " + std::to_string(spec.max_new_tokens) + ": must not be negative",
        "max_new_tokens");
  }
  if (requests_.contains(spec.id)) {
    return invalid_argument("request " + std::to_string(spec.id) + " is already known", "id");
  }
  const auto out_of_range = [](std::string message) {
    return Error{ErrorCode::kOutOfRange, std::move(message), "prompt"};
  };
  int64_t output = spec.max_new_tokens;
  if (config_.context_length > 0) {
    const int64_t left = config_.context_length - prompt;
    if (left < std::min<int64_t>(output, 1)) {
      return out_of_range("the prompt of " + std::to_string(prompt) +
                          " tokens leaves no room for output in the context of " +
                          std::to_string(config_.context_length) + " tokens: shorten it");
    }
    output = std::min(output, left);
  }
  const int64_t pool = int64_t{config_.num_pages} * config_.page_size;
  if (prompt + output > pool) {
    return out_of_range("the request needs " + std::to_string(prompt + output) +
                        " tokens (prompt " + std::to_string(prompt) + " + output " +
                        std::to_string(output) + ") but the KV pool holds " + std::to_string(pool) +
                        ": shorten the prompt or lower max_new_tokens");
  }

  auto owned = std::make_unique<Sequence>();
  Sequence& sequence = *owned;
  sequence.tokens = std::move(spec.prompt);
  spec.prompt.clear();
  sequence.prompt_tokens = static_cast<int32_t>(prompt);
  sequence.max_new = static_cast<int32_t>(output);
  sequence.cacheable = !config_.disable_radix_cache && !spec.no_cache;
  sequence.arrival = ++arrivals_;
  sequence.spec = std::move(spec);
  if (config_.enable_priority) {
    // Ageing raises all alike, so the order of two requests never changes: a constant key will do.
    sequence.rank =
        static_cast<long double>(config_.priority_ageing_per_second) * sequence.spec.arrival -
        base_priority(sequence);
  }
  if (config_.policy == Policy::kLof) sequence.policy_key = -sequence.max_new;
  if (config_.policy == Policy::kRandom) {
    // Among the next arrivals only: a key drawn once and for all would let some starve.
    constexpr uint64_t kArrivals = 256;
    sequence.policy_key = static_cast<double>(sequence.arrival + random_() % kArrivals);
  }

  if (fresh(sequence)) {
    if (config_.max_queued_requests >= 0 && fresh_waiting_ >= config_.max_queued_requests) {
      Sequence* loser = config_.enable_priority ? queue_.least_urgent() : nullptr;
      if (loser == nullptr || base_priority(*loser) >= base_priority(sequence)) {
        return resource_exhausted("The request queue is full. " + std::to_string(fresh_waiting_) +
                                  " requests wait, the limit is " +
                                  std::to_string(config_.max_queued_requests) +
                                  ": try again later");
      }
      ended_.push_back(finish(*loser, FinishKind::kAbort,
                              "The request queue is full. A request of higher priority took the "
                              "place: try again later",
                              true));
      forget(*loser);
    }
    ++fresh_waiting_;
  }
  requests_.emplace(sequence.spec.id, std::move(owned));
  if (sequence.spec.sibling_group != 0 && sequence.cacheable) {
    Group& group = groups_[sequence.spec.sibling_group];
    ++group.members;
    if (group.leader == nullptr) group.leader = &sequence;
    if (group.leader != &sequence && !group.leader->prefilled) {
      park(sequence, *group.leader, usable_pages(sequence, config_.page_size), true);
      return {};
    }
  }
  enqueue(sequence);
  return {};
}

void SchedulerImpl::enqueue(Sequence& sequence) {
  sequence.state = RequestState::kWaiting;
  queue_.insert(&sequence);
}

void SchedulerImpl::park(Sequence& sequence, Sequence& leader, int pages, bool as_sibling) {
  sequence.parked_on = &leader;
  sequence.parked_pages = pages;
  sequence.parked_as_sibling = as_sibling;
  leader.followers.push_back(&sequence);
}

void SchedulerImpl::unpark(Sequence& sequence) {
  std::erase(sequence.parked_on->followers, &sequence);
  sequence.parked_on = nullptr;
}

// Called when the leader's prefill went on, ended or was given up.
void SchedulerImpl::wake_followers(Sequence& leader, bool leader_left) {
  if (leader.followers.empty()) return;
  const bool computes = leader.state == RequestState::kPrefill && !leader_left;
  Sequence* heir = nullptr;  // leads the siblings once the leader is gone
  for (Sequence* follower : std::exchange(leader.followers, {})) {
    follower->parked_on = nullptr;
    if (follower->parked_as_sibling && !leader.prefilled) {
      if (leader_left && heir == nullptr) {
        heir = follower;
        groups_[follower->spec.sibling_group].leader = heir;
      } else if (Sequence& next = leader_left ? *heir : leader;
                 !computes || leader.pin.pages() < follower->parked_pages) {
        park(*follower, next, follower->parked_pages, true);
        continue;
      }
    } else if (computes && leader.pin.pages() < follower->parked_pages) {
      park(*follower, leader, follower->parked_pages, follower->parked_as_sibling);
      continue;
    }
    enqueue(*follower);
  }
}

void SchedulerImpl::cancel(RequestId id, FinishKind kind) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  Sequence& sequence = *found->second;
  if (kind == FinishKind::kNone) kind = FinishKind::kAbort;
  if (sequence.in_flight) {
    if (sequence.cancelled == FinishKind::kNone) sequence.cancelled = kind;
    return;
  }
  ended_.push_back(finish(sequence, kind, "cancelled", true));
  std::erase(running_, &sequence);
  forget(sequence);
}

// Takes the sequence out of everything but requests_ and running_.
Finished SchedulerImpl::finish(Sequence& sequence, FinishKind kind, std::string message,
                               bool keep) {
  if (fresh(sequence)) --fresh_waiting_;
  if (sequence.state == RequestState::kWaiting) {
    if (sequence.parked_on != nullptr) {
      unpark(sequence);
    } else {
      queue_.erase(&sequence);
    }
  } else {
    release_memory(sequence, keep);
  }
  sequence.state = RequestState::kFinished;
  wake_followers(sequence, true);
  if (sequence.spec.sibling_group != 0 && sequence.cacheable) {
    const auto group = groups_.find(sequence.spec.sibling_group);
    if (group->second.leader == &sequence) {
      // Nobody was waiting for it. If it got through its prefill the next one finds that in the
      // cache; if not the next one leads.
      group->second.leader = nullptr;
    }
    if (--group->second.members == 0) groups_.erase(group);
  }
  ++(kind == FinishKind::kAbort ? counters_.aborted : counters_.finished);
  if (kind != FinishKind::kAbort) message.clear();
  return {sequence.spec.id, kind, std::move(message)};
}

void SchedulerImpl::forget(Sequence& sequence) { requests_.erase(RequestId{sequence.spec.id}); }

bool SchedulerImpl::flush_cache() {
  if (!requests_.empty()) return false;
  tree_.clear();
  return true;
}

SchedulerStats SchedulerImpl::stats() const {
  SchedulerStats stats = counters_;
  const int64_t page = config_.page_size;
  stats.running = static_cast<int>(running_.size());
  stats.waiting = static_cast<int>(requests_.size() - running_.size());
  stats.free_tokens = pool_.free_pages() * page;
  stats.evictable_tokens = tree_.evictable_pages() * page;
  stats.total_tokens = pool_.num_pages() * page;
  stats.used_tokens = stats.total_tokens - stats.free_tokens - stats.evictable_tokens;
  stats.evicted_tokens = tree_.stats().evicted_pages * static_cast<uint64_t>(page);
  stats.new_token_ratio = ratio_.value();
  stats.mixed_prefill_tokens = step_budget_.mixed_tokens();
  return stats;
}

int SchedulerImpl::retractions(RequestId id) const {
  const auto found = requests_.find(id);
  return found == requests_.end() ? 0 : found->second->retractions;
}

}  // namespace capstan::scheduler
