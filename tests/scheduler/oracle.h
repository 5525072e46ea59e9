// A model that can tell right pages from wrong ones.
//
// Its "KV" of position p is a hash of tokens 0..p (salted by what must not be shared), kept by slot
// = page * page_size + offset. Its next token depends on the hash at the last position only. So a
// request's output is known from its prompt alone, and a slot that holds anything but the hash of
// the reader's own prefix is a wrong page, whoever wrote it.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "scheduler/scheduler.h"

namespace capstan::scheduler {

inline uint64_t mix(uint64_t h, uint64_t value) {
  h = (h ^ value) * 0x9FB21C651E98DF25u;
  return h ^ (h >> 29);
}

constexpr uint64_t kGarbage = 0xDEADDEADDEADDEADu;

/// What the oracle says follows the prefix with this hash.
struct Next {
  int32_t token;
  bool stop;
};
inline Next next_of(uint64_t hash, int vocabulary) {
  const uint64_t h = mix(hash, 0x1234);
  return {static_cast<int32_t>((h >> 20) % static_cast<uint64_t>(vocabulary)), (h >> 50) % 48 == 0};
}

/// One request as the tests know it.
struct Known {
  RequestSpec spec;
  int32_t max_new = 0;  // after the cut to the context
  std::vector<int32_t> tokens;
  std::vector<uint64_t> hashes;  // of tokens 0..p
  FinishKind expected = FinishKind::kNone;
  std::vector<int32_t> solo;  // its output when it runs alone
  bool cancelled = false;
  bool ended = false;
  int64_t added_at = 0;           // step
  std::vector<int32_t> proposed;  // for the next plan
  int retractions = 0;

  static uint64_t extended(uint64_t hash, int32_t token) {
    return mix(hash, static_cast<uint64_t>(token) + 1);
  }
  void push(int32_t token) {
    tokens.push_back(token);
    const uint64_t salt = mix(mix(77, spec.cache_namespace), spec.no_cache ? spec.id : 0);
    hashes.push_back(extended(hashes.empty() ? salt : hashes.back(), token));
  }
  size_t outputs() const { return tokens.size() - spec.prompt.size(); }
};

/// `spec.prompt` must still be whole. Fills everything, the solo run included.
inline Known know(RequestSpec spec, int context_length, int vocabulary, int64_t step) {
  Known known;
  known.spec = std::move(spec);
  known.added_at = step;
  known.max_new = known.spec.max_new_tokens;
  const int prompt = static_cast<int>(known.spec.prompt.size());
  if (context_length > 0) known.max_new = std::min(known.max_new, context_length - prompt);
  for (const int32_t token : known.spec.prompt) known.push(token);
  Known alone = known;
  known.expected = FinishKind::kLength;
  while (static_cast<int>(known.solo.size()) < known.max_new) {
    const Next next = next_of(alone.hashes.back(), vocabulary);
    alone.push(next.token);
    known.solo.push_back(next.token);
    if (next.stop && static_cast<int>(known.solo.size()) < known.max_new) {
      known.expected = FinishKind::kStop;
      break;
    }
  }
  return known;
}

/// Executes plans against the shadow store and checks every read and write.
class Oracle {
 public:
  Oracle(const SchedulerConfig& config, int vocabulary)
      : config_(config),
        vocabulary_(vocabulary),
        slots_(static_cast<size_t>(config.num_pages) * static_cast<size_t>(config.page_size),
               kGarbage),
        written_(slots_.size(), 0) {}

  std::unordered_map<RequestId, Known>& known() { return known_; }

  /// Runs the plan; `fail` leaves garbage in all it would have written.
  std::vector<SampledToken> run(const StepPlan& plan, bool fail) {
    ++step_;
    bool prefill_seen = false;
    std::unordered_map<RequestId, int> items;
    for (const PlanItem& item : plan.items) {
      const auto found = known_.find(item.id);
      EXPECT_TRUE(found != known_.end() && !found->second.ended) << "runs the ended " << item.id;
      if (found == known_.end()) return {};
      EXPECT_EQ(++items[item.id], 1) << "twice in a step";
      EXPECT_FALSE(item.is_decode && prefill_seen) << "decodes come first";
      prefill_seen |= !item.is_decode;
      check_shape(found->second, item);
      for (int32_t p = item.start; p < item.start + item.count; ++p) {
        EXPECT_NE(written_[slot(item, p)], step_) << "two writers of one slot";
        written_[slot(item, p)] = step_;
      }
    }
    for (const PlanItem& item : plan.items) {
      const Known& request = known_.at(item.id);
      for (int32_t p = 0; p < item.start; ++p) {
        const size_t s = slot(item, p);
        EXPECT_NE(written_[s], step_) << "reads a slot that another writes in the same step";
        EXPECT_EQ(slots_[s], request.hashes[static_cast<size_t>(p)])
            << "request " << item.id << " finds a wrong page at position " << p;
      }
    }
    std::vector<SampledToken> sampled;
    for (const PlanItem& item : plan.items) {
      const Known& request = known_.at(item.id);
      const int32_t sure = item.start + item.count - item.drafts;
      uint64_t hash = kGarbage;
      for (int32_t p = item.start; p < item.start + item.count; ++p) {
        hash = p < sure ? request.hashes[static_cast<size_t>(p)]
                        : Known::extended(hash, item.tokens[static_cast<size_t>(p - item.start)]);
        slots_[slot(item, p)] = fail ? kGarbage : hash;
      }
      SampledToken token;
      for (int32_t row = 0; item.samples && !fail && row <= item.drafts; ++row) {
        const Next next = next_of(slots_[slot(item, sure - 1 + row)], vocabulary_);
        token = {next.token, next.stop ? FinishKind::kStop : FinishKind::kNone, row};
        if (next.stop || row == item.drafts) break;
        if (item.tokens[static_cast<size_t>(sure + row - item.start)] != next.token) break;
      }
      sampled.push_back(token);
    }
    return sampled;
  }

