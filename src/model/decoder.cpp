#include "model/decoder.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <new>

#include "model/layer.h"

namespace capstan::model {
namespace {

/// Experts per layer, the draft's last.
std::vector<int> expert_counts(const ModelConfig& config, bool draft) {
  std::vector<int> counts;
  if (!config.has_moe()) return counts;
  for (int l = 0; l < config.num_layers + (draft ? 1 : 0); ++l) {
    counts.push_back(config.is_moe_layer(l) ? config.moe.experts : 0);
  }
  return counts;
}

/// Copies rows [rows.size()] of `from` to `to`.
void copy_rows(const MatrixView& from, std::span<const int32_t> rows, const MatrixView& to) {
  for (size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(to.row(static_cast<int64_t>(i)), from.row(rows[i]),
                static_cast<size_t>(from.cols) * sizeof(float));
  }
}

/// Where each of `rows` stands in `kept`, which holds them all; both ascending.
void positions_in(std::span<const int32_t> rows, std::span<const int32_t> kept,
                  std::vector<int32_t>& out) {
  out.clear();
  size_t at = 0;
  for (const int32_t row : rows) {
    while (kept[at] != row) ++at;
    out.push_back(static_cast<int32_t>(at));
  }
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, DecoderWeights weights,
                 std::shared_ptr<kernels::Ops> ops, kernels::MlaForm mla_form)
    : config_(config),
      weights_(std::move(weights)),
      ops_(std::move(ops)),
      mla_form_(mla_form),
      rope_(config.rope),
      load_(expert_counts(config, weights_.draft.has_value())) {
  const auto floats = [](const std::vector<float>& v) { return v.size() * sizeof(float); };
  const size_t row = dtype_bytes(weights_.embedding.dtype, config_.hidden_size);
  bytes_ = floats(weights_.final_norm) + weights_.lm_head->bytes();
  bytes_per_token_ = bytes_ + row;
  for (const LayerWeights& l : weights_.layers) {
    const LayerBytes layer = layer_bytes(l, config_.moe.top_k);
    bytes_ += layer.held;
    bytes_per_token_ += layer.read;
  }
  if (weights_.draft) {
    const DraftWeights& d = *weights_.draft;
    const LayerBytes layer = layer_bytes(d.layer, config_.moe.top_k);
    const size_t rest = floats(d.embedding_norm) + floats(d.hidden_norm) + floats(d.final_norm) +
                        d.projection->bytes();
    bytes_ += layer.held + rest;
    draft_bytes_per_token_ = layer.read + rest + row + weights_.lm_head->bytes();
  }
  bytes_ += weights_.embedding.bytes();
}

std::vector<std::vector<uint64_t>> Decoder::expert_load() const { return load_.snapshot(); }

Status Decoder::prepare(const ForwardBatch& batch, const KvStore& kv, const MatrixView& logits) {
  CAPSTAN_RETURN_IF_ERROR(check_batch(batch, config_, kv, logits));
  const auto t = static_cast<int64_t>(batch.tokens.size());
  try {
    work_.reserve(config_, weights_.draft.has_value(), t);
  } catch (const std::bad_alloc&) {
    return resource_exhausted("not enough memory for the activations of a step of " +
                              std::to_string(t) + " tokens; lower --chunked-prefill-size");
  }
  rope_.fill(batch.positions, work_.cos.as<float>(), work_.sin.as<float>());
  kept_.clear();
  std::set_union(batch.logit_rows.begin(), batch.logit_rows.end(), batch.hidden_rows.begin(),
                 batch.hidden_rows.end(), std::back_inserter(kept_));
  return {};
}

void Decoder::run_layer(const Step& step, const LayerWeights& layer, int index, const KvStore& kv,
                        bool last) {
  attend(step, layer, kv.layer(index));
  int64_t rows = step.rows();
  if (last) {
    // Nothing reads the other rows any more: a prefill chunk without outputs saves the last
    // layer's FFN, and rows do not depend on each other, so the bits stay the same.
    keep_rows(work_.x, kept_, config_.hidden_size);
    keep_rows(work_.attention, kept_, attention_width(config_));
    rows = static_cast<int64_t>(kept_.size());
  }
  if (rows > 0) finish_layer(step, layer, index, rows, load_);
}

/// x of the kept rows -> normed -> hidden states and logits.
void Decoder::write_outputs(const Step& step, const std::vector<float>& norm, MatrixView logits) {
  const auto rows = static_cast<int64_t>(kept_.size());
  if (rows == 0) return;
  const MatrixView x = matrix(work_.x, rows, config_.hidden_size);
  const MatrixView normed = matrix(work_.normed, rows, config_.hidden_size);
  ops_->rms_norm({.x = x, .weight = norm.data(), .eps = step.eps, .y = normed});
  if (!step.batch.hidden_rows.empty()) {
    positions_in(step.batch.hidden_rows, kept_, logits_in_kept_);
    copy_rows(normed, logits_in_kept_, step.batch.hidden_states);
  }
  if (step.batch.logit_rows.empty()) return;
  positions_in(step.batch.logit_rows, kept_, logits_in_kept_);
  keep_rows(work_.normed, logits_in_kept_, config_.hidden_size);
  ops_->linear(
      {.x = matrix(work_.normed, static_cast<int64_t>(logits_in_kept_.size()), config_.hidden_size),
       .weight = weights_.lm_head.get(),
       .y = logits});
}

Status Decoder::forward(const ForwardBatch& batch, KvStore& kv, MatrixView logits) {
  CAPSTAN_RETURN_IF_ERROR(prepare(batch, kv, logits));
  const Step step{config_, *ops_,     work_,
                  batch,   mla_form_, static_cast<float>(config_.rms_norm_eps)};
  ops_->begin_step();
  ops_->embed({.ids = batch.tokens,
               .table = &weights_.embedding,
               .y = matrix(work_.x, step.rows(), config_.hidden_size)});
  for (int l = 0; l < config_.num_layers; ++l) {
    run_layer(step, weights_.layers[static_cast<size_t>(l)], l, kv, l + 1 == config_.num_layers);
  }
  write_outputs(step, weights_.final_norm, logits);
  ops_->end_step();
  return {};
}

Status Decoder::forward_draft(const DraftBatch& batch, KvStore& kv, MatrixView logits) {
  CAPSTAN_RETURN_IF_ERROR(prepare(batch, kv, logits));
  const Step step{config_, *ops_,     work_,
                  batch,   mla_form_, static_cast<float>(config_.rms_norm_eps)};
  const int64_t t = step.rows(), width = config_.hidden_size;
  if (kv.num_layers() <= config_.num_layers) {
    return internal_error("forward: the cache has no layer for multi-token prediction");
  }
  if (batch.previous.rows != t || batch.previous.cols != width || batch.previous.stride < width) {
    return internal_error("forward: " + std::to_string(t) + " tokens, hidden states " +
                          std::to_string(batch.previous.rows) + " x " +
                          std::to_string(batch.previous.cols));
  }
  const DraftWeights& draft = *weights_.draft;
  const MatrixView x = matrix(work_.x, t, width), pair = matrix(work_.pair, t, 2 * width);
  ops_->begin_step();
  ops_->embed({.ids = batch.tokens, .table = &weights_.embedding, .y = x});
  // The checkpoint fixes the order: columns of the projection are embedding first, hidden second.
  ops_->rms_norm({.x = x,
                  .weight = draft.embedding_norm.data(),
                  .eps = step.eps,
                  .y = columns(pair, 0, width)});
  ops_->rms_norm({.x = batch.previous,
                  .weight = draft.hidden_norm.data(),
                  .eps = step.eps,
                  .y = columns(pair, width, width)});
  ops_->linear({.x = pair, .weight = draft.projection.get(), .y = x});
  run_layer(step, draft.layer, config_.num_layers, kv, /*last=*/true);
  write_outputs(step, draft.final_norm, logits);
  ops_->end_step();
  return {};
}

}  // namespace capstan::model
