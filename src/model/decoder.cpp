#include "model/decoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>

namespace capstan::model {
namespace {

MatrixView matrix(AlignedBuffer& buffer, int64_t rows, int64_t cols) {
  return {buffer.as<float>(), rows, cols, cols};
}

/// Moves the chosen rows (ascending) to the front. In place, since row i comes from i or later.
void keep_rows(AlignedBuffer& buffer, std::span<const int32_t> rows, int64_t cols) {
  auto* data = buffer.as<float>();
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto from = static_cast<size_t>(rows[i]);
    if (from == i) continue;
    const auto width = static_cast<size_t>(cols);
    std::memcpy(data + i * width, data + from * width, width * sizeof(float));
  }
}

}  // namespace

Decoder::Decoder(const ModelConfig& config, DecoderWeights weights,
                 std::shared_ptr<kernels::Ops> ops)
    : config_(config), weights_(std::move(weights)), ops_(std::move(ops)), rope_(config.rope) {
  const auto floats = [](const std::vector<float>& v) { return v.size() * sizeof(float); };
  bytes_per_token_ = floats(weights_.final_norm) + weights_.lm_head->bytes();
  for (const LayerWeights& l : weights_.layers) {
    bytes_per_token_ += floats(l.input_norm) + floats(l.post_attention_norm) + floats(l.q_norm) +
                        floats(l.k_norm) + l.qkv->bytes() + l.o->bytes() + l.gate_up->bytes() +
                        l.down->bytes();
  }
  bytes_ = bytes_per_token_ + weights_.embedding.bytes();
  bytes_per_token_ += dtype_bytes(weights_.embedding.dtype, config_.hidden_size);
}

Status Decoder::check(const ForwardBatch& b, const KvStore& kv, const MatrixView& logits) const {
  const auto fail = [](const std::string& what) { return internal_error("forward: " + what); };
  const size_t t = b.tokens.size();
  if (t == 0 || b.positions.size() != t || b.slots.size() != t) {
    return fail(std::to_string(t) + " tokens, " + std::to_string(b.positions.size()) +
                " positions, " + std::to_string(b.slots.size()) + " slots");
  }
  const int64_t num_slots = int64_t{kv.num_pages()} * kv.page_size();
  for (size_t i = 0; i < t; ++i) {
    if (b.tokens[i] < 0 || b.tokens[i] >= config_.vocab_size) {
      return fail("token id " + std::to_string(b.tokens[i]) + " outside the vocabulary of " +
                  std::to_string(config_.vocab_size));
    }
    if (b.slots[i] < 0 || b.slots[i] >= num_slots) {
      return fail("slot " + std::to_string(b.slots[i]) + " outside the cache of " +
                  std::to_string(num_slots));
    }
  }
  int64_t next = 0;
  for (const kernels::SequenceSlice& s : b.sequences) {
    if (s.q_begin != next || s.q_len <= 0 || s.kv_len < s.q_len ||
        next + s.q_len > static_cast<int64_t>(t)) {
      return fail("sequence slice at " + std::to_string(s.q_begin) + " of " +
                  std::to_string(s.q_len) + " queries and " + std::to_string(s.kv_len) + " keys");
    }
    for (int32_t i = 0; i < s.q_len; ++i) {
      const int32_t position = b.positions[static_cast<size_t>(s.q_begin + i)];
      if (position != s.kv_len - s.q_len + i) {
        return fail("position " + std::to_string(position) + " of row " +
                    std::to_string(s.q_begin + i) + " does not match its sequence");
      }
    }
    const int64_t pages = (int64_t{s.kv_len} + kv.page_size() - 1) / kv.page_size();
    for (int64_t i = 0; i < pages; ++i) {
      if (s.pages[i] < 0 || s.pages[i] >= kv.num_pages()) {
        return fail("page " + std::to_string(s.pages[i]) + " outside the cache of " +
                    std::to_string(kv.num_pages()));
      }
    }
    next += s.q_len;
  }
  if (next != static_cast<int64_t>(t)) return fail("rows that belong to no sequence");
  int32_t last = -1;
  for (const int32_t row : b.logit_rows) {
    if (row <= last || row >= static_cast<int64_t>(t)) {
      return fail("logit row " + std::to_string(row) + " is out of order or range");
    }
    last = row;
  }
  if (!b.logit_rows.empty() && (logits.rows != static_cast<int64_t>(b.logit_rows.size()) ||
                                logits.cols != config_.vocab_size || logits.stride < logits.cols)) {
    return fail("logits matrix is " + std::to_string(logits.rows) + " x " +
                std::to_string(logits.cols));
  }
  return {};
}

void Decoder::reserve(int64_t rows) {
  if (rows <= scratch_.rows) return;
  // Doubling keeps a slowly growing batch from reallocating at every step.
  const auto n = static_cast<size_t>(std::max(rows, scratch_.rows * 2));
  const auto floats = [n](int64_t cols) {
    return AlignedBuffer(n * static_cast<size_t>(cols) * sizeof(float));
  };
  scratch_ = {};  // the old buffers go first, to keep the peak low
  const int64_t heads = config_.num_heads, kv_heads = config_.num_kv_heads;
  scratch_.x = floats(config_.hidden_size);
  scratch_.normed = floats(config_.hidden_size);
  scratch_.qkv = floats((heads + 2 * kv_heads) * config_.head_dim);
  scratch_.attention = floats(heads * config_.head_dim);
  scratch_.hidden = floats(config_.intermediate_size);
  scratch_.cos = floats(rope_.pairs());
  scratch_.sin = floats(rope_.pairs());
  scratch_.rows = static_cast<int64_t>(n);
}

