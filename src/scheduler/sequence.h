// The scheduler's record of one request. Internal to this folder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache/radix_tree.h"
#include "scheduler/request.h"

namespace capstan::scheduler {

struct Sequence {
  RequestSpec spec;             // its prompt was moved to the front of `tokens`
  std::vector<int32_t> tokens;  // prompt, then output
  int32_t prompt_tokens = 0;
  int32_t max_new = 0;   // cut to what the context allows
  uint64_t arrival = 0;  // ascending number of add()
  bool cacheable = true;

  // Place in the waiting queue.
  long double rank = 0;     // of its priority with ageing; smaller goes first
  double policy_key = 0;    // kLof, kRandom; smaller goes first
  int times_parked = 0;     // behind another request's prefill, since it was last queued
  uint64_t peeked_at = ~0;  // version of the tree that peeked_pages was taken from
  int peeked_pages = 0;
  Sequence* parked_on = nullptr;     // waits until that one's prefill is in the cache, or
  int parked_pages = 0;              // until so many of its pages are
  bool parked_as_sibling = false;    // of the same sibling_group
  std::vector<Sequence*> followers;  // those parked on this one

  // While it runs (kPrefill, kDecode).
  RequestState state = RequestState::kWaiting;
  int32_t computed = 0;        // positions whose KV is in pages
  std::vector<int32_t> pages;  // the first pin.pages() are the tree's, the others its own
  cache::RadixTree::Pin pin;
  int32_t cached_tokens = 0;  // found at (re)admission
  bool first_chunk = false;
  int32_t chunk = 0;  // tokens given to it in the plan being made
  /// The last token and those proposed to follow it; empty without proposal.
  std::vector<int32_t> draft;
  bool in_flight = false;  // part of a plan not yet committed
  bool prefilled = false;  // its whole prompt was computed once
  bool admitted = false;   // it ran before
  FinishKind cancelled = FinishKind::kNone;
  uint64_t admitted_at = 0;   // plan number
  uint64_t retracted_at = 0;  // plan number
  int retractions = 0;

  int32_t length() const { return static_cast<int32_t>(tokens.size()); }
  int32_t outputs() const { return length() - prompt_tokens; }
  int32_t drafts() const { return draft.empty() ? 0 : static_cast<int32_t>(draft.size()) - 1; }
  std::span<const int32_t> first(int32_t count) const {
    return std::span(tokens).first(static_cast<size_t>(count));
  }
  std::span<const int32_t> own_pages() const {
    return std::span(pages).subspan(static_cast<size_t>(pin.pages()));
  }
};

}  // namespace capstan::scheduler
