// SchedulerImpl: proposed tokens, from propose() over the plan to commit.
//
// Drafts take what memory is left when everybody else has theirs, and only for the step: pages that
// were taken for drafts and not filled by accepted ones go back at commit. So a proposal never
// delays, pushes back or keeps out a request.
#include <algorithm>

#include "scheduler/scheduler_impl.h"

namespace capstan::scheduler {

void SchedulerImpl::propose(RequestId id, std::span<const int32_t> drafts) {
  if (!in_flight_.empty()) return;
  const auto found = requests_.find(id);
  if (found == requests_.end() || found->second->state != RequestState::kDecode) return;
  Sequence& s = *found->second;
  // A step gives one token more than it accepts.
  const auto most = static_cast<size_t>(std::max(s.max_new - s.outputs() - 1, 0));
  drafts = drafts.first(std::min(drafts.size(), most));
  s.draft.clear();
  if (drafts.empty()) return;
  s.draft.push_back(s.tokens.back());
  s.draft.insert(s.draft.end(), drafts.begin(), drafts.end());
}

void SchedulerImpl::make_draft_room(const StepPlan& plan) {
  for (Sequence* s : running_) {
    if (s->draft.empty()) continue;
    const auto covered = [&] {
      return static_cast<int64_t>(s->pages.size()) * config_.page_size - s->length();
    };
    // Whoever was just pushed back wants to find its prefix again.
    while (covered() < s->drafts() && plan.retracted == 0 && available_pages() > 0) {
      s->pages.push_back(take_page());
    }
    const auto kept = static_cast<size_t>(std::min<int64_t>(covered(), s->drafts()));
    s->draft.resize(kept == 0 ? 0 : kept + 1);
  }
}

void SchedulerImpl::drop_drafts(Sequence& s) {
  if (s.draft.empty()) return;
  s.draft.clear();
  const auto needed = static_cast<size_t>(pages_for(s.length()));
  if (s.pages.size() <= needed) return;
  pool_.release_from_request(std::span(s.pages).subspan(needed));
  s.pages.resize(needed);
}

}  // namespace capstan::scheduler