/// x -> normed -> q, k, v -> attention; k and v go to the cache.
void Decoder::attend(const LayerWeights& layer, const ForwardBatch& batch,
                     const kernels::PagedKv& kv) {
  const auto t = static_cast<int64_t>(batch.tokens.size());
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  const int64_t heads = config_.num_heads, kv_heads = config_.num_kv_heads, d = config_.head_dim;
  const MatrixView x = matrix(scratch_.x, t, config_.hidden_size);
  const MatrixView normed = matrix(scratch_.normed, t, config_.hidden_size);
  const MatrixView qkv = matrix(scratch_.qkv, t, (heads + 2 * kv_heads) * d);

  ops_->rms_norm({.x = x, .weight = layer.input_norm.data(), .eps = eps, .y = normed});
  ops_->linear({.x = normed, .weight = layer.qkv.get(), .y = qkv});
  ops_->qkv_rope_store({.qkv = qkv,
                        .q_heads = config_.num_heads,
                        .kv = kv,
                        .q_norm = layer.q_norm.empty() ? nullptr : layer.q_norm.data(),
                        .k_norm = layer.k_norm.empty() ? nullptr : layer.k_norm.data(),
                        .norm_eps = eps,
                        .rope = config_.rope.style,
                        .cos = scratch_.cos.as<float>(),
                        .sin = scratch_.sin.as<float>(),
                        .rope_dim = config_.rope.dim,
                        .slots = batch.slots});
  ops_->attention({.q = qkv,
                   .q_heads = config_.num_heads,
                   .kv = kv,
                   .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d))),
                   .sequences = batch.sequences,
                   .out = matrix(scratch_.attention, t, heads * d)});
}

/// attention -> x; x -> normed -> hidden -> x, for the first `rows` rows.
void Decoder::finish_layer(const LayerWeights& layer, int64_t rows) {
  const int64_t width = int64_t{config_.num_heads} * config_.head_dim;
  const MatrixView x = matrix(scratch_.x, rows, config_.hidden_size);
  const MatrixView normed = matrix(scratch_.normed, rows, config_.hidden_size);
  const MatrixView hidden = matrix(scratch_.hidden, rows, config_.intermediate_size);
  using kernels::Epilogue;
  ops_->linear({.x = matrix(scratch_.attention, rows, width),
                .weight = layer.o.get(),
                .y = x,
                .epilogue = Epilogue::kAdd});
  ops_->rms_norm({.x = x,
                  .weight = layer.post_attention_norm.data(),
                  .eps = static_cast<float>(config_.rms_norm_eps),
                  .y = normed});
  ops_->linear(
      {.x = normed, .weight = layer.gate_up.get(), .y = hidden, .epilogue = Epilogue::kSwiGlu});
  ops_->linear({.x = hidden, .weight = layer.down.get(), .y = x, .epilogue = Epilogue::kAdd});
}

void Decoder::run_layers(const ForwardBatch& batch, const KvStore& kv) {
  for (int l = 0; l < config_.num_layers; ++l) {
    const LayerWeights& layer = weights_.layers[static_cast<size_t>(l)];
    attend(layer, batch, kv.layer(l));
    auto rows = static_cast<int64_t>(batch.tokens.size());
    if (l + 1 == config_.num_layers) {
      // Nothing reads the other rows any more: a prefill chunk without logits saves the last
      // layer's MLP, and rows do not depend on each other, so the bits stay the same.
      keep_rows(scratch_.x, batch.logit_rows, config_.hidden_size);
      keep_rows(scratch_.attention, batch.logit_rows,
                int64_t{config_.num_heads} * config_.head_dim);
      rows = static_cast<int64_t>(batch.logit_rows.size());
    }
    if (rows > 0) finish_layer(layer, rows);
  }
}

Status Decoder::forward(const ForwardBatch& batch, KvStore& kv, MatrixView logits) {
  CAPSTAN_RETURN_IF_ERROR(check(batch, kv, logits));
  const auto t = static_cast<int64_t>(batch.tokens.size());
  try {
    reserve(t);
  } catch (const std::bad_alloc&) {
    return resource_exhausted("not enough memory for the activations of a step of " +
                              std::to_string(t) + " tokens; lower --chunked-prefill-size");
  }
  rope_.fill(batch.positions, scratch_.cos.as<float>(), scratch_.sin.as<float>());

  ops_->begin_step();
  ops_->embed({.ids = batch.tokens,
               .table = &weights_.embedding,
               .y = matrix(scratch_.x, t, config_.hidden_size)});
  run_layers(batch, kv);
  const auto rows = static_cast<int64_t>(batch.logit_rows.size());
  if (rows > 0) {
    const MatrixView x = matrix(scratch_.x, rows, config_.hidden_size);
    const MatrixView normed = matrix(scratch_.normed, rows, config_.hidden_size);
    ops_->rms_norm({.x = x,
                    .weight = weights_.final_norm.data(),
                    .eps = static_cast<float>(config_.rms_norm_eps),
                    .y = normed});
    ops_->linear({.x = normed, .weight = weights_.lm_head.get(), .y = logits});
  }
  ops_->end_step();
  return {};
}

}  // namespace capstan::model
