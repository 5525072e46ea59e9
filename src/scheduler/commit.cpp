// SchedulerImpl::commit(): what the step just run has changed.
#include <algorithm>

#include "scheduler/scheduler_impl.h"

namespace capstan::scheduler {

std::vector<Finished> SchedulerImpl::commit(const StepPlan& plan,
                                            std::span<const SampledToken> sampled, double now) {
  std::vector<Finished> finished;
  if (plan.items.size() != in_flight_.size()) return finished;  // not the plan in flight
  const std::vector<Sequence*> sequences = std::exchange(in_flight_, {});
  for (size_t i = 0; i < sequences.size(); ++i) {
    commit_item(*sequences[i], plan.items[i], i < sampled.size() ? &sampled[i] : nullptr, finished);
  }
  if (!finished.empty()) {
    std::erase_if(running_, [](const Sequence* s) { return s->state == RequestState::kFinished; });
    for (const Finished& f : finished) requests_.erase(f.id);
  }
  StepWork work;
  for (const PlanItem& item : plan.items) {
    if (item.is_decode) {
      work.add_decode(item.start, item.count);
    } else {
      work.add_prefill(item.start, item.count);
    }
  }
  step_budget_.observe(work, now - plan_time_);
  if (plan.decode_tokens > 0) ratio_.decode_step();
  return finished;
}

void SchedulerImpl::commit_item(Sequence& s, const PlanItem& item, const SampledToken* sampled,
                                std::vector<Finished>& finished) {
  s.in_flight = false;
  s.first_chunk = false;
  s.computed = item.start + item.count - item.drafts;
  if (s.cancelled != FinishKind::kNone) {
    finished.push_back(finish(s, s.cancelled, "cancelled", true));
    return;
  }
  if (item.samples && sampled == nullptr) {
    finished.push_back(finish(s, FinishKind::kAbort, "the step gave no token", false));
    return;
  }
  if (item.samples && sampled->stop == FinishKind::kAbort) {
    // Logits that cannot be sampled from cast doubt on the KV behind them: it is not cached.
    finished.push_back(finish(s, FinishKind::kAbort, "the model gave no usable logits", false));
    return;
  }
  if (item.samples) {
    const int32_t accepted = std::clamp(sampled->accepted, 0, item.drafts);
    for (int32_t i = 1; i <= accepted; ++i) s.tokens.push_back(s.draft[static_cast<size_t>(i)]);
    s.computed += accepted;
    s.tokens.push_back(sampled->token);
  }
  drop_drafts(s);

  if (s.state == RequestState::kPrefill) {
    keep_computed(s);
    if (item.samples || s.computed == s.length()) {
      s.prefilled = true;
      s.state = RequestState::kDecode;
    }
    wake_followers(s, false);
  }
  // In the order of server-api §5.6: the length limit is looked at before the stop conditions.
  if (s.state == RequestState::kDecode && s.outputs() >= s.max_new) {
    finished.push_back(finish(s, FinishKind::kLength, {}, true));
  } else if (item.samples && sampled->stop != FinishKind::kNone) {
    finished.push_back(finish(s, sampled->stop, {}, true));
  }
}

std::vector<Finished> SchedulerImpl::abandon(const StepPlan& plan) {
  (void)plan;
  std::vector<Finished> finished;
  for (Sequence* s : std::exchange(in_flight_, {})) {
    s->in_flight = false;
    drop_drafts(*s);
    if (s->cancelled != FinishKind::kNone) {
      finished.push_back(finish(*s, s->cancelled, "cancelled", true));
    }
  }
  if (!finished.empty()) {
    std::erase_if(running_, [](const Sequence* s) { return s->state == RequestState::kFinished; });
    for (const Finished& f : finished) requests_.erase(f.id);
  }
  return finished;
}

}  // namespace capstan::scheduler
