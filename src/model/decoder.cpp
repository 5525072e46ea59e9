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

/// Widths of the activations between this rank's weights.
Widths widths_of(const DecoderWeights& weights) {
  Widths widths;
  const auto see = [&](const LayerWeights& l) {
    widths.attention = std::max(widths.attention, l.o->k());
    for (const FfnWeights* ffn : {&l.dense, l.moe ? &l.moe->shared : nullptr}) {
      if (ffn != nullptr && ffn->down != nullptr) widths.ffn = std::max(widths.ffn, ffn->down->k());
    }
  };
  for (const LayerWeights& l : weights.layers) see(l);
  if (weights.draft) see(weights.draft->layer);
  widths.vocabulary = weights.lm_head->n();
  return widths;
}

/// Brackets a step of the op table, whichever way it ends.
class OpsStep {
 public:
  explicit OpsStep(kernels::Ops& ops) : ops_(ops) { ops_.begin_step(); }
  ~OpsStep() { ops_.end_step(); }
  OpsStep(const OpsStep&) = delete;
  OpsStep& operator=(const OpsStep&) = delete;

 private:
  kernels::Ops& ops_;
};

}  // namespace

Decoder::Decoder(const ModelConfig& config, DecoderWeights weights,
                 std::shared_ptr<kernels::Ops> ops, const LoadOptions& options)
    : config_(config),
      local_(model::local_config(config, options.shard)),
      weights_(std::move(weights)),
      ops_(std::move(ops)),
      mla_form_(options.mla_form),
      ranks_(options.communicator),
      shard_(options.shard),
      vocabulary_(vocabulary_parts(config, options.shard)),
      widths_(widths_of(weights_)),
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
  CAPSTAN_RETURN_IF_ERROR(check_batch(batch, config_, kv, logits, ranks_.first(), shard_.dp_size));
  const auto t = static_cast<int64_t>(batch.tokens.size());
  try {
    work_.reserve(local_, widths_, weights_.draft.has_value(), t);
    const size_t part = batch.logit_rows.size() * static_cast<size_t>(widths_.vocabulary);
    if (!ranks_.alone() && work_.logits.bytes() < part * sizeof(float)) {
      work_.logits = AlignedBuffer(part * sizeof(float));
    }
  } catch (const std::bad_alloc&) {
    return resource_exhausted("not enough memory for the activations of a step of " +
                              std::to_string(t) + " tokens; lower --chunked-prefill-size");
  }
  kept_.clear();
  std::set_union(batch.logit_rows.begin(), batch.logit_rows.end(), batch.hidden_rows.begin(),
                 batch.hidden_rows.end(), std::back_inserter(kept_));
  take_own_rows(batch);
  rope_.fill(own_batch_.positions, work_.cos.as<float>(), work_.sin.as<float>());
  return {};
}

void Decoder::take_own_rows(const ForwardBatch& batch) {
  own_ = {0, static_cast<int64_t>(batch.tokens.size())};
  own_sequences_.assign(batch.sequences.begin(), batch.sequences.end());
  if (shard_.dp_size > 1) {
    const auto group = static_cast<size_t>(shard_.attention_group());
    const auto first = batch.sequences.begin() + batch.groups[group];
    const auto last = batch.sequences.begin() + batch.groups[group + 1];
    own_sequences_.assign(first, last);
    own_ = {};
    if (first != last) own_ = {first->q_begin, 0};
    for (kernels::SequenceSlice& s : own_sequences_) {
      own_.count += s.q_len;
      s.q_begin -= static_cast<int32_t>(own_.first);
    }
  }
  const auto first = static_cast<size_t>(own_.first), count = static_cast<size_t>(own_.count);
  own_batch_ = {batch.tokens.subspan(first, count),
                batch.positions.subspan(first, count),
                batch.slots.subspan(first, count),
                own_sequences_,
                {}};
  const auto begin = std::lower_bound(kept_.begin(), kept_.end(), own_.first);
  const auto end = std::lower_bound(begin, kept_.end(), own_.first + own_.count);
  own_in_kept_ = {begin - kept_.begin(), end - begin};
  own_kept_.clear();
  for (auto row = begin; row != end; ++row) {
    own_kept_.push_back(*row - static_cast<int32_t>(own_.first));
  }
}

Step Decoder::step() {
  return {local_,
          *ops_,
          ranks_,
          work_,
          own_batch_,
          own_,
          shard_.attention_part() == 0,
          mla_form_,
          static_cast<float>(config_.rms_norm_eps)};
}

Status Decoder::run_layer(const Step& step, const LayerWeights& layer, int index, int64_t rows,
                          const KvStore& kv, bool last) {
  attend(step, layer, kv.layer(index));
  OwnRows own = own_;
  if (last) {
    // Nothing reads the other rows any more: a prefill chunk without outputs saves the last
    // layer's FFN, and rows do not depend on each other, so the bits stay the same.
    keep_rows(work_.x, kept_, config_.hidden_size);
    keep_rows(work_.attention, own_kept_, layer.o->k());
    rows = static_cast<int64_t>(kept_.size());
    own = own_in_kept_;
  }
  if (rows == 0) return {};
  return finish_layer(step, layer, index, rows, own, load_);
}

