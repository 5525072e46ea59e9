// The engine's loop over the null model with a draft layer, on a clock of its own: steps and passes
// of the layer take what the test says, so decisions that follow from measured times are
// reproducible.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>

#include "engine/batch_builder.h"
#include "engine/null_model.h"
#include "engine/row_math.h"
#include "engine/speculator.h"

namespace capstan::engine {

struct SimulatedCosts {
  std::function<double(int rows)> step;    // seconds of a step by decode rows
  double prompt_row = 0.0005;              // on top of that
  std::function<double(int texts)> draft;  // of making one draft for each of some texts
  double keep = 0.0004;                    // of keeping rows alone
  double followed_prompt_row = 0.00005;    // of the layer
};

/// Weights of `layers` layers are read for a few rows, arithmetic binds beyond `flat` of them.
inline SimulatedCosts costs_of(int layers, int flat) {
  SimulatedCosts c;
  c.step = [=](int rows) {
    return 0.001 * layers * (1 + 0.02 * rows + 0.15 * std::max(0, rows - flat));
  };
  c.draft = [](int texts) { return 0.001 * (1 + 0.02 * texts); };
  return c;
}

class DraftSimulation {
 public:
  explicit DraftSimulation(SimulatedCosts costs, bool drafts = true, int num_pages = 1024)
      : costs_(std::move(costs)),
        model_(options(this)),
        kv_(model::KvStore::create(model_.config(), num_pages, kPage, DType::kF16, 1).value()),
        builder_(kPage, 64),
        speculator_(Speculator::create(
            SpeculationConfig{SpeculationConfig::Source::kNextn, drafts ? 3 : 0, true},
            {model_.draft(), 4, kVocab, kVocab, kPage}, [this] { return now; })) {
    scheduler::SchedulerConfig config;
    config.page_size = kPage;
    config.num_pages = num_pages;
    config.context_length = 1 << 14;
    config.max_running_requests = 64;
    scheduler_ = scheduler::Scheduler::create(config).value();
  }

  RequestId add(std::vector<int32_t> prompt, int tokens) {
    scheduler::RequestSpec spec;
    spec.id = ++last_id_;
    spec.max_new_tokens = tokens;
    spec.prompt = prompt;
    if (speculator_ != nullptr) speculator_->begin(spec.id, prompt);
    texts_[spec.id] = {std::move(prompt), tokens};
    EXPECT_TRUE(scheduler_->add(std::move(spec)).ok());
    return last_id_;
  }
  void cancel(RequestId id) {
    scheduler_->cancel(id, FinishKind::kStop);
    end(id);
  }
  /// Runs `clients` texts at a time for so many steps; each that ends is followed by the next.
  void serve(int clients, int count, int length = 160, int prompt = 20) {
    for (int i = 0; i < count; ++i) {
      while (static_cast<int>(texts_.size()) < clients) add(prompt_of(prompt), length);
      step();
    }
  }
  void step();

  /// Random, so that texts share nothing.
  std::vector<int32_t> prompt_of(int length) {
    std::vector<int32_t> prompt;
    for (int i = 0; i < length; ++i) prompt.push_back(static_cast<int32_t>(random() % kVocab));
    return prompt;
  }
  /// Since the last call.
  struct Figures {
    int steps = 0, passes = 0;                                // of the model, of the layer
    int tokens = 0, drafted = 0, accepted = 0, verified = 0;  // verified: decode items
    int items = 0, followed = 0;
    double seconds = 0, layer_seconds = 0;
    double speed() const { return tokens / seconds; }
    double tokens_per_step() const { return static_cast<double>(verified + accepted) / verified; }
  };
  Figures figures() { return std::exchange(figures_, {}); }
  const std::map<RequestId, std::vector<int32_t>>& finished() const { return finished_; }
  NullModel& model() { return model_; }
  int texts() const { return static_cast<int>(texts_.size()); }

  double now = 0;
  double slower = 1, noise = 0;  // times are that much longer, and each differs by up to +-noise
  /// How often drafts of a text hold, by its first token.
  std::function<double(int32_t first)> acceptance = [](int32_t) { return 0.0; };
  std::mt19937 random{7}, noise_random{8};

  static constexpr int kVocab = 64, kPage = 16;

 private:
  struct Text {
    std::vector<int32_t> tokens;
    int left = 0;
  };
  static NullModelOptions options(DraftSimulation* self) {
    NullModelOptions o;
    o.draft = true;
    o.vocab_size = kVocab;
    o.after_draft = [self](const model::DraftBatch& batch, MatrixView logits) {
      self->layer_ran(batch, logits);
    };
    return o;
  }
  void layer_ran(const model::DraftBatch& batch, MatrixView logits);
  double actual(double seconds) {
    const double unit = static_cast<double>(noise_random() % 2001) / 1000 - 1;
    return seconds * slower * (1 + noise * unit);
  }
  void end(RequestId id) {
    if (speculator_ != nullptr) speculator_->end(id);
    finished_[id] = std::move(texts_.at(id).tokens);
    texts_.erase(id);
    std::erase(decoding_, id);
  }

