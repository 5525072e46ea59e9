#include "model/step.h"

namespace capstan::model {

int64_t projected_width(const ModelConfig& c) {
  if (!c.has_mla()) return (int64_t{c.num_heads} + 2 * c.num_kv_heads) * c.head_dim;
  const MlaConfig& m = c.mla;
  const int64_t query = m.q_lora_rank > 0 ? m.q_lora_rank : int64_t{c.num_heads} * c.head_dim;
  return query + m.kv_lora_rank + m.qk_rope_head_dim;
}

int64_t attention_width(const ModelConfig& c) {
  return int64_t{c.num_heads} * (c.has_mla() ? c.mla.v_head_dim : c.head_dim);
}

void Workspace::reserve(const ModelConfig& c, const Widths& widths, bool draft, int64_t wanted) {
  if (wanted <= rows) return;
  // Doubling keeps a slowly growing batch from reallocating at every step.
  const auto n = static_cast<size_t>(std::max(wanted, rows * 2));
  const auto floats = [n](int64_t cols) {
    return AlignedBuffer(n * static_cast<size_t>(cols) * sizeof(float));
  };
  *this = {};  // the old buffers go first, to keep the peak low
  x = floats(c.hidden_size);
  normed = floats(c.hidden_size);
  projected = floats(projected_width(c));
  if (c.mla.q_lora_rank > 0) q = floats(int64_t{c.num_heads} * c.head_dim);
  attention = floats(widths.attention);
  hidden = floats(widths.ffn);
  router = floats(c.moe.experts);
  expert_ids = floats(c.moe.top_k);
  expert_gain = floats(c.moe.top_k);
  if (draft) pair = floats(2 * c.hidden_size);
  cos = floats(c.rope.dim / 2);
  sin = floats(c.rope.dim / 2);
  rows = static_cast<int64_t>(n);
}

}  // namespace capstan::model
