#include "engine/speculator.h"

#include <algorithm>
#include <limits>

#include "base/log.h"

namespace capstan::engine {
namespace {

// Before anything was tried: drafts after a match of 2, 3, 4-5, 6-8, 9-16 and more tokens. Copied
// code and quotations do better, prose does worse; a few trials correct it.
constexpr std::array<float, Draft::kEvidence> kFirstGuess = {0.3f, 0.4f, 0.5f, 0.6f, 0.7f, 0.8f};
constexpr float kGuessWeighs = 4;        // trials
constexpr float kRequestRemembers = 32;  // trials that older ones count as
constexpr float kAllRemember = 512;

constexpr int32_t kWholePrompt = std::numeric_limits<int32_t>::max();
// A text that is only tried: after so many drafts it is known whether they hold, and so much of its
// prompt is context enough.
constexpr int kTrialDrafts = 16, kFirstLook = 2;
constexpr int32_t kTrialContext = 512;

}  // namespace

std::unique_ptr<Speculator> Speculator::create(const SpeculationConfig& config,
                                               const NextnOptions& nextn, Clock clock) {
  using Source = SpeculationConfig::Source;
  if (config.source == Source::kNone || config.max_drafts < 1) return nullptr;
  return std::make_unique<Speculator>(
      config, config.source == Source::kNextn ? make_nextn_source(nextn) : make_ngram_source(),
      std::move(clock));
}

Speculator::Speculator(const SpeculationConfig& config, std::unique_ptr<DraftSource> source,
                       Clock clock)
    : config_(config),
      source_(std::move(source)),
      clock_(std::move(clock)),
      depth_(source_->computes()),
      policy_(config.max_drafts) {}

void Speculator::Record::count(int evidence, bool holds) {
  held[static_cast<size_t>(evidence)] += holds;
  tried[static_cast<size_t>(evidence)] += 1;
}

void Speculator::Record::limit(int evidence, float most) {
  const auto e = static_cast<size_t>(evidence);
  if (tried[e] <= most) return;
  held[e] *= most / tried[e];
  tried[e] = most;
}

Speculator::Text* Speculator::find(RequestId id) {
  const auto found = texts_.find(id);
  return found == texts_.end() ? nullptr : &found->second;
}

void Speculator::begin(RequestId id, std::span<const int32_t> prompt) {
  source_->begin(id, prompt);
  texts_.try_emplace(id);
}

void Speculator::end(RequestId id) {
  if (const Text* text = find(id)) end_trial(id, *text);
  source_->end(id);
  texts_.erase(id);
}

// What was drafted but not verified is judged too, as far as the text went on: so it is known how
// good drafts would be while none are worth a row.
void Speculator::wrote(RequestId id, std::span<const OutputToken> tokens) {
  Text* const text = find(id);
  if (text == nullptr) return;
  const size_t judged = std::min(text->expected.size(), tokens.size());
  for (size_t i = 0; i < judged; ++i) {
    const bool holds = text->expected[i] == tokens[i].token;
    text->record.count(text->evidence, holds);
    text->record.limit(text->evidence, kRequestRemembers);
    all_.count(text->evidence, holds);
    all_.limit(text->evidence, kAllRemember);
    judged_ += trial_ == id;
    if (!holds) break;
  }
  text->expected.clear();
  took_.tokens += static_cast<int>(tokens.size());
  if (trial_ == id && (judged_ >= kTrialDrafts || hopeless(*text))) end_trial(id, *text);
  written_.clear();
  for (const OutputToken& token : tokens) written_.push_back(token.token);
  source_->append(id, written_);
}

double Speculator::general(int evidence) const {
  const auto e = static_cast<size_t>(evidence);
  return (kGuessWeighs * kFirstGuess[e] + all_.held[e]) / (kGuessWeighs + all_.tried[e]);
}

double Speculator::acceptance(const Text& text, int evidence) const {
  const auto e = static_cast<size_t>(evidence);
  return (kGuessWeighs * general(evidence) + text.record.held[e]) /
         (kGuessWeighs + text.record.tried[e]);
}

void Speculator::propose(scheduler::Scheduler& scheduler, std::span<const RequestId> decoding) {
  step_began_ = false;
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
    Text& text = *find(draft.id);
    text.expected = draft.tokens;
    text.evidence = draft.evidence;
    candidates_.push_back(
        {acceptance(text, draft.evidence), static_cast<int>(draft.tokens.size())});
  }
  if (config_.adaptive) {
    depth_.choose(candidates_, static_cast<int>(drafts_.size()), depths_);
  }
  for (size_t i = 0; i < drafts_.size(); ++i) {
    std::span<const int32_t> tokens = drafts_[i].tokens;
    if (config_.adaptive) tokens = tokens.first(static_cast<size_t>(depths_[i]));
    if (!tokens.empty()) scheduler.propose(drafts_[i].id, tokens);
  }
}

std::span<const int32_t> Speculator::hidden_rows(const PassInput& in) {
  rows_.clear();
  if (!source_->computes()) return rows_;
  if (!step_began_) begin_step(in.plan);
  source_->choose_rows(in, rows_);
  return rows_;
}

void Speculator::begin_step(const scheduler::StepPlan& plan) {
  step_began_ = true;
  const int followed = took_.followed;
  const bool drafted = took_.links > 0;
  took_ = {};
  took_.load = static_cast<int>(plan.items.size());
  policy_.begin_step(depth_, took_.load, std::max(followed, 1));
  if (config_.adaptive) {
    follow_texts(plan, drafted);
  } else {
    follow_all(plan);
  }
  choose_links(plan);
}

