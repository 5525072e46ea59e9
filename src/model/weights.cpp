#include "model/weights.h"

#include <cmath>
#include <unordered_set>

#include "model/printable.h"
#include "quant/codecs.h"

namespace capstan::model {
namespace {

std::vector<std::pair<const char*, int64_t>> qkv_parts(const ModelConfig& c) {
  const int64_t q = int64_t{c.num_heads} * c.head_dim;
  const int64_t kv = int64_t{c.num_kv_heads} * c.head_dim;
  return {{"self_attn.q_proj", q}, {"self_attn.k_proj", kv}, {"self_attn.v_proj", kv}};
}

bool is_weight_dtype(DType t) {
  return is_block_quantised(t) || t == DType::kF32 || t == DType::kF16 || t == DType::kBF16;
}

/// The layer number in model.layers.<l>.<...>, or -1.
int64_t layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  int64_t layer = -1;
  for (size_t i = kPrefix.size(); i < name.size() && name[i] >= '0' && name[i] <= '9'; ++i) {
    layer = (layer < 0 ? 0 : layer) * 10 + (name[i] - '0');
    if (layer > INT32_MAX) return -1;
  }
  return layer;
}

/// splitmix64: a full-period mixer of 64 bits (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t hash_name(std::string_view name) {  // FNV-1a: stable between builds, unlike std::hash
  uint64_t h = 0xcbf29ce484222325;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
}

}  // namespace

std::string layer_weight(int layer, std::string_view part) {
  return "model.layers." + std::to_string(layer) + "." + std::string(part);
}

WeightSpec embedding_spec(const ModelConfig& c) {
  return {"model.embed_tokens.weight", {c.vocab_size, c.hidden_size}};
}

WeightSpec final_norm_spec(const ModelConfig& c) { return {"model.norm.weight", {c.hidden_size}}; }

WeightSpec lm_head_spec(const ModelConfig& c) {
  if (c.tie_word_embeddings) return embedding_spec(c);
  return {"lm_head.weight", {c.vocab_size, c.hidden_size}};
}

LayerSpec layer_spec(const ModelConfig& c, int l) {
  LayerSpec s;
  s.input_norm = {layer_weight(l, "input_layernorm.weight"), {c.hidden_size}};
  s.post_attention_norm = {layer_weight(l, "post_attention_layernorm.weight"), {c.hidden_size}};
  for (const auto& [part, rows] : qkv_parts(c)) {
    s.qkv.push_back({layer_weight(l, std::string(part) + ".weight"), {rows, c.hidden_size}});
    if (c.qkv_bias) s.qkv_bias.push_back({layer_weight(l, std::string(part) + ".bias"), {rows}});
  }
  if (c.qk_norm) {
    s.qk_norm.push_back({layer_weight(l, "self_attn.q_norm.weight"), {c.head_dim}});
    s.qk_norm.push_back({layer_weight(l, "self_attn.k_norm.weight"), {c.head_dim}});
  }
  s.o = {layer_weight(l, "self_attn.o_proj.weight"),
         {c.hidden_size, int64_t{c.num_heads} * c.head_dim}};
  for (const char* part : {"mlp.gate_proj.weight", "mlp.up_proj.weight"}) {
    s.gate_up.push_back({layer_weight(l, part), {c.intermediate_size, c.hidden_size}});
  }
  s.down = {layer_weight(l, "mlp.down_proj.weight"), {c.hidden_size, c.intermediate_size}};
  return s;
}

std::vector<WeightSpec> required_weights(const ModelConfig& c) {
  std::vector<WeightSpec> all = {embedding_spec(c)};
  for (int l = 0; l < c.num_layers; ++l) {
    LayerSpec s = layer_spec(c, l);
    all.push_back(std::move(s.input_norm));
    for (auto* group : {&s.qkv, &s.qkv_bias, &s.qk_norm}) {
      for (WeightSpec& w : *group) all.push_back(std::move(w));
    }
    all.push_back(std::move(s.o));
    all.push_back(std::move(s.post_attention_norm));
    for (WeightSpec& w : s.gate_up) all.push_back(std::move(w));
    all.push_back(std::move(s.down));
  }
  all.push_back(final_norm_spec(c));
  if (!c.tie_word_embeddings) all.push_back(lm_head_spec(c));
  return all;
}