/// x of the kept rows -> normed -> hidden states and logits.
Status Decoder::write_outputs(const ForwardBatch& batch, const std::vector<float>& norm,
                              MatrixView logits) {
  const auto rows = static_cast<int64_t>(kept_.size());
  if (rows == 0) return {};
  const MatrixView x = matrix(work_.x, rows, config_.hidden_size);
  const MatrixView normed = matrix(work_.normed, rows, config_.hidden_size);
  ops_->rms_norm({.x = x,
                  .weight = norm.data(),
                  .eps = static_cast<float>(config_.rms_norm_eps),
                  .y = normed});
  if (!batch.hidden_rows.empty() && batch.hidden_states.data != nullptr) {
    positions_in(batch.hidden_rows, kept_, logits_in_kept_);
    copy_rows(normed, logits_in_kept_, batch.hidden_states);
  }
  if (batch.logit_rows.empty()) return {};
  positions_in(batch.logit_rows, kept_, logits_in_kept_);
  keep_rows(work_.normed, logits_in_kept_, config_.hidden_size);
  const auto wanted = static_cast<int64_t>(logits_in_kept_.size());
  return write_logits(matrix(work_.normed, wanted, config_.hidden_size), logits);
}

Status Decoder::write_logits(const MatrixView& normed, MatrixView logits) {
  if (ranks_.alone()) {
    ops_->linear({.x = normed, .weight = weights_.lm_head.get(), .y = logits});
    return {};
  }
  const MatrixView part = matrix(work_.logits, normed.rows, widths_.vocabulary);
  ops_->linear({.x = normed, .weight = weights_.lm_head.get(), .y = part});
  return ranks_.join_columns(part, vocabulary_, logits);
}

Status Decoder::forward(const ForwardBatch& batch, KvStore& kv, MatrixView logits) {
  CAPSTAN_RETURN_IF_ERROR(prepare(batch, kv, logits));
  const Step step = this->step();
  const auto t = static_cast<int64_t>(batch.tokens.size());
  const OpsStep bracket(*ops_);
  ops_->embed({.ids = batch.tokens,
               .table = &weights_.embedding,
               .y = matrix(work_.x, t, config_.hidden_size)});
  for (int l = 0; l < config_.num_layers; ++l) {
    const bool last = l + 1 == config_.num_layers;
    CAPSTAN_RETURN_IF_ERROR(
        run_layer(step, weights_.layers[static_cast<size_t>(l)], l, t, kv, last));
  }
  return write_outputs(batch, weights_.final_norm, logits);
}

/// Rank 0 alone keeps hidden states between steps; the others get them from it.
Status Decoder::share_previous(const DraftBatch& batch, MatrixView& previous) {
  const auto t = static_cast<int64_t>(batch.tokens.size());
  const int64_t width = config_.hidden_size;
  previous = batch.previous;
  if (ranks_.first() && (previous.rows != t || previous.cols != width || previous.stride < width)) {
    return internal_error("forward: " + std::to_string(t) + " tokens, hidden states " +
                          std::to_string(previous.rows) + " x " + std::to_string(previous.cols));
  }
  if (ranks_.alone()) return {};
  const MatrixView shared = matrix(work_.normed, t, width);
  for (int64_t i = 0; ranks_.first() && i < t; ++i) {
    std::copy_n(previous.row(i), width, shared.row(i));
  }
  previous = shared;
  return ranks_.share(shared);
}

Status Decoder::forward_draft(const DraftBatch& batch, KvStore& kv, MatrixView logits) {
  CAPSTAN_RETURN_IF_ERROR(prepare(batch, kv, logits));
  const Step step = this->step();
  const auto t = static_cast<int64_t>(batch.tokens.size());
  const int64_t width = config_.hidden_size;
  if (kv.num_layers() <= config_.num_layers) {
    return internal_error("forward: the cache has no layer for multi-token prediction");
  }
  const OpsStep bracket(*ops_);
  MatrixView previous;
  CAPSTAN_RETURN_IF_ERROR(share_previous(batch, previous));
  const DraftWeights& draft = *weights_.draft;
  const MatrixView x = matrix(work_.x, t, width), pair = matrix(work_.pair, t, 2 * width);
  ops_->embed({.ids = batch.tokens, .table = &weights_.embedding, .y = x});
  // The checkpoint fixes the order: columns of the projection are embedding first, hidden second.
  ops_->rms_norm({.x = x,
                  .weight = draft.embedding_norm.data(),
                  .eps = step.eps,
                  .y = columns(pair, 0, width)});
  ops_->rms_norm({.x = previous,
                  .weight = draft.hidden_norm.data(),
                  .eps = step.eps,
                  .y = columns(pair, width, width)});
  ops_->linear({.x = pair, .weight = draft.projection.get(), .y = x});
  CAPSTAN_RETURN_IF_ERROR(run_layer(step, draft.layer, config_.num_layers, t, kv, /*last=*/true));
  return write_outputs(batch, draft.final_norm, logits);
}

}  // namespace capstan::model