  const SimulatedCosts costs_;
  NullModel model_;
  model::KvStore kv_;
  BatchBuilder builder_;
  std::unique_ptr<Speculator> speculator_;
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  std::map<RequestId, Text> texts_;
  std::map<RequestId, std::vector<int32_t>> finished_;
  std::vector<RequestId> decoding_;
  std::vector<std::vector<OutputToken>> written_;
  RequestId last_id_ = 0;
  Figures figures_;
};

inline void DraftSimulation::layer_ran(const model::DraftBatch& batch, MatrixView logits) {
  const auto wanted = static_cast<int>(batch.logit_rows.size());
  const auto rows = static_cast<int>(batch.tokens.size());
  const double seconds = actual((wanted > 0 ? costs_.draft(wanted) : costs_.keep) +
                                costs_.followed_prompt_row * std::max(0, rows - 64));
  now += seconds;
  ++figures_.passes;
  figures_.layer_seconds += seconds;
  size_t row = 0;
  for (size_t s = 0; s < batch.sequences.size() && wanted > 0; ++s) {
    const kernels::SequenceSlice& slice = batch.sequences[s];
    const int32_t last = slice.q_begin + slice.q_len - 1;
    if (row >= batch.logit_rows.size() || batch.logit_rows[row] != last) continue;
    float* const logit = logits.row(static_cast<int64_t>(row++));
    const auto id = static_cast<RequestId>(batch.sequence_ids[s] & 0xFFFFFFFF);
    const double holds = acceptance(texts_.at(id).tokens[0]);
    if (static_cast<double>(random() % 1000) < 1000 * holds) continue;
    logit[row_max(logit, kVocab).index] = -1;
  }
}

inline void DraftSimulation::step() {
  if (speculator_ != nullptr) speculator_->propose(*scheduler_, decoding_);
  const scheduler::StepPlan plan = scheduler_->plan(now);
  if (plan.empty()) return;
  const double began = now;
  std::vector<BatchBuilder::PromptRows> none(plan.items.size());
  std::vector<scheduler::SampledToken> sampled(plan.items.size());
  written_.assign(plan.items.size(), {});
  builder_.start(plan, none);
  ASSERT_TRUE(builder_.next());
  model::ForwardBatch batch = builder_.batch();
  if (speculator_ != nullptr) {
    batch.hidden_rows = speculator_->hidden_rows({plan, batch, builder_.items()});
  }
  std::vector<float> hidden(batch.hidden_rows.size() * 4), logits(builder_.rows().size() * kVocab);
  batch.hidden_states = {hidden.data(), static_cast<int64_t>(batch.hidden_rows.size()), 4, 4};
  const MatrixView out = {logits.data(), static_cast<int64_t>(builder_.rows().size()), kVocab,
                          kVocab};
  ASSERT_TRUE(model_.forward(batch, kv_, out).ok());
  const double took = actual((plan.decode_tokens > 0 ? costs_.step(plan.decode_tokens) : 0.001) +
                             costs_.prompt_row * plan.prefill_tokens);
  now += took;
  ++figures_.steps;
  for (size_t row = 0; row < builder_.rows().size(); ++row) {
    const auto index = static_cast<size_t>(builder_.rows()[row].item);
    const scheduler::PlanItem& item = plan.items[index];
    Text& text = texts_.at(item.id);
    std::vector<OutputToken>& written = written_[index];
    const auto drafts = item.tokens.last(static_cast<size_t>(item.drafts));
    const auto r = static_cast<size_t>(builder_.rows()[row].position -
                                       (item.start + item.count - item.drafts - 1));
    // Behind a draft that does not hold, or the end, nothing counts.
    if (written.size() != r || sampled[index].stop != FinishKind::kNone) continue;
    if (r > 0 && drafts[r - 1] != written.back().token) continue;
    sampled[index].accepted = static_cast<int32_t>(r);
    OutputToken token;
    token.token = row_max(out.row(static_cast<int64_t>(row)), kVocab).index;
    sampled[index].token = token.token;
    written.push_back(token);
    text.tokens.push_back(token.token);
    if (--text.left == 0) sampled[index].stop = FinishKind::kStop;
  }
  if (!batch.hidden_rows.empty()) {
    speculator_->observe({plan, sampled, batch, builder_.items()}, kv_);
  }
  const std::vector<scheduler::Finished> ended = scheduler_->commit(plan, sampled, now);
  decoding_.clear();
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const scheduler::PlanItem& item = plan.items[i];
    if (!item.samples || !texts_.contains(item.id)) continue;
    if (speculator_ != nullptr) speculator_->wrote(item.id, written_[i]);
    if (sampled[i].stop == FinishKind::kNone) decoding_.push_back(item.id);
    figures_.tokens += static_cast<int>(written_[i].size());
    if (!item.is_decode) continue;
    ++figures_.verified;
    figures_.drafted += item.drafts;
    figures_.accepted += sampled[i].accepted;
  }
  if (speculator_ != nullptr) {
    speculator_->step_took(plan, now - began);
    figures_.followed += speculator_->followed();
  }
  figures_.items += static_cast<int>(plan.items.size());
  figures_.seconds += now - began;
  for (const scheduler::Finished& f : ended) end(f.id);
}

}  // namespace capstan::engine
