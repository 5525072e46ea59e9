#include "model/describe.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <map>
#include <utility>
#include <vector>

#include "model/weights.h"

namespace capstan::model {
namespace {

std::string fixed(double value, const char* unit) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), "%.1f%s", value, unit);
  return text.data();
}

std::string count(int64_t n) {
  const auto v = static_cast<double>(n);
  if (v >= 1e9) return fixed(v / 1e9, "B");
  if (v >= 1e6) return fixed(v / 1e6, "M");
  return fixed(v / 1e3, "K");
}

std::string size(size_t n) {
  const auto v = static_cast<double>(n);
  return v >= 1e9 ? fixed(v / 1e9, " GB") : fixed(v / 1e6, " MB");
}

/// "9/3 heads of 64", or "16 heads of 128+64 over a latent of 512+64".
std::string describe_attention(const ModelConfig& c) {
  if (!c.has_mla()) {
    return std::to_string(c.num_heads) + "/" + std::to_string(c.num_kv_heads) + " heads of " +
           std::to_string(c.head_dim);
  }
  const std::string rotated = "+" + std::to_string(c.mla.qk_rope_head_dim);
  return std::to_string(c.num_heads) + " heads of " + std::to_string(c.mla.qk_nope_head_dim) +
         rotated + " over a latent of " + std::to_string(c.mla.kv_lora_rank) + rotated;
}

/// ", 8 of 256 experts and 1 shared in 58 layers", ", 1 multi-token prediction layer".
std::string describe_experts(const ModelConfig& c) {
  std::string text;
  if (c.has_moe()) {
    const auto layers = std::count(c.moe.layers.begin(), c.moe.layers.end(), true);
    text += ", " + std::to_string(c.moe.top_k) + " of " + std::to_string(c.moe.experts) +
            " experts" +
            (c.moe.shared_experts > 0 ? " and " + std::to_string(c.moe.shared_experts) + " shared"
                                      : "") +
            " in " + std::to_string(layers) + " layers";
  }
  if (c.num_nextn_predict_layers > 0) {
    text += ", " + std::to_string(c.num_nextn_predict_layers) + " multi-token prediction layer" +
            (c.num_nextn_predict_layers > 1 ? "s" : "");
  }
  return text;
}

}  // namespace

int64_t parameter_count(const ModelConfig& config) {
  int64_t total = 0;
  for (const WeightSpec& w : required_weights(config)) {
    int64_t n = 1;
    for (const int64_t d : w.shape) n *= d;
    total += n;
  }
  return total;
}

std::string describe(const Checkpoint& checkpoint) {
  const ModelConfig& c = checkpoint.config();
  std::string text = c.architecture_name + ", " + count(parameter_count(c)) + " parameters";
  if (c.has_moe()) text += " (" + count(active_parameter_count(c)) + " per token)";
  text += ", " + std::to_string(c.num_layers) + " layers, hidden " + std::to_string(c.hidden_size) +
          ", " + describe_attention(c) + describe_experts(c) + ", vocabulary " +
          std::to_string(c.vocab_size) + (c.tie_word_embeddings ? " (tied)" : "") + ", context " +
          std::to_string(c.max_position_embeddings);
  std::map<DType, int64_t> elems;
  int64_t total = 0;
  size_t bytes = 0;
  for (const WeightSpec& w : required_weights(c)) {
    const TensorView* t = checkpoint.find(w.name);
    if (t == nullptr) continue;
    elems[t->dtype] += t->elems();
    total += t->elems();
    bytes += t->bytes();
  }
  if (total == 0) return text;
  text += "; " + size(bytes) + " of weights:";
  std::vector<std::pair<DType, int64_t>> order(elems.begin(), elems.end());
  std::stable_sort(order.begin(), order.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  const char* separator = " ";
  for (const auto& [dtype, n] : order) {
    text += separator + std::string(dtype_info(dtype).name) + " " +
            fixed(100.0 * static_cast<double>(n) / static_cast<double>(total), "%");
    separator = ", ";
  }
  return text;
}

}  // namespace capstan::model
