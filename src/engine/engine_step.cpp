// One step on the engine thread: the forward passes, and from logits to tokens.
#include "base/log.h"
#include "engine/burst.h"
#include "engine/engine_impl.h"

namespace capstan::engine {
MatrixView EngineImpl::logits_for(size_t rows) {
  const int64_t vocab = model_->config().vocab_size;
  constexpr int64_t kLine = 16;  // floats; rows start on cache lines
  logits_stride_ = (vocab + kLine - 1) / kLine * kLine;
  const size_t bytes = rows * static_cast<size_t>(logits_stride_) * sizeof(float);
  if (logits_.bytes() < bytes) logits_ = AlignedBuffer(bytes + bytes / 4);
  return {logits_.as<float>(), static_cast<int64_t>(rows), vocab, logits_stride_};
}

/// Whether the source of drafts wants to see something of the pass.
bool EngineImpl::ask_for_hidden(const scheduler::StepPlan& plan, model::ForwardBatch& batch) {
  if (speculator_ == nullptr) return false;
  batch.hidden_rows = speculator_->hidden_rows({plan, batch, builder_.items()});
  const size_t rows = batch.hidden_rows.size();
  const int64_t width = model_->config().hidden_size;
  hidden_.resize(rows * static_cast<size_t>(width));
  batch.hidden_states = {hidden_.data(), static_cast<int64_t>(rows), width, width};
  return rows > 0;
}

Status EngineImpl::forward_and_sample(const scheduler::StepPlan& plan) {
  const Burst burst(config_.pool);  // from the first kernel to the last sampled row
  builder_.start(plan, prompt_rows_);
  while (builder_.next()) {
    const MatrixView logits = logits_for(builder_.rows().size());
    model::ForwardBatch batch = builder_.batch();
    const bool hidden = ask_for_hidden(plan, batch);
    CAPSTAN_RETURN_IF_ERROR(model_->forward(batch, kv_, logits));
    report_prompt_rows(plan, logits);
    sample_rows(plan, logits);
    if (hidden) speculator_->observe({plan, sampled_, batch, builder_.items()}, kv_);
  }
  return {};
}

void EngineImpl::report_prompt_rows(const scheduler::StepPlan& plan, MatrixView logits) {
  prompt_work_.clear();
  const std::span<const LogitRow> rows = builder_.rows();
  for (size_t r = 0; r < rows.size(); ++r) {
    if (rows[r].samples) continue;
    LiveRequest& live = *find(plan.items[static_cast<size_t>(rows[r].item)].id);
    live.next_prompt_row = rows[r].position + 1;
    live.prompt_logprobs.emplace_back();
    prompt_work_.emplace_back(r, rows[r]);
  }
  sampler_.each(prompt_work_.size(), static_cast<int64_t>(prompt_work_.size()) * logits.cols * 4,
                [&](RowSampler& sampler, size_t i) {
                  const auto& [r, row] = prompt_work_[i];
                  LiveRequest& live = *find(plan.items[static_cast<size_t>(row.item)].id);
                  const SamplingParams& params = live.request.sampling;
                  const auto predicted = static_cast<size_t>(row.position + 1);
                  sampler.prompt_logprob(
                      logits.row(static_cast<int64_t>(r)), logits.cols,
                      live.request.prompt[predicted], params,
                      live.prompt_logprobs[predicted - static_cast<size_t>(params.logprob_start)]);
                });
}

// Every row is sampled as if the drafts before it held: with their count and number in the random
// stream. So rows are independent, and whatever is used was chosen exactly as without speculation.
void EngineImpl::sample_rows(const scheduler::StepPlan& plan, MatrixView logits) {
  inputs_.clear();
  input_items_.clear();
  const std::span<const LogitRow> rows = builder_.rows();
  for (size_t r = 0; r < rows.size(); ++r) {
    if (!rows[r].samples) continue;
    const auto index = static_cast<size_t>(rows[r].item);
    const scheduler::PlanItem& item = plan.items[index];
    const LiveRequest& live = *find(item.id);
    const int32_t sure = item.count - item.drafts;
    const int32_t assumed = rows[r].position - (item.start + sure - 1);
    inputs_.push_back(
        {logits.row(static_cast<int64_t>(r)), logits.cols, &live.request.sampling,
         live.counts_tokens ? &live.counts : nullptr, live.end_ids, live.generated + assumed,
         live.seed, static_cast<uint32_t>(live.request.choice_index),
         item.tokens.subspan(static_cast<size_t>(sure), static_cast<size_t>(assumed))});
    input_items_.push_back(index);
  }
  outputs_.assign(inputs_.size(), {});
  sampler_.sample(inputs_, outputs_);
  for (size_t i = 0; i < outputs_.size();) {
    const size_t index = input_items_[i];
    const scheduler::PlanItem& item = plan.items[index];
    const auto count = static_cast<size_t>(item.drafts) + 1;
    take_outputs(*find(item.id), item, std::span(outputs_).subspan(i, count), sampled_[index]);
    i += count;
  }
}

/// Takes tokens as long as the draft before them was what the model wrote.
void EngineImpl::take_outputs(LiveRequest& live, const scheduler::PlanItem& item,
                              std::span<SampleOutput> outputs, scheduler::SampledToken& sampled) {
  if (item.is_decode) ++live.decode_steps;
  const auto drafts = item.tokens.last(static_cast<size_t>(item.drafts));
  for (size_t row = 0; row < outputs.size(); ++row) {
    SampleOutput& out = outputs[row];
    if (out.replaced > 0) {
      LOG_WARN("Request {}: {} of {} logits at output token {} were not finite and were replaced",
               live.id, out.replaced, model_->config().vocab_size, live.generated);
    }
    sampled.accepted = static_cast<int32_t>(row);
    if (out.token.token < 0) {
      live.abort_code = out.replaced > 0 ? ErrorCode::kInternal : ErrorCode::kInvalidArgument;
      live.abort_message = std::move(out.error);
      sampled.stop = FinishKind::kAbort;
      return;
    }
    sampled.token = out.token.token;
    sampled.stop = record_token(live, std::move(out.token));
    if (sampled.stop != FinishKind::kNone) return;
    if (row < drafts.size() && drafts[row] != sampled.token) return;
  }
}

/// After commit, before the tokens are delivered: what speculation learns from the step, and who
/// decodes in the next one.
void EngineImpl::learn(const scheduler::StepPlan& plan, StepFacts& facts) {
  if (speculator_ == nullptr) return;
  decoding_.clear();
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const scheduler::PlanItem& item = plan.items[i];
    const LiveRequest* live = find(item.id);
    if (live == nullptr || !item.samples) continue;
    speculator_->wrote(item.id, live->new_tokens);
    if (sampled_[i].stop == FinishKind::kNone) decoding_.push_back(item.id);
    if (!item.is_decode || live->request.probe) continue;
    ++facts.verified_items;
    facts.draft_tokens += item.drafts;
    facts.accepted_tokens += sampled_[i].accepted;
  }
  speculator_->step_took(plan, facts.seconds);
  facts.followed = speculator_->followed();
  facts.draft_seconds = speculator_->draft_seconds();
}

}  // namespace capstan::engine
