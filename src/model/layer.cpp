#include "model/layer.h"

#include <algorithm>
#include <cmath>

namespace capstan::model {
namespace {

using kernels::Epilogue;

float softmax_scale(const ModelConfig& c) {
  return static_cast<float>(c.rope.softmax_factor / std::sqrt(static_cast<double>(c.head_dim)));
}

/// normed -> out, with grouped key and value heads.
void attend_grouped(const Step& s, const GqaWeights& w, const MatrixView& normed,
                    const kernels::PagedKv& cache, const MatrixView& out) {
  const ModelConfig& c = s.config;
  const MatrixView qkv = matrix(s.work.projected, s.rows(), projected_width(c));
  s.ops.linear({.x = normed, .weight = w.qkv.get(), .y = qkv});
  s.ops.qkv_rope_store({.qkv = qkv,
                        .q_heads = c.num_heads,
                        .kv = cache,
                        .q_norm = w.q_norm.empty() ? nullptr : w.q_norm.data(),
                        .k_norm = w.k_norm.empty() ? nullptr : w.k_norm.data(),
                        .norm_eps = s.eps,
                        .rope = c.rope.style,
                        .cos = s.work.cos.as<float>(),
                        .sin = s.work.sin.as<float>(),
                        .rope_dim = c.rope.dim,
                        .slots = s.batch.slots});
  s.ops.attention({.q = qkv,
                   .q_heads = c.num_heads,
                   .kv = cache,
                   .scale = softmax_scale(c),
                   .sequences = s.batch.sequences,
                   .out = out});
}

/// normed -> out, with one latent row per token.
void attend_latent(const Step& s, const MlaWeights& w, const MatrixView& normed,
                   const kernels::PagedKv& cache, const MatrixView& out) {
  const ModelConfig& c = s.config;
  const int64_t q_width = int64_t{c.num_heads} * c.head_dim;
  const int64_t latent = c.mla.kv_lora_rank + c.mla.qk_rope_head_dim;
  const MatrixView first = matrix(s.work.projected, s.rows(), projected_width(c));
  s.ops.linear({.x = normed, .weight = w.qkv_a.get(), .y = first});
  const MatrixView kv = columns(first, first.cols - latent, latent);
  MatrixView q = columns(first, 0, first.cols - latent);
  if (w.q_b != nullptr) {
    s.ops.rms_norm({.x = q, .weight = w.q_a_norm.data(), .eps = s.eps, .y = q});
    const MatrixView compressed = q;
    q = matrix(s.work.q, s.rows(), q_width);
    s.ops.linear({.x = compressed, .weight = w.q_b.get(), .y = q});
  }
  const kernels::MlaShape shape{.heads = c.num_heads,
                                .nope_dim = c.mla.qk_nope_head_dim,
                                .rope_dim = c.mla.qk_rope_head_dim,
                                .value_dim = c.mla.v_head_dim,
                                .rank = c.mla.kv_lora_rank};
  s.ops.mla_store({.shape = shape,
                   .q = q,
                   .kv = kv,
                   .norm = w.kv_a_norm.data(),
                   .eps = s.eps,
                   .rope = c.rope.style,
                   .cos = s.work.cos.as<float>(),
                   .sin = s.work.sin.as<float>(),
                   .cache = cache,
                   .slots = s.batch.slots});
  s.ops.mla_attention({.shape = shape,
                       .q = q,
                       .cache = cache,
                       .projection = w.kv_b.get(),
                       .scale = softmax_scale(c),
                       .form = s.mla_form,
                       .sequences = s.batch.sequences,
                       .out = out});
}

/// Heads' outputs, with the inputs that o's slice has before and behind them: zeros.
MatrixView heads_output(const Step& s, const LayerWeights& layer) {
  const MatrixView all = matrix(s.work.attention, s.rows(), layer.o->k());
  const int64_t width = attention_width(s.config), before = layer.attention_offset;
  const int64_t behind = all.cols - before - width;
  for (int64_t r = 0; before + behind > 0 && r < all.rows; ++r) {
    std::fill_n(all.row(r), before, 0.0F);
    std::fill_n(all.row(r) + before + width, behind, 0.0F);
  }
  return columns(all, before, width);
}

/// x += FFN(normed), or x = FFN(normed): the rank's part of it, which may be nothing.
void run_ffn(const Step& s, const FfnWeights& w, const MatrixView& normed, const MatrixView& x,
             Epilogue epilogue) {
  if (w.down == nullptr) {
    if (epilogue == Epilogue::kStore) std::fill_n(x.data, x.rows * x.cols, 0.0F);
    return;
  }
  const MatrixView hidden = matrix(s.work.hidden, x.rows, w.down->k());
  s.ops.linear(
      {.x = normed, .weight = w.gate_up.get(), .y = hidden, .epilogue = Epilogue::kSwiGlu});
  s.ops.linear({.x = hidden, .weight = w.down.get(), .y = x, .epilogue = epilogue});
}

kernels::RouterSpec router_spec(const MoeConfig& m, const std::vector<float>& bias) {
  return {
      .scoring = m.sigmoid ? kernels::ExpertScoring::kSigmoid : kernels::ExpertScoring::kSoftmax,
      .experts = m.experts,
      .top_k = m.top_k,
      .groups = m.groups,
      .groups_kept = m.groups_kept,
      .group_top2_sum = m.group_top2_sum,
      .mask_with_zero = m.mask_with_zero,
      .normalise = m.normalise,
      .scale = static_cast<float>(m.scale),
      .scale_always = m.scale_always,
      .bias = bias.empty() ? nullptr : bias.data()};
}

/// Chosen experts and shared experts of normed, put to x as Ranks::residual() says.
void run_experts(const Step& s, const MoeWeights& w, int layer, const MatrixView& normed,
                 const MatrixView& x, ExpertLoad& load) {
  const MoeConfig& m = s.config.moe;
  const MatrixView logits = matrix(s.work.router, x.rows, m.experts);
  s.ops.linear({.x = normed, .weight = w.router.get(), .y = logits});
  const kernels::RouterSpec spec = router_spec(m, w.bias);
  auto* chosen = s.work.expert_ids.as<int32_t>();
  auto* gain = s.work.expert_gain.as<float>();
  s.ops.route({.logits = logits, .router = &spec, .experts = chosen, .weights = gain});
  load.add(layer, {chosen, static_cast<size_t>(x.rows * m.top_k)});
  const Epilogue epilogue = s.ranks.residual();
  if (epilogue == Epilogue::kStore) run_ffn(s, w.shared, normed, x, epilogue);
  s.ops.experts({.x = normed,
                 .experts = chosen,
                 .weights = gain,
                 .top_k = m.top_k,
                 .gate_up = w.gate_up,
                 .down = w.down,
                 .y = x});
  if (epilogue == Epilogue::kAdd) run_ffn(s, w.shared, normed, x, epilogue);
}

/// x += o(attention) for the rank's own rows, or its part of that sum; others bring the other rows.
Status add_attention(const Step& s, const LayerWeights& layer, const MatrixView& x, OwnRows own) {
  if (own.count > 0) {
    s.ops.linear({.x = matrix(s.work.attention, own.count, layer.o->k()),
                  .weight = layer.o.get(),
                  .y = rows_of(x, own),
                  .epilogue = s.first_in_group ? Epilogue::kAdd : Epilogue::kStore});
  }
  std::fill(x.data, x.row(own.first), 0.0F);
  std::fill(x.row(own.first + own.count), x.row(x.rows), 0.0F);
  // One sum over all ranks does what a sum within the group and a gathering of the groups' rows
  // would do, in one exchange and without padding groups to one size.
  return s.ranks.add_up(x);
}

}  // namespace

void attend(const Step& s, const LayerWeights& layer, const kernels::PagedKv& cache) {
  if (s.rows() == 0) return;
  const int64_t width = s.config.hidden_size;
  const MatrixView x = rows_of(matrix(s.work.x, s.own.first + s.own.count, width), s.own);
  const MatrixView normed = matrix(s.work.normed, s.rows(), width);
  s.ops.rms_norm({.x = x, .weight = layer.input_norm.data(), .eps = s.eps, .y = normed});
  if (layer.mla) {
    attend_latent(s, *layer.mla, normed, cache, heads_output(s, layer));
  } else {
    attend_grouped(s, *layer.gqa, normed, cache, heads_output(s, layer));
  }
}

Status finish_layer(const Step& s, const LayerWeights& layer, int index, int64_t rows, OwnRows own,
                    ExpertLoad& load) {
  const MatrixView x = matrix(s.work.x, rows, s.config.hidden_size);
  const MatrixView normed = matrix(s.work.normed, rows, s.config.hidden_size);
  CAPSTAN_RETURN_IF_ERROR(add_attention(s, layer, x, own));
  s.ops.rms_norm({.x = x, .weight = layer.post_attention_norm.data(), .eps = s.eps, .y = normed});
  if (layer.moe) {
    run_experts(s, *layer.moe, index, normed, x, load);
  } else {
    run_ffn(s, layer.dense, normed, x, s.ranks.residual());
  }
  return s.ranks.add_up(x);
}

}  // namespace capstan::model
