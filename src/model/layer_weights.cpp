#include "model/layer_weights.h"

namespace capstan::model {
namespace {

size_t bytes(const std::vector<float>& v) { return v.size() * sizeof(float); }

template <class Packed>
size_t bytes(const std::unique_ptr<Packed>& weight) {
  return weight == nullptr ? 0 : weight->bytes();
}

size_t bytes(const FfnWeights& f) { return bytes(f.gate_up) + bytes(f.down); }

}  // namespace

LayerBytes layer_bytes(const LayerWeights& l, int top_k) {
  size_t always = bytes(l.input_norm) + bytes(l.post_attention_norm) + bytes(l.o) + bytes(l.dense);
  if (l.gqa) always += bytes(l.gqa->q_norm) + bytes(l.gqa->k_norm) + bytes(l.gqa->qkv);
  if (l.mla) {
    always += bytes(l.mla->qkv_a) + bytes(l.mla->q_b) + bytes(l.mla->q_a_norm) +
              bytes(l.mla->kv_a_norm) + bytes(l.mla->kv_b);
  }
  if (!l.moe) return {always, always};
  always += bytes(l.moe->router) + bytes(l.moe->bias) + bytes(l.moe->shared);
  size_t experts = 0;
  for (const FfnWeights& e : l.moe->experts) experts += bytes(e);
  // Experts may differ in format; on average a token reads this.
  const size_t chosen = experts * static_cast<size_t>(top_k) / l.moe->experts.size();
  return {always + experts, always + chosen};
}

}  // namespace capstan::model