void Speculator::follow_all(const scheduler::StepPlan& plan) {
  for (const scheduler::PlanItem& item : plan.items) {
    Text* const text = find(item.id);
    if (text != nullptr && !text->followed) follow(item.id, *text, true, kWholePrompt);
  }
}

/// Whether drafts would pay for those together that could be followed: a few of many may be too few
/// to share the cost of a pass.
bool Speculator::enough_to_follow(const scheduler::StepPlan& plan) {
  // On a mere guess nobody is followed.
  if (!tried_) return false;
  if (!depth_.times().known(took_.load)) return true;  // to be seen
  candidates_.clear();
  for (const scheduler::PlanItem& item : plan.items) {
    const Text* const text = find(item.id);
    if (text == nullptr) continue;  // a probe
    const double expected = acceptance(*text, Draft::kOfLayer);
    const bool could = item.first_chunk ? policy_.begins(expected) : policy_.joins(expected);
    if (text->followed || could) candidates_.push_back({expected, config_.max_drafts});
  }
  return depth_.worth_making(candidates_, took_.load, policy_.pass()) > 0;
}

void Speculator::follow_texts(const scheduler::StepPlan& plan, bool drafted) {
  const bool enough = enough_to_follow(plan);
  const bool tries = !trial_ && !drafted && policy_.trial_due();
  const scheduler::PlanItem* other = nullptr;  // whom else to try
  for (const scheduler::PlanItem& item : plan.items) {
    Text* const text = find(item.id);
    if (text == nullptr || trial_ == item.id) continue;
    const double expected = acceptance(*text, Draft::kOfLayer);
    const bool kept = other != nullptr && find(other->id)->followed;
    if (item.first_chunk) {
      const bool begins = enough && policy_.begins(expected);
      if (begins || text->followed) follow(item.id, *text, begins, kWholePrompt);
      if (!begins && tries && !trial_ && !kept) try_out(item.id, *text);
    } else if (text->followed) {
      if (policy_.leaves(expected)) follow(item.id, *text, false, 0);
    } else if (enough && item.is_decode && policy_.joins(expected)) {
      follow(item.id, *text, true, kWholePrompt);
    }
    if (item.is_decode && (other == nullptr || text->followed)) other = &item;
  }
  if (!tries || trial_ || other == nullptr) return;
  Text& text = *find(other->id);
  const bool pays = enough && policy_.joins(acceptance(text, Draft::kOfLayer));
  if (!pays && (text.followed || policy_.trial_waited())) try_out(other->id, text);
}

/// How many drafts to make after this step: as many as are worth it in the next, if that is like
/// this one.
void Speculator::choose_links(const scheduler::StepPlan& plan) {
  candidates_.clear();
  for (const scheduler::PlanItem& item : plan.items) {
    const Text* const text = find(item.id);
    took_.prompt_rows += item.is_decode ? 0 : item.count;
    if (text == nullptr || !text->followed) continue;
    ++took_.followed;
    took_.followed_prompt_rows += item.is_decode ? 0 : item.count;
    if (!item.samples) continue;
    ++took_.tips;
    candidates_.push_back({acceptance(*text, Draft::kOfLayer), config_.max_drafts});
  }
  took_.decode_rows = plan.decode_tokens;
  took_.trial = trial_.has_value();
  if (took_.tips == 0) return;
  if (!config_.adaptive) {
    took_.links = config_.max_drafts;
  } else {
    if (!policy_.rests()) {
      took_.links = depth_.worth_making(candidates_, took_.load, policy_.pass());
    }
    if (trial_) took_.links = std::max(took_.links, 1);
  }
}

void Speculator::follow(RequestId id, Text& text, bool on, int32_t context) {
  text.followed = on;
  source_->follow(id, on, context);
}

void Speculator::try_out(RequestId id, Text& text) {
  trial_ = id;
  judged_ = 0;
  // Whatever was before counts no more than two trials.
  text.record = {};
  all_.limit(Draft::kOfLayer, 2 * kTrialDrafts);
  if (!text.followed) follow(id, text, true, kTrialContext);
}

/// Whether the trial of a text need not go on. The first one is made before its time is earned: as
/// soon as times are known it goes on only where drafts are likely to pay.
bool Speculator::hopeless(const Text& text) const {
  if (!tried_ && judged_ >= kFirstLook && !policy_.joins(general(Draft::kOfLayer))) return true;
  return policy_.hopeless(static_cast<int>(text.record.held[Draft::kOfLayer]), judged_);
}

void Speculator::end_trial(RequestId id, const Text& text) {
  if (trial_ != id) return;
  policy_.trial_ended(acceptance(text, Draft::kOfLayer));
  trial_.reset();
  tried_ |= judged_ > 0;
  judged_ = 0;
}

void Speculator::observe(const PassOutput& out, model::KvStore& kv) {
  const double began = clock_();
  if (const Status status = source_->observe(out, took_.links, kv); !status.ok()) {
    LOG_WARN("No drafts in this step: {}", status.error().message);
  }
  took_.drafting += clock_() - began;
}

void Speculator::step_took(const scheduler::StepPlan& plan, double seconds) {
  took_.seconds = seconds - took_.drafting;
  if (plan.prefill_tokens == 0) {
    depth_.observe(plan.decode_tokens, plan.draft_tokens, took_.seconds);
  }
  if (source_->computes()) policy_.step_took(depth_, took_);
}

}  // namespace capstan::engine
