#include "model/sharded_weights.h"

#include <algorithm>
#include <string>

#include "model/weight_source.h"

namespace capstan::model {
namespace {

constexpr int64_t kScaleBlock = 128;

}  // namespace

ShardedWeights::Range ShardedWeights::heads(int64_t n, int64_t row) const {
  const int ranks = shard_.attention_ranks();
  const int64_t first = n * shard_.attention_part() / ranks;
  const int64_t count = std::max<int64_t>(1, n / ranks);
  return {first * row, (first + count) * row};
}

Error ShardedWeights::fp8_error(const WeightSpec& weight, const char* what, int64_t size, int parts,
                                bool expert) const {
  const bool even = size % parts == 0;
  return invalid_argument(
      "--tp-size " + std::to_string(shard_.size) + ": tensor '" + weight.name +
          "' is F8_E4M3 with one scale per block of 128 x 128; a split of its " +
          std::to_string(size) + " " + what + " over " + std::to_string(parts) + " ranks gives " +
          (even ? "" : "about ") + std::to_string(size / parts) +
          " each, which is no multiple of 128; use a smaller --tp-size" +
          (expert ? ", or a larger --ep-size, which keeps experts whole" : ""),
      "tp-size");
}

Status ShardedWeights::cut_rows(WeightSpec& weight, Range rows) const {
  const int64_t all = weight.shape.front();
  const bool aligned =
      rows.begin % kScaleBlock == 0 && (rows.end % kScaleBlock == 0 || rows.end == all);
  if (!aligned && dtype_of_(weight) == DType::kF8E4M3) {
    return fp8_error(weight, "rows", all, static_cast<int>(all / (rows.end - rows.begin)), false);
  }
  weight.slice = WeightSlice::rows(rows.begin, rows.end);
  return {};
}

/// The columns of this rank's heads. Where they begin or end inside a block of the format the whole
/// block is held; the other heads' columns meet zeros.
Status ShardedWeights::cut_output(WeightSpec& o, int64_t& offset) const {
  const int64_t all = o.shape.back();
  const Range columns = heads(config_.num_heads, all / config_.num_heads);
  const DType dtype = dtype_of_(o);
  if (dtype == DType::kF8E4M3 &&
      (columns.begin % kScaleBlock != 0 || columns.end % kScaleBlock != 0)) {
    return fp8_error(o, "columns", all, shard_.attention_ranks(), false);
  }
  const int64_t block = dtype_info(dtype).block_elems;
  o.slice = WeightSlice::columns(columns.begin / block * block,
                                 (columns.end + block - 1) / block * block);
  offset = columns.begin - o.slice.begin;
  return {};
}

Status ShardedWeights::cut_attention(LayerSpec& layer) const {
  if (shard_.attention_ranks() == 1) return {};
  const ModelConfig& c = config_;
  if (layer.gqa) {
    for (size_t i = 0; i < layer.gqa->qkv.size(); ++i) {  // q, k, v
      const Range rows = heads(i == 0 ? c.num_heads : c.num_kv_heads, c.head_dim);
      CAPSTAN_RETURN_IF_ERROR(cut_rows(layer.gqa->qkv[i], rows));
      if (!layer.gqa->qkv_bias.empty()) {
        CAPSTAN_RETURN_IF_ERROR(cut_rows(layer.gqa->qkv_bias[i], rows));
      }
    }
  }
  if (layer.mla) {
    WeightSpec& q = layer.mla->q_b ? *layer.mla->q_b : layer.mla->qkv_a.front();
    CAPSTAN_RETURN_IF_ERROR(cut_rows(q, heads(c.num_heads, c.head_dim)));
    for (WeightSpec& kv_b : layer.mla->kv_b) {  // stacked by head, or rows of all heads
      const int64_t row = kv_b.shape.front() / c.num_heads;
      CAPSTAN_RETURN_IF_ERROR(cut_rows(kv_b, heads(c.num_heads, row)));
    }
  }
  return cut_output(layer.o, layer.attention_offset);
}

Status ShardedWeights::cut_ffn(FfnSpec& ffn, int part, int parts, bool expert) const {
  if (parts == 1) return {};
  const int64_t width = ffn.down.shape.back();
  const DType down = dtype_of_(ffn.down);
  if (width % (kScaleBlock * parts) != 0) {
    if (down == DType::kF8E4M3) return fp8_error(ffn.down, "columns", width, parts, expert);
    for (const WeightSpec& w : ffn.gate_up) {
      if (dtype_of_(w) == DType::kF8E4M3) return fp8_error(w, "rows", width, parts, expert);
    }
  }
  int64_t unit = dtype_info(down).block_elems;
  if (unit == 1) unit = even_part_unit(width, parts);
  const int64_t units = (width + unit - 1) / unit;
  const int64_t begin = part_boundary(units, part, parts) * unit;
  const int64_t end = std::min(part_boundary(units, part + 1, parts) * unit, width);
  if (begin == end) {  // fewer blocks than ranks
    ffn = {};
    return {};
  }
  for (WeightSpec& w : ffn.gate_up) w.slice = WeightSlice::rows(begin, end);
  ffn.down.slice = WeightSlice::columns(begin, end);
  return {};
}

Result<LayerSpec> ShardedWeights::layer(int index) const {
  LayerSpec layer = layer_spec(config_, index);
  if (shard_.size == 1) return layer;
  CAPSTAN_RETURN_IF_ERROR(cut_attention(layer));
  if (layer.dense) {
    CAPSTAN_RETURN_IF_ERROR(cut_ffn(*layer.dense, shard_.rank, shard_.size, false));
  }
  if (!layer.moe) return layer;
  if (layer.moe->shared) {
    CAPSTAN_RETURN_IF_ERROR(cut_ffn(*layer.moe->shared, shard_.rank, shard_.size, false));
  }
  const auto experts = static_cast<int64_t>(layer.moe->experts.size());
  const int64_t first = part_boundary(experts, shard_.expert_group(), shard_.ep_size);
  const int64_t last = part_boundary(experts, shard_.expert_group() + 1, shard_.ep_size);
  for (int64_t e = 0; e < experts; ++e) {
    FfnSpec& expert = layer.moe->experts[static_cast<size_t>(e)];
    if (e < first || e >= last) {
      expert = {};
    } else {
      CAPSTAN_RETURN_IF_ERROR(
          cut_ffn(expert, shard_.expert_part(), shard_.ranks_per_expert(), true));
    }
  }
  return layer;
}

WeightSpec ShardedWeights::lm_head() const {
  WeightSpec head = lm_head_spec(config_);
  if (shard_.size == 1) return head;
  const std::vector<int64_t> parts = vocabulary_parts(config_, shard_);
  int64_t begin = 0;
  for (int r = 0; r < shard_.rank; ++r) begin += parts[static_cast<size_t>(r)];
  head.slice = WeightSlice::rows(begin, begin + parts[static_cast<size_t>(shard_.rank)]);
  return head;
}

Result<std::vector<WeightSpec>> ShardedWeights::all(bool draft) const {
  std::vector<WeightSpec> all = {embedding_spec(config_), final_norm_spec(config_)};
  all.push_back(lm_head());
  for (int l = 0; l < config_.num_layers + (draft ? 1 : 0); ++l) {
    CAPSTAN_ASSIGN(LayerSpec spec, layer(l));
    append_weights(all, std::move(spec));
  }
  if (draft) append_weights(all, draft_spec(config_));
  return all;
}

Status check_shard(const Checkpoint& checkpoint, const LoadOptions& options) {
  CAPSTAN_RETURN_IF_ERROR(check_shard(checkpoint.config(), options.shard));
  const WeightSource source(checkpoint, options);
  const ShardedWeights weights(checkpoint.config(), options.shard,
                               [&](const WeightSpec& w) { return source.dtype(w); });
  return weights.all(options.draft).status();
}

}  // namespace capstan::model