Status check_weights(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  const std::vector<std::string> names = checkpoint.tensor_names();
  if (names.empty()) {
    return not_found(checkpoint.path() +
                     " holds a config but no *.safetensors or .gguf weights; "
                     "complete the download, or use --load-format dummy");
  }
  std::unordered_set<std::string> known;
  for (const WeightSpec& w : required_weights(config)) {
    const TensorView* t = checkpoint.find(w.name);
    if (t == nullptr) {
      return data_loss(checkpoint.path() + ": tensor '" + w.name + "' of shape " +
                       shape_string(w.shape) + " is missing");
    }
    if (t->shape != w.shape) {
      return data_loss(checkpoint.path() + ": tensor '" + w.name + "' has shape " +
                       shape_string(t->shape) + ", but the config asks for " +
                       shape_string(w.shape));
    }
    const bool vector = w.shape.size() == 1;
    if (!is_weight_dtype(t->dtype) || (vector && is_block_quantised(t->dtype))) {
      return invalid_argument(checkpoint.path() + ": tensor '" + w.name + "' has dtype " +
                              std::string(dtype_info(t->dtype).name) +
                              ", which is not supported here; use F32, F16 or BF16");
    }
    known.insert(w.name);
  }
  for (const std::string& name : names) {
    const int64_t layer = layer_of(name);
    // Layers beyond the last are multi-token prediction; inv_freq is a table of old checkpoints.
    if (layer < 0 || layer >= config.num_layers || name.ends_with("rotary_emb.inv_freq")) continue;
    if (!known.contains(name)) {
      return invalid_argument(checkpoint.path() + ": tensor " + printable(name) +
                              " is not a weight of " + config.architecture_name +
                              "; config and weights do not belong together");
    }
  }
  return {};
}

DType dummy_dtype(const ModelConfig& config, const WeightSpec& spec) {
  if (spec.shape.size() == 1) return DType::kF32;
  switch (config.weight_dtype) {
    case DType::kF32:
    case DType::kF16:
      return config.weight_dtype;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
      if (spec.shape.back() % dtype_info(config.weight_dtype).block_elems == 0) {
        return config.weight_dtype;
      }
      return DType::kBF16;
    default:
      return DType::kBF16;
  }
}

Status fill_dummy(const WeightSpec& spec, DType dtype, uint64_t seed, std::byte* out) {
  const int64_t cols = spec.shape.back();
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < spec.shape.size(); ++i) rows *= spec.shape[i];
  const bool norm = spec.name.ends_with("norm.weight");
  const bool bias = spec.name.ends_with(".bias");
  // A uniform variable on [-a, a] has variance a^2 / 3.
  const double amplitude = norm ? 0.0 : (bias ? 0.1 : std::sqrt(3.0 / static_cast<double>(cols)));
  const auto centre = norm ? 1.0F : 0.0F;
  const auto step = static_cast<float>(amplitude / static_cast<double>(1 << 23));
  const uint64_t key = mix(seed ^ hash_name(spec.name));
  const size_t row_bytes = dtype_bytes(dtype, cols);
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    uint64_t state = mix(key + static_cast<uint64_t>(r));
    for (float& v : row) {
      state += 0x9e3779b97f4a7c15;
      // 24 random bits as a signed integer in [-2^23, 2^23).
      const auto bits = static_cast<int32_t>(mix(state) >> 40) - (1 << 23);
      v = centre + step * static_cast<float>(bits);
    }
    CAPSTAN_RETURN_IF_ERROR(
        quant::quantize_row(dtype, row.data(), out + static_cast<size_t>(r) * row_bytes, cols));
  }
  return {};
}

}  // namespace capstan::model
