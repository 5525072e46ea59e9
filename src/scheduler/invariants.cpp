// SchedulerImpl::check_invariants(): what must hold between any two calls.
#include <algorithm>
#include <string>

#include "scheduler/scheduler_impl.h"

namespace capstan::scheduler {
namespace {

Error broken(const std::string& what) { return internal_error("scheduler: " + what); }

}  // namespace

Status SchedulerImpl::check_invariants() const {
  CAPSTAN_RETURN_IF_ERROR(pool_.check());
  CAPSTAN_RETURN_IF_ERROR(tree_.check());
  CAPSTAN_RETURN_IF_ERROR(queue_.check());

  // Running requests: page tables, pins, token counts.
  std::vector<uint8_t> seen(static_cast<size_t>(config_.num_pages), 0);
  int own = 0;
  int pins = 0;
  int in_flight = 0;
  for (const Sequence* s : running_) {
    const std::string who = "request " + std::to_string(s->spec.id);
    const auto found = requests_.find(s->spec.id);
    if (found == requests_.end() || found->second.get() != s) return broken(who + " is lost");
    if (s->state != RequestState::kPrefill && s->state != RequestState::kDecode) {
      return broken(who + " runs in a state that does not");
    }
    for (const int32_t page : s->own_pages()) {
      ++own;
      if (pool_.owner(page) != cache::PageOwner::kRequest) {
        return broken(who + " uses page " + std::to_string(page) + " that is not a request's");
      }
      if (seen[static_cast<size_t>(page)]++ != 0) {
        return broken("page " + std::to_string(page) + " is owned by two requests");
      }
    }
    const std::vector<int32_t> path = tree_.path_pages(s->pin);
    if (static_cast<int>(path.size()) != s->pin.pages() ||
        !std::equal(path.begin(), path.end(), s->pages.begin())) {
      return broken(who + " has other pages in its table than in the tree");
    }
    pins += s->pin.node() != nullptr;
    in_flight += s->in_flight;
    const auto covered = static_cast<int64_t>(s->pages.size()) * config_.page_size;
    if (covered < s->computed || s->computed > s->length()) {
      return broken(who + " computed " + std::to_string(s->computed) + " of " +
                    std::to_string(s->length()) + " tokens in pages for " +
                    std::to_string(covered));
    }
    if (static_cast<int>(s->pages.size()) > pages_for(s->length() + s->drafts())) {
      return broken(who + " holds " + std::to_string(s->pages.size()) + " pages for " +
                    std::to_string(s->length()) + " tokens and " + std::to_string(s->drafts()) +
                    " drafts");
    }
    if (!s->draft.empty() &&
        (s->state != RequestState::kDecode || s->drafts() < 1 ||
         s->draft.front() != s->tokens.back() || s->outputs() + s->drafts() >= s->max_new)) {
      return broken(who + " has " + std::to_string(s->drafts()) + " drafts that it cannot use");
    }
    if (s->pin.pages() * config_.page_size > s->computed) {
      return broken(who + " has pages in the tree that it has not computed");
    }
    if (s->state == RequestState::kDecode && s->computed != s->length() - 1) {
      return broken(who + " decodes with " + std::to_string(s->length() - s->computed) +
                    " tokens to compute");
    }
    if (s->outputs() > s->max_new) return broken(who + " wrote more than it may");
    if (!s->cacheable && s->pin.node() != nullptr) return broken(who + " must not use the cache");
  }
  if (own != pool_.request_pages()) {
    return broken("requests hold " + std::to_string(own) + " pages, the pool says " +
                  std::to_string(pool_.request_pages()));
  }
  if (pins != tree_.live_pins()) {
    return broken(std::to_string(tree_.live_pins()) + " pins live, requests hold " +
                  std::to_string(pins));
  }
  if (in_flight != static_cast<int>(in_flight_.size())) return broken("items in flight are lost");
  if (running_.size() > static_cast<size_t>(config_.max_running_requests)) {
    return broken(std::to_string(running_.size()) + " requests run, the limit is " +
                  std::to_string(config_.max_running_requests));
  }

  // Waiting requests: in the queue or parked, holding nothing.
  size_t running = 0;
  size_t queued = 0;
  int fresh_waiting = 0;
  std::unordered_map<uint64_t, int> members;
  for (const auto& [id, owned] : requests_) {
    Sequence* s = owned.get();
    const std::string who = "request " + std::to_string(id);
    if (s->spec.sibling_group != 0 && s->cacheable) ++members[s->spec.sibling_group];
    for (const Sequence* follower : s->followers) {
      if (follower->parked_on != s) return broken("a follower of " + who + " follows another");
    }
    if (s->state != RequestState::kWaiting) {
      ++running;
      continue;
    }
    fresh_waiting += fresh(*s);
    if (!s->pages.empty() || s->pin.node() != nullptr || s->computed != 0 || !s->draft.empty()) {
      return broken(who + " waits and holds pages or drafts");
    }
    const bool is_queued = queue_.contains(s);
    queued += is_queued;
    if (is_queued == (s->parked_on != nullptr)) {
      return broken(who + (is_queued ? " is queued and parked" : " waits nowhere"));
    }
    if (s->parked_on != nullptr) {
      const Sequence& leader = *s->parked_on;
      if (std::count(leader.followers.begin(), leader.followers.end(), s) != 1) {
        return broken(who + " is not known to the one it waits for");
      }
      if (!s->parked_as_sibling && leader.state != RequestState::kPrefill) {
        return broken(who + " waits for a prefill that nobody computes");
      }
    }
  }
  if (running != running_.size()) return broken("running requests are lost");
  if (queued != queue_.size()) return broken("the queue holds requests that have left");
  if (fresh_waiting != fresh_waiting_) {
    return broken(std::to_string(fresh_waiting) + " new requests wait, counted " +
                  std::to_string(fresh_waiting_));
  }
  if (config_.max_queued_requests >= 0 && fresh_waiting > config_.max_queued_requests) {
    return broken(std::to_string(fresh_waiting) + " new requests wait, the limit is " +
                  std::to_string(config_.max_queued_requests));
  }
  if (members.size() != groups_.size()) return broken("a sibling group outlived its members");
  for (const auto& [id, count] : members) {
    const auto group = groups_.find(id);
    if (group == groups_.end() || group->second.members != count) {
      return broken("sibling group " + std::to_string(id) + " is miscounted");
    }
  }
  return {};
}

}  // namespace capstan::scheduler