  /// Books the tokens that the step gave, to be called before its requests are declared ended.
  void book(const StepPlan& plan, const std::vector<SampledToken>& sampled) {
    for (size_t i = 0; i < plan.items.size(); ++i) {
      Known& request = known_.at(plan.items[i].id);
      if (!plan.items[i].samples || request.cancelled) continue;
      const auto drafts = plan.items[i].tokens.last(static_cast<size_t>(plan.items[i].drafts));
      for (int32_t j = 0; j < sampled[i].accepted; ++j) {
        request.push(drafts[static_cast<size_t>(j)]);
      }
      request.push(sampled[i].token);
    }
  }

  /// The item's slots hold nonsense (a step that broke for one request).
  void spoil(const PlanItem& item) {
    for (int32_t p = item.start; p < item.start + item.count; ++p) {
      slots_[slot(item, p)] = kGarbage;
    }
  }

  void end(const Finished& finished) {
    const auto found = known_.find(finished.id);
    ASSERT_TRUE(found != known_.end()) << "an unknown request ended";
    Known& request = found->second;
    EXPECT_FALSE(request.ended) << "request " << finished.id << " ended twice";
    request.ended = true;
    const std::vector<int32_t> output(
        request.tokens.begin() + static_cast<std::ptrdiff_t>(request.spec.prompt.size()),
        request.tokens.end());
    ASSERT_LE(output.size(), request.solo.size());
    EXPECT_TRUE(std::equal(output.begin(), output.end(), request.solo.begin()))
        << "request " << finished.id << " wrote something else than alone";
    if (request.cancelled) return;
    EXPECT_EQ(finished.kind, request.expected) << "request " << finished.id;
    EXPECT_EQ(output.size(), request.solo.size());
  }

 private:
  size_t slot(const PlanItem& item, int32_t position) const {
    const auto page = static_cast<size_t>(position / config_.page_size);
    return static_cast<size_t>(item.pages[page]) * static_cast<size_t>(config_.page_size) +
           static_cast<size_t>(position % config_.page_size);
  }

  void check_shape(const Known& request, const PlanItem& item) const {
    ASSERT_GE(item.drafts, 0);
    const int32_t sure = item.count - item.drafts;
    const int32_t end = item.start + sure;
    ASSERT_GE(item.start, 0);
    ASSERT_GT(sure, 0);
    ASSERT_LE(end, static_cast<int32_t>(request.tokens.size()));
    ASSERT_EQ(item.tokens.size(), static_cast<size_t>(item.count));
    for (int32_t i = 0; i < sure; ++i) {
      ASSERT_EQ(item.tokens[static_cast<size_t>(i)],
                request.tokens[static_cast<size_t>(item.start + i)]);
    }
    ASSERT_LE(item.drafts, static_cast<int32_t>(request.proposed.size()));
    for (int32_t i = 0; i < item.drafts; ++i) {
      ASSERT_EQ(item.tokens[static_cast<size_t>(sure + i)],
                request.proposed[static_cast<size_t>(i)]);
    }
    ASSERT_EQ(
        item.pages.size(),
        static_cast<size_t>((item.start + item.count + config_.page_size - 1) / config_.page_size));
    const bool last = end == static_cast<int32_t>(request.tokens.size());
    EXPECT_EQ(item.samples, last && request.max_new > 0);
    if (item.is_decode) {
      EXPECT_EQ(sure, 1);
      EXPECT_TRUE(last);
      EXPECT_GT(request.outputs(), 0u);
      EXPECT_LE(static_cast<int32_t>(request.outputs()) + item.drafts + 1,
                std::max(request.max_new, 1));
    } else {
      EXPECT_EQ(item.drafts, 0);
    }
    EXPECT_EQ(item.cached_tokens % config_.page_size, 0);
    EXPECT_LT(item.cached_tokens, static_cast<int32_t>(request.tokens.size()));
    if (item.first_chunk) {
      EXPECT_EQ(item.start, item.cached_tokens);
    }
    if (request.spec.no_cache || config_.disable_radix_cache) {
      EXPECT_EQ(item.cached_tokens, 0);
    }
    if (request.spec.logprob_start >= 0 && request.outputs() == 0) {
      EXPECT_LE(item.cached_tokens, std::max(request.spec.logprob_start - 1, 0));
    }
  }

  const SchedulerConfig config_;
  int vocabulary_;
  int64_t step_ = 0;
  std::vector<uint64_t> slots_;
  std::vector<int64_t> written_;
  std::unordered_map<RequestId, Known> known_;
};

}  // namespace capstan::scheduler
