// SchedulerImpl::plan(): who computes what in the next step.
//
// Order of decisions: running decodes first (making room for their next token, if need be by
// pushing back others), then prefills under way, then admissions, then drafts. Each admission is
// decided on counts alone, and touches pool and tree only when it is certain.
#include <algorithm>
#include <cmath>

#include "scheduler/scheduler_impl.h"

namespace capstan::scheduler {

StepPlan SchedulerImpl::plan(double now) {
  StepPlan plan;
  plan.finished = std::exchange(ended_, {});
  if (!in_flight_.empty()) return plan;  // the last plan was neither committed nor abandoned
  ++plan_number_;
  plan_time_ = now;
  if (running_.empty()) ratio_.idle();
  make_decode_room(plan);
  schedule_prefill(plan);
  make_draft_room(plan);
  build_items(plan);
  return plan;
}

int32_t SchedulerImpl::take_page() {
  if (pool_.free_pages() == 0) tree_.evict(1);
  return pool_.allocate();
}

void SchedulerImpl::make_decode_room(StepPlan& plan) {
  const auto needs_page = [&](const Sequence& s) {
    return s.state == RequestState::kDecode &&
           static_cast<int64_t>(s.pages.size()) * config_.page_size < s.length();
  };
  int needed = 0;
  for (const Sequence* sequence : running_) needed += needs_page(*sequence);
  if (needed == 0) return;
  // add() saw to it that the last one left always fits.
  while (needed > available_pages() && running_.size() > 1) {
    Sequence* victim = choose_victim();
    needed -= needs_page(*victim);
    retract(*victim, plan);
  }
  if (plan.retracted > 0) {
    int64_t written = 0;
    int64_t asked = 0;
    for (const Sequence* sequence : running_) {
      written += sequence->outputs();
      asked += sequence->max_new;
    }
    ratio_.retraction(written, asked, static_cast<int>(running_.size()));
  }
  for (Sequence* sequence : running_) {
    if (needs_page(*sequence)) sequence->pages.push_back(take_page());
  }
}

// Fewest outputs first, of these the longest prompt (it holds most), of these the latest. The
// request with most outputs is never chosen, so every step in which somebody is pushed back still
// writes a token, and all come to an end.
Sequence* SchedulerImpl::choose_victim() const {
  const auto goes_first = [&](const Sequence* a, const Sequence* b) {
    if (config_.retract_by_priority) {
      const long double pa = base_priority(*a);
      const long double pb = base_priority(*b);
      if (pa != pb) return pa < pb;
    }
    if (a->outputs() != b->outputs()) return a->outputs() < b->outputs();
    if (a->prompt_tokens != b->prompt_tokens) return a->prompt_tokens > b->prompt_tokens;
    return a->arrival > b->arrival;
  };
  return *std::min_element(running_.begin(), running_.end(), goes_first);
}

void SchedulerImpl::retract(Sequence& victim, StepPlan& plan) {
  release_memory(victim, true);
  std::erase(running_, &victim);
  ++victim.retractions;
  victim.retracted_at = plan_number_;
  victim.times_parked = 0;
  victim.chunk = 0;
  enqueue(victim);
  wake_followers(victim, false);
  ++counters_.retractions;
  ++plan.retracted;
}

// What is computed stays findable; what is not, or may not be cached, is free.
void SchedulerImpl::release_memory(Sequence& sequence, bool keep) {
  if (keep) keep_computed(sequence);
  pool_.release_from_request(sequence.own_pages());
  sequence.pages.clear();
  sequence.pin.reset();
  sequence.computed = 0;
  sequence.draft.clear();
}

void SchedulerImpl::keep_computed(Sequence& sequence) {
  if (!sequence.cacheable) return;
  const int32_t whole = sequence.computed / config_.page_size * config_.page_size;
  tree_.extend(sequence.pin, sequence.spec.cache_namespace, sequence.first(whole), sequence.pages);
}

// Pages that the sequence will ask for yet if it writes `share` of the output it may.
int SchedulerImpl::future_pages(const Sequence& sequence, double share) const {
  const int left = std::min(sequence.max_new - sequence.outputs(), config_.clip_max_new_tokens);
  const auto outputs = static_cast<int64_t>(std::ceil(left * share));
  // The token written last is not stored.
  const int64_t stored = sequence.length() + std::max<int64_t>(outputs - 1, 0);
  return pages_for(stored) -
         std::max(pages_for(sequence.length()), static_cast<int>(sequence.pages.size()));
}

int SchedulerImpl::reserved_pages() {
  if (reserved_ < 0) {
    reserved_ = 0;
    for (const Sequence* sequence : running_) {
      reserved_ += std::max(future_pages(*sequence, ratio_.value()), 0);
    }
  }
  return reserved_;
}

void SchedulerImpl::schedule_prefill(StepPlan& plan) {
  prefilling_.clear();
  StepWork decodes;
  for (Sequence* sequence : running_) {
    sequence->chunk = 0;
    if (sequence->state == RequestState::kPrefill) {
      prefilling_.push_back(sequence);
    } else {
      decodes.add_decode(sequence->length() - 1, 1 + sequence->drafts());
    }
  }
  step_budget_.begin(decodes, joining());
  reserved_ = -1;
  // After a retraction memory is short: nobody new this time.
  bool open = plan.retracted == 0 && !queue_.empty();
  if (open && !config_.enable_priority &&
      running_.size() >= static_cast<size_t>(config_.max_running_requests)) {
    open = false;
  }
  if (open) queue_.begin_plan(tree_, config_.page_size);

  if (config_.enable_priority) {
    std::stable_sort(prefilling_.begin(), prefilling_.end(),
                     [](const Sequence* a, const Sequence* b) { return a->rank < b->rank; });
  }
  const size_t under_way = prefilling_.size();
  for (size_t i = 0; i < under_way && !step_budget_.spent(); ++i) {
    Sequence* sequence = prefilling_[i];
    while (open && config_.enable_priority && !step_budget_.spent()) {
      Sequence* waiting = queue_.next();
      if (waiting == nullptr || waiting->rank >= sequence->rank) break;
      open = try_admit(*waiting, plan);
    }
    if (sequence->state == RequestState::kPrefill) give_chunk(*sequence);
  }
  while (open && !step_budget_.spent()) {
    Sequence* waiting = queue_.next();
    if (waiting == nullptr) break;
    open = try_admit(*waiting, plan);
  }
}

// How many of those who do not decode yet will once the step's prefills and admissions are through:
// as many as there is room for, if each needs what a running request holds on average.
int SchedulerImpl::joining() const {
  const int running = static_cast<int>(running_.size());
  if (running == 0) return 0;
  const auto prefilling = static_cast<int>(prefilling_.size());
  const int waiting = static_cast<int>(requests_.size()) - running;
  const int slots = std::max(config_.max_running_requests - running, 0);
  const int held = std::max((config_.num_pages - available_pages()) / running, 1);
  return prefilling + std::min({waiting, slots, available_pages() / held});
}

void SchedulerImpl::give_chunk(Sequence& sequence) {
  sequence.chunk = step_budget_.fits(sequence.computed, sequence.length() - sequence.computed);
  step_budget_.take(sequence.computed, sequence.chunk);
}

// A running request that is about to compute prefix pages which `sequence` lacks; null if none
// would save it enough. `shared` is the number of pages to wait for.
Sequence* SchedulerImpl::worth_waiting_for(const Sequence& sequence, int matched,
                                           int& shared) const {
  constexpr int kTimes = 2;         // so that nobody is held back for ever
  constexpr size_t kLookedAt = 64;  // so that a step that admits hundreds stays linear
  if (!sequence.cacheable || config_.in_batch_sharing_tokens < 0 ||
      sequence.times_parked >= kTimes) {
    return nullptr;
  }
  const auto page = static_cast<size_t>(config_.page_size);
  const auto from = static_cast<std::ptrdiff_t>(static_cast<size_t>(matched) * page);
  const auto usable = static_cast<size_t>(usable_pages(sequence, config_.page_size)) * page;
  const int least = std::max(config_.in_batch_sharing_tokens, config_.page_size);
  if (static_cast<std::ptrdiff_t>(usable) - from < least) return nullptr;
  Sequence* best = nullptr;
  shared = matched;
  const size_t looked_at = std::min(prefilling_.size(), kLookedAt);
  for (size_t i = prefilling_.size() - looked_at; i < prefilling_.size(); ++i) {
    Sequence* other = prefilling_[i];
    if (other->state != RequestState::kPrefill || !other->cacheable ||
        other->spec.cache_namespace != sequence.spec.cache_namespace ||
        other->rank > sequence.rank) {  // never wait for less urgent work
      continue;
    }
    const size_t end = std::min(usable, other->tokens.size());
    if (static_cast<std::ptrdiff_t>(end) - from < least) continue;
    const auto begin = sequence.tokens.begin();
    const auto [differs, ignored] = std::mismatch(
        begin + from, begin + static_cast<std::ptrdiff_t>(end), other->tokens.begin() + from);
    if (differs - begin - from < least) continue;
    if (!std::equal(begin, begin + from, other->tokens.begin())) continue;
    const int pages = static_cast<int>(differs - begin) / config_.page_size;
    if (pages > shared) {
      shared = pages;
      best = other;
    }
  }
  if ((shared - matched) * config_.page_size < least) return nullptr;
  return best;
}

bool SchedulerImpl::fits(int needed, int future, int newly_locked, int gained_pages,
                         int gained_slots, int freed_reserve) {
  if (running_.size() >= static_cast<size_t>(config_.max_running_requests + gained_slots)) {
    return false;
  }
  const int available = available_pages() + gained_pages - newly_locked;
  if (needed > available) return false;
  // The last one running needs no reserve: it alone always fits.
  if (running_.size() == static_cast<size_t>(gained_slots)) return true;
  return needed + future + reserved_pages() - freed_reserve <= available;
}

// Pushes back running requests of so much lower priority that `sequence` fits, or none.
bool SchedulerImpl::preempt_for(const Sequence& sequence, int needed, int future,
                                const cache::RadixTree::Match& match, StepPlan& plan) {
  if (!config_.enable_priority || config_.disable_priority_preemption) return false;
  const long double above =
      base_priority(sequence) - static_cast<long double>(config_.priority_preemption_threshold);
  std::vector<Sequence*> victims;
  for (Sequence* running : running_) {
    if (base_priority(*running) < above && running->admitted_at != plan_number_) {
      victims.push_back(running);
    }
  }
  std::sort(victims.begin(), victims.end(), [&](const Sequence* a, const Sequence* b) {
    const long double pa = base_priority(*a);
    const long double pb = base_priority(*b);
    return pa != pb ? pa < pb : a->arrival > b->arrival;
  });
  int pages = 0;
  int pinned = 0;  // by victims alone
  int reserve = 0;
  size_t count = 0;
  bool enough = false;
  while (!enough && count < victims.size()) {
    const Sequence& victim = *victims[count++];
    // Counts too little where victims share a prefix: then one more goes, or nobody.
    const int exclusive = tree_.exclusive_pages(victim.pin);
    pinned += exclusive;
    pages += static_cast<int>(victim.own_pages().size()) + exclusive;
    reserve += std::max(future_pages(victim, ratio_.value()), 0);
    // What victims pin may be just what `sequence` has matched, and would stay pinned.
    const int relocked =
        match.unlocked_pages + std::min(pinned, match.pages - match.unlocked_pages);
    enough = fits(needed, future, relocked, pages, static_cast<int>(count), reserve);
  }
  if (!enough) return false;
  for (size_t i = 0; i < count; ++i) retract(*victims[i], plan);
  reserved_ = -1;
  return true;
}

// False when admission is over for this plan.
bool SchedulerImpl::try_admit(Sequence& sequence, StepPlan& plan) {
  if (sequence.retracted_at == plan_number_) return false;
  const int usable = usable_pages(sequence, config_.page_size);
  const auto match = tree_.peek(sequence.spec.cache_namespace, sequence.tokens, usable);
  int shared = 0;
  if (Sequence* leader = worth_waiting_for(sequence, match.pages, shared)) {
    queue_.erase(&sequence);
    ++sequence.times_parked;
    park(sequence, *leader, shared, false);
    return true;
  }
  const int cached = match.pages * config_.page_size;
  if (step_budget_.fits(cached, sequence.length() - cached) == 0) return false;
  const int needed = pages_for(sequence.length()) - match.pages;
  const int future = future_pages(sequence, 1.0);
  if (!fits(needed, future, match.unlocked_pages, 0, 0, 0) &&
      !preempt_for(sequence, needed, future, match, plan)) {
    return false;
  }

  queue_.admitted(&sequence);
  sequence.pin =
      tree_.acquire(sequence.spec.cache_namespace, sequence.tokens, usable, sequence.pages);
  const int missing = pages_for(sequence.length()) - sequence.pin.pages();
  if (missing > pool_.free_pages()) tree_.evict(missing - pool_.free_pages());
  if (!pool_.allocate(missing, sequence.pages)) {  // the counts above were wrong: wait
    release_memory(sequence, false);
    enqueue(sequence);
    return false;
  }
  sequence.computed = sequence.pin.pages() * config_.page_size;
  sequence.cached_tokens = sequence.computed;
  sequence.first_chunk = true;
  sequence.state = RequestState::kPrefill;
  sequence.admitted_at = plan_number_;
  if (fresh(sequence)) --fresh_waiting_;
  if (!sequence.admitted && !sequence.spec.no_cache) {
    counters_.prompt_tokens += static_cast<uint64_t>(sequence.prompt_tokens);
    counters_.cached_prompt_tokens += static_cast<uint64_t>(sequence.cached_tokens);
  }
  sequence.admitted = true;
  reserved_ = reserved_pages() + future;
  running_.push_back(&sequence);
  prefilling_.push_back(&sequence);
  give_chunk(sequence);
  ++plan.admitted;
  plan.cached_tokens += sequence.cached_tokens;
  return true;
}

void SchedulerImpl::build_items(StepPlan& plan) {
  plan.items.reserve(running_.size());
  in_flight_.reserve(running_.size());
  const auto add = [&](Sequence& s, int32_t start, int32_t count, bool is_decode) {
    PlanItem& item = plan.items.emplace_back();
    item.drafts = is_decode ? s.drafts() : 0;
    item.id = s.spec.id;
    item.start = start;
    item.count = count + item.drafts;
    item.tokens = item.drafts > 0 ? std::span<const int32_t>(s.draft)
                                  : s.first(start + count).subspan(static_cast<size_t>(start));
    item.pages = std::span(s.pages).first(static_cast<size_t>(pages_for(start + item.count)));
    item.samples = start + count == s.length() && s.outputs() < s.max_new;
    item.is_decode = is_decode;
    item.cached_tokens = s.cached_tokens;
    item.first_chunk = s.first_chunk;
    s.in_flight = true;
    in_flight_.push_back(&s);
  };
  for (Sequence* s : running_) {
    if (s->state != RequestState::kDecode) continue;
    add(*s, s->length() - 1, 1, true);
    plan.decode_tokens += plan.items.back().count;
    plan.draft_tokens += plan.items.back().drafts;
  }
  for (Sequence* s : running_) {
    if (s->chunk == 0) continue;
    add(*s, s->computed, s->chunk, false);
    plan.prefill_tokens += s->chunk;
  }
}

}  // namespace capstan::scheduler
