#include "model/weights.h"

#include <cmath>
#include <unordered_set>

#include "model/printable.h"

namespace capstan::model {
namespace {

constexpr int64_t kScaleBlock = 128;

std::vector<std::pair<const char*, int64_t>> qkv_parts(const ModelConfig& c) {
  const int64_t q = int64_t{c.num_heads} * c.head_dim;
  const int64_t kv = int64_t{c.num_kv_heads} * c.head_dim;
  return {{"self_attn.q_proj", q}, {"self_attn.k_proj", kv}, {"self_attn.v_proj", kv}};
}

/// A projection's matrix.
WeightSpec matrix(int layer, const std::string& part, std::vector<int64_t> shape) {
  return {layer_weight(layer, part + ".weight"), std::move(shape), /*quantised=*/true};
}

WeightSpec vector(int layer, const std::string& part, int64_t size) {
  return {layer_weight(layer, part), {size}};
}

GqaSpec gqa_spec(const ModelConfig& c, int l) {
  GqaSpec s;
  for (const auto& [part, rows] : qkv_parts(c)) {
    s.qkv.push_back(matrix(l, part, {rows, c.hidden_size}));
    if (c.qkv_bias) s.qkv_bias.push_back(vector(l, std::string(part) + ".bias", rows));
  }
  if (c.qk_norm) {
    s.qk_norm.push_back(vector(l, "self_attn.q_norm.weight", c.head_dim));
    s.qk_norm.push_back(vector(l, "self_attn.k_norm.weight", c.head_dim));
  }
  return s;
}

MlaSpec mla_spec(const ModelConfig& c, int l) {
  const MlaConfig& m = c.mla;
  const int64_t heads = c.num_heads, rank = m.kv_lora_rank;
  const int64_t q_rows = heads * c.head_dim;
  MlaSpec s;
  if (m.q_lora_rank > 0) {
    s.qkv_a.push_back(matrix(l, "self_attn.q_a_proj", {m.q_lora_rank, c.hidden_size}));
    s.q_a_norm = vector(l, "self_attn.q_a_layernorm.weight", m.q_lora_rank);
    s.q_b = matrix(l, "self_attn.q_b_proj", {q_rows, m.q_lora_rank});
  } else {
    s.qkv_a.push_back(matrix(l, "self_attn.q_proj", {q_rows, c.hidden_size}));
  }
  s.qkv_a.push_back(
      matrix(l, "self_attn.kv_a_proj_with_mqa", {rank + m.qk_rope_head_dim, c.hidden_size}));
  s.kv_a_norm = vector(l, "self_attn.kv_a_layernorm.weight", rank);
  if (m.split_kv_b) {
    s.kv_b.push_back(matrix(l, "self_attn.k_b_proj", {heads, rank, m.qk_nope_head_dim}));
    s.kv_b.push_back(matrix(l, "self_attn.v_b_proj", {heads, m.v_head_dim, rank}));
  } else {
    s.kv_b.push_back(
        matrix(l, "self_attn.kv_b_proj", {heads * (m.qk_nope_head_dim + m.v_head_dim), rank}));
  }
  return s;
}

FfnSpec ffn_spec(const ModelConfig& c, int l, const std::string& part, int64_t width) {
  return {.gate_up = {matrix(l, part + ".gate_proj", {width, c.hidden_size}),
                      matrix(l, part + ".up_proj", {width, c.hidden_size})},
          .down = matrix(l, part + ".down_proj", {c.hidden_size, width})};
}

MoeSpec moe_spec(const ModelConfig& c, int l) {
  const MoeConfig& m = c.moe;
  MoeSpec s;
  s.router = {layer_weight(l, "mlp.gate.weight"), {m.experts, c.hidden_size}};
  if (m.correction_bias) s.bias = vector(l, "mlp.gate.e_score_correction_bias", m.experts);
  s.experts.reserve(static_cast<size_t>(m.experts));
  for (int e = 0; e < m.experts; ++e) {
    s.experts.push_back(ffn_spec(c, l, "mlp.experts." + std::to_string(e), m.intermediate_size));
  }
  if (m.shared_experts > 0) {
    s.shared = ffn_spec(c, l, "mlp.shared_experts", m.shared_experts * m.intermediate_size);
  }
  return s;
}

void append(std::vector<WeightSpec>& all, std::vector<WeightSpec>&& group) {
  for (WeightSpec& w : group) all.push_back(std::move(w));
}

void append(std::vector<WeightSpec>& all, std::optional<WeightSpec>&& one) {
  if (one) all.push_back(std::move(*one));
}

void append(std::vector<WeightSpec>& all, FfnSpec&& s) {
  if (s.gate_up.empty()) return;
  append(all, std::move(s.gate_up));
  all.push_back(std::move(s.down));
}

bool is_float(DType t) { return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16; }

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

/// Names that a checkpoint may hold beside the required ones.
bool is_redundant(const ModelConfig& config, const std::string& name) {
  if (name.ends_with("rotary_emb.inv_freq")) return true;  // a table of old checkpoints
  // Copies of the model's own in the multi-token prediction layer.
  if (layer_of(name) >= config.num_layers &&
      (name.ends_with(".embed_tokens.weight") || name.ends_with(".shared_head.head.weight"))) {
    return true;
  }
  // Some GGUF files hold kv_b_proj and its two halves.
  return config.has_mla() && !config.mla.split_kv_b &&
         (name.ends_with(".self_attn.k_b_proj.weight") ||
          name.ends_with(".self_attn.v_b_proj.weight"));
}

Status check_shape(const Checkpoint& checkpoint, const WeightSpec& w, const TensorView& t) {
  if (t.shape == w.shape) return {};
  return data_loss(checkpoint.path() + ": tensor '" + w.name + "' has shape " +
                   shape_string(t.shape) + ", but the config asks for " + shape_string(w.shape));
}

Status check_scales(const Checkpoint& checkpoint, const WeightSpec& matrix) {
  const WeightSpec w = scale_spec(matrix);
  const TensorView* t = checkpoint.find(w.name);
  if (t == nullptr) {
    return data_loss(checkpoint.path() + ": tensor '" + w.name + "' of shape " +
                     shape_string(w.shape) +
                     " is missing: the block scales of the F8_E4M3 tensor '" + matrix.name + "'");
  }
  CAPSTAN_RETURN_IF_ERROR(check_shape(checkpoint, w, *t));
  if (t->dtype != DType::kF32) {
    return invalid_argument(checkpoint.path() + ": tensor '" + w.name + "' has dtype " +
                            std::string(dtype_info(t->dtype).name) +
                            "; block scales are supported in F32");
  }
  return {};
}

Status check_dtype(const Checkpoint& checkpoint, const WeightSpec& w, DType dtype) {
  const bool vector = w.shape.size() == 1;
  if (is_float(dtype) || (is_block_quantised(dtype) && !vector)) return {};
  if (dtype == DType::kF8E4M3 && w.quantised) return check_scales(checkpoint, w);
  return invalid_argument(checkpoint.path() + ": tensor '" + w.name + "' has dtype " +
                          std::string(dtype_info(dtype).name) +
                          ", which is not supported here; use F32, F16 or BF16");
}

int64_t elements(const WeightSpec& w) {
  int64_t n = 1;
  for (const int64_t d : w.shape) n *= d;
  return n;
}

/// Of the layers, with as many experts as a token chooses.
std::vector<WeightSpec> read_by_a_token(const ModelConfig& c) {
  std::vector<WeightSpec> read;
  for (int l = 0; l < c.num_layers; ++l) {
    LayerSpec s = layer_spec(c, l);
    if (s.moe) s.moe->experts.resize(static_cast<size_t>(c.moe.top_k));
    append_weights(read, std::move(s));
  }
  return read;
}

}  // namespace

std::string layer_weight(int layer, std::string_view part) {
  return "model.layers." + std::to_string(layer) + "." + std::string(part);
}

WeightSpec scale_spec(const WeightSpec& matrix) {
  WeightSpec s{matrix.name + "_scale_inv", matrix.shape};
  for (int64_t& d : s.shape) d = (d + kScaleBlock - 1) / kScaleBlock;
  s.slice = scales_slice(matrix.slice);
  return s;
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
  s.input_norm = vector(l, "input_layernorm.weight", c.hidden_size);
  s.post_attention_norm = vector(l, "post_attention_layernorm.weight", c.hidden_size);
  int64_t attention = int64_t{c.num_heads} * c.head_dim;
  if (c.has_mla()) {
    s.mla = mla_spec(c, l);
    attention = int64_t{c.num_heads} * c.mla.v_head_dim;
  } else {
    s.gqa = gqa_spec(c, l);
  }
  s.o = matrix(l, "self_attn.o_proj", {c.hidden_size, attention});
  if (c.is_moe_layer(l)) {
    s.moe = moe_spec(c, l);
  } else {
    s.dense = ffn_spec(c, l, "mlp", c.intermediate_size);
  }
  return s;
}

DraftSpec draft_spec(const ModelConfig& c) {
  const int l = c.num_layers;
  return {.embedding_norm = vector(l, "enorm.weight", c.hidden_size),
          .hidden_norm = vector(l, "hnorm.weight", c.hidden_size),
          .projection = {layer_weight(l, "eh_proj.weight"), {c.hidden_size, 2 * c.hidden_size}},
          .final_norm = vector(l, "shared_head.norm.weight", c.hidden_size)};
}

void append_weights(std::vector<WeightSpec>& all, LayerSpec&& s) {
  all.push_back(std::move(s.input_norm));
  if (s.gqa) {
    append(all, std::move(s.gqa->qkv));
    append(all, std::move(s.gqa->qkv_bias));
    append(all, std::move(s.gqa->qk_norm));
  }
  if (s.mla) {
    append(all, std::move(s.mla->qkv_a));
    append(all, std::move(s.mla->q_a_norm));
    append(all, std::move(s.mla->q_b));
    all.push_back(std::move(s.mla->kv_a_norm));
    append(all, std::move(s.mla->kv_b));
  }
  all.push_back(std::move(s.o));
  all.push_back(std::move(s.post_attention_norm));
  if (s.dense) append(all, std::move(*s.dense));
  if (s.moe) {
    all.push_back(std::move(s.moe->router));
    append(all, std::move(s.moe->bias));
    for (FfnSpec& e : s.moe->experts) append(all, std::move(e));
    if (s.moe->shared) append(all, std::move(*s.moe->shared));
  }
}

void append_weights(std::vector<WeightSpec>& all, DraftSpec&& d) {
  for (WeightSpec* w : {&d.embedding_norm, &d.hidden_norm, &d.projection, &d.final_norm}) {
    all.push_back(std::move(*w));
  }
}

std::vector<WeightSpec> required_weights(const ModelConfig& c, bool draft) {
  std::vector<WeightSpec> all = {embedding_spec(c)};
  for (int l = 0; l < c.num_layers; ++l) append_weights(all, layer_spec(c, l));
  all.push_back(final_norm_spec(c));
  if (!c.tie_word_embeddings) all.push_back(lm_head_spec(c));
  if (draft) {
    append_weights(all, layer_spec(c, c.num_layers));
    append_weights(all, draft_spec(c));
  }
  return all;
}

int64_t active_parameter_count(const ModelConfig& c) {
  int64_t total = elements(final_norm_spec(c)) + elements(lm_head_spec(c)) + c.hidden_size;
  for (const WeightSpec& w : read_by_a_token(c)) total += elements(w);
  return total;
}

int64_t active_matrix_elements(const ModelConfig& c) {
  int64_t total = 0;
  for (const WeightSpec& w : read_by_a_token(c)) {
    if (w.shape.size() > 1) total += elements(w);
  }
  return total;
}

Status check_weights(const Checkpoint& checkpoint, bool draft) {
  const ModelConfig& config = checkpoint.config();
  const std::vector<std::string> names = checkpoint.tensor_names();
  if (names.empty()) {
    return not_found(checkpoint.path() +
                     " holds a config but no *.safetensors or .gguf weights; "
                     "complete the download, or use --load-format dummy");
  }
  std::unordered_set<std::string> known;
  for (const WeightSpec& w : required_weights(config, draft)) {
    const TensorView* t = checkpoint.find(w.name);
    if (t == nullptr) {
      return data_loss(checkpoint.path() + ": tensor '" + w.name + "' of shape " +
                       shape_string(w.shape) + " is missing");
    }
    CAPSTAN_RETURN_IF_ERROR(check_shape(checkpoint, w, *t));
    CAPSTAN_RETURN_IF_ERROR(check_dtype(checkpoint, w, t->dtype));
    known.insert(w.name);
    if (t->dtype == DType::kF8E4M3) known.insert(scale_spec(w).name);
  }
  // Layers beyond these are multi-token prediction that nobody asked for.
  const int64_t layers = int64_t{config.num_layers} + (draft ? 1 : 0);
  for (const std::string& name : names) {
    const int64_t layer = layer_of(name);
    if (layer < 0 || layer >= layers || is_redundant(config, name)) continue;
    if (!known.contains(name)) {
      return invalid_argument(checkpoint.path() + ": tensor " + printable(name) +
                              " is not a weight of " + config.architecture_name +
                              "; config and weights do not belong together");
    }
  }
  return {};
}

}  // namespace capstan::model
