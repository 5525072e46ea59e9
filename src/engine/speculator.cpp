#include "engine/speculator.h"

#include <algorithm>

#include "base/log.h"

namespace capstan::engine {
namespace {

// Before anything was tried: drafts after a match of 2, 3, 4-5, 6-8, 9-16 and more tokens. Copied
// code and quotations do better, prose does worse; a few trials correct it.
constexpr std::array<float, Draft::kEvidence> kFirstGuess = {0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f};
constexpr float kGuessWeighs = 4;      // trials
constexpr float kRequestForgets = 32;  // trials after which older ones fade
constexpr float kAllForget = 512;

}  // namespace

std::unique_ptr<Speculator> Speculator::create(const SpeculationConfig& config,
                                               const NextnOptions& nextn) {
  using Source = SpeculationConfig::Source;
  if (config.source == Source::kNone || config.max_drafts < 1) return nullptr;
  return std::make_unique<Speculator>(
      config, config.source == Source::kNextn ? make_nextn_source(nextn) : make_ngram_source());
}

void Speculator::observe(const PassOutput& out, model::KvStore& kv) {
  const int depth =
      config_.adaptive ? std::min(depth_made_, config_.max_drafts) : config_.max_drafts;
  if (const Status status = source_->observe(out, depth, kv); !status.ok()) {
    LOG_WARN("No drafts in this step: {}", status.error().message);
  }
}

/// One draft more than were worth verifying, so that it is seen when more would be; none for a
/// while when none was worth it again and again.
void Speculator::choose_depth_made() {
  constexpr int kPatience = 16, kRest = 256;
  const int verified = depths_.empty() ? 0 : *std::max_element(depths_.begin(), depths_.end());
  if (verified > 0) {
    idle_steps_ = 0;
    depth_made_ = verified + 1;
  } else if (++idle_steps_ < kPatience) {
    depth_made_ = 1;
  } else {
    depth_made_ = idle_steps_ % kRest == 0 ? 1 : 0;
  }
}

void Speculator::Record::count(int evidence, bool holds) {
  held[static_cast<size_t>(evidence)] += holds;
  tried[static_cast<size_t>(evidence)] += 1;
}

void Speculator::begin(RequestId id, std::span<const int32_t> prompt) {
  source_->begin(id, prompt);
  texts_.try_emplace(id);
}

void Speculator::end(RequestId id) {
  source_->end(id);
  texts_.erase(id);
}

// What was drafted but not verified is judged too, as far as the text went on: so it is known how
// good drafts would be while none are worth a row.
void Speculator::wrote(RequestId id, std::span<const OutputToken> tokens) {
  const auto found = texts_.find(id);
  if (found == texts_.end()) return;
  Text& text = found->second;
  const size_t judged = std::min(text.expected.size(), tokens.size());
  for (size_t i = 0; i < judged; ++i) {
    const bool holds = text.expected[i] == tokens[i].token;
    const auto fade = [&](Record& record, float most) {
      record.count(text.evidence, holds);
      const auto e = static_cast<size_t>(text.evidence);
      if (record.tried[e] <= most) return;
      record.held[e] *= 0.5f;
      record.tried[e] *= 0.5f;
    };
    fade(text.record, kRequestForgets);
    fade(all_, kAllForget);
    if (!holds) break;
  }
  text.expected.clear();
  written_.clear();
  for (const OutputToken& token : tokens) written_.push_back(token.token);
  source_->append(id, written_);
}

double Speculator::acceptance(const Text& text, int evidence) const {
  const auto e = static_cast<size_t>(evidence);
  const float general =
      (kGuessWeighs * kFirstGuess[e] + all_.held[e]) / (kGuessWeighs + all_.tried[e]);
  return (kGuessWeighs * general + text.record.held[e]) / (kGuessWeighs + text.record.tried[e]);
}

void Speculator::propose(scheduler::Scheduler& scheduler, std::span<const RequestId> decoding) {
  drafts_.clear();
  for (const RequestId id : decoding) {
    if (!texts_.contains(id)) continue;
    drafts_.emplace_back();
    drafts_.back().id = id;
    drafts_.back().most = config_.max_drafts;
  }
  source_->propose(drafts_);
  candidates_.clear();
  for (const Draft& draft : drafts_) {
    Text& text = texts_.find(draft.id)->second;
    text.expected = draft.tokens;
    text.evidence = draft.evidence;
    candidates_.push_back(
        {acceptance(text, draft.evidence), static_cast<int>(draft.tokens.size())});
  }
  if (config_.adaptive) {
    depth_.choose(candidates_, static_cast<int>(drafts_.size()), depths_);
    choose_depth_made();
  }
  for (size_t i = 0; i < drafts_.size(); ++i) {
    std::span<const int32_t> tokens = drafts_[i].tokens;
    if (config_.adaptive) tokens = tokens.first(static_cast<size_t>(depths_[i]));
    if (!tokens.empty()) scheduler.propose(drafts_[i].id, tokens);
  }
}

void Speculator::step_took(const scheduler::StepPlan& plan, double seconds) {
  if (plan.prefill_tokens == 0) depth_.observe(plan.decode_tokens, plan.draft_tokens, seconds);
}

}  // namespace capstan::engine
