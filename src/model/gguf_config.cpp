#include "model/gguf_config.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <cmath>
#include <cstring>

#include "model/config_json.h"
#include "model/gguf_keys.h"
#include "model/printable.h"

namespace capstan::model {
namespace {

namespace json = boost::json;

struct GgufArchitecture {
  std::string_view name;             // general.architecture
  std::string_view hf_architecture;  // of the config.json it corresponds to
  kernels::RopeStyle rope;
};
// The converter permutes q and k rows of llama models so that rotated pairs are neighbours; qwen
// and deepseek2 rows are left as they are.
constexpr GgufArchitecture kArchitectures[] = {
    {"llama", "LlamaForCausalLM", kernels::RopeStyle::kInterleaved},
    {"qwen2", "Qwen2ForCausalLM", kernels::RopeStyle::kHalfSplit},
    {"qwen3", "Qwen3ForCausalLM", kernels::RopeStyle::kHalfSplit},
    {"qwen3moe", "Qwen3MoeForCausalLM", kernels::RopeStyle::kHalfSplit},
    // gguf_experts says which version of DeepSeek it is.
    {"deepseek2", "DeepseekV3ForCausalLM", kernels::RopeStyle::kInterleaved},
};

Result<GgufArchitecture> read_architecture(const GgufFile& gguf, const std::string& file) {
  CAPSTAN_ASSIGN(const std::optional<std::string_view> name, gguf.string("general.architecture"));
  if (!name) return data_loss(file + ": metadata key 'general.architecture' is missing");
  for (const GgufArchitecture& a : kArchitectures) {
    if (a.name == *name) return a;
  }
  return invalid_argument(
      file + ": general.architecture " + printable(*name) +
      " is not supported; supported are llama, qwen2, qwen3, qwen3moe, deepseek2");
}

constexpr GgufKey kCommonKeys[] = {
    {"embedding_length", "hidden_size"},
    {"feed_forward_length", "intermediate_size"},
    {"block_count", "num_hidden_layers"},
    {"attention.head_count", "num_attention_heads"},
    {"attention.head_count_kv", "num_key_value_heads"},
    {"attention.key_length", "head_dim"},
    {"context_length", "max_position_embeddings"},
    {"vocab_size", "vocab_size"},
};

/// Checks that no metadata asks for a computation that is not done.
Status refuse_unsupported(const GgufFile& gguf, const std::string& prefix, const std::string& file,
                          json::object& config) {
  CAPSTAN_ASSIGN(const std::optional<int64_t> splits, gguf.integer("split.count"));
  if (splits.value_or(0) > 1) {
    return invalid_argument(file + ": the model is split in " + std::to_string(*splits) +
                            " files; merge them with `llama-gguf-split --merge` first");
  }
  CAPSTAN_ASSIGN(const std::optional<int64_t> window,
                 gguf.integer(prefix + "attention.sliding_window"));
  if (window.value_or(0) > 0) config["use_sliding_window"] = true;

  return {};
}

/// Checks of models that have neither experts nor latent attention.
Status refuse_parts(const GgufFile& gguf, const std::string& prefix, const std::string& file,
                    bool may_have_experts) {
  CAPSTAN_ASSIGN(const std::optional<int64_t> experts, gguf.integer(prefix + "expert_count"));
  if (experts.value_or(0) > 0 && !may_have_experts) {
    return invalid_argument(file + ": " + prefix + "expert_count is " + std::to_string(*experts) +
                            "; mixtures of experts are not supported for this architecture");
  }
  CAPSTAN_ASSIGN(const std::optional<int64_t> key_length,
                 uniform_integer(gguf, prefix + "attention.key_length", file));
  CAPSTAN_ASSIGN(const std::optional<int64_t> value_length,
                 uniform_integer(gguf, prefix + "attention.value_length", file));
  if (key_length && value_length && *key_length != *value_length) {
    return invalid_argument(file + ": " + prefix + "attention.key_length is " +
                            std::to_string(*key_length) + " and value_length " +
                            std::to_string(*value_length) + "; they must be equal");
  }
  return {};
}

/// rope.scaling.*: the type as it is (config.json refuses what is not known), YaRN in full.
Status copy_rope_scaling(const GgufFile& gguf, const std::string& prefix, const std::string& file,
                         json::object& config) {
  CAPSTAN_ASSIGN(const std::optional<std::string_view> type,
                 gguf.string(prefix + "rope.scaling.type"));
  if (!type || *type == "none") return {};
  json::object scaling{{"rope_type", json::string_view(*type)}};
  constexpr GgufKey kNumbers[] = {{"rope.scaling.factor", "factor"},
                                  {"rope.scaling.yarn_beta_fast", "beta_fast"},
                                  {"rope.scaling.yarn_beta_slow", "beta_slow"}};
  for (const auto& [from, to] : kNumbers) {
    CAPSTAN_ASSIGN(const std::optional<double> v, gguf.number(prefix + from));
    if (v) scaling[to] = *v;
  }
  CAPSTAN_ASSIGN(const std::optional<int64_t> original,
                 gguf.integer(prefix + "rope.scaling.original_context_length"));
  if (original) scaling["original_max_position_embeddings"] = *original;
  for (const char* key : {"rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"}) {
    CAPSTAN_ASSIGN(const std::optional<double> v, gguf.number(prefix + key));
    if (v && *v != 1.0) {
      return invalid_argument(file + ": " + prefix + key + " is " + std::to_string(*v) +
                              "; only 1 is supported");
    }
  }
  config["rope_scaling"] = std::move(scaling);
  return {};
}

}  // namespace

Result<json::object> gguf_config_json(const GgufFile& gguf, const std::string& file) {
  CAPSTAN_ASSIGN(const GgufArchitecture architecture, read_architecture(gguf, file));
  const std::string prefix = std::string(architecture.name) + ".";
  json::object config;
  config["architectures"] = json::array{json::string_view(architecture.hf_architecture)};
  CAPSTAN_RETURN_IF_ERROR(copy_integers(gguf, prefix, kCommonKeys, file, config));
  CAPSTAN_RETURN_IF_ERROR(refuse_unsupported(gguf, prefix, file, config));
  CAPSTAN_RETURN_IF_ERROR(copy_rope_scaling(gguf, prefix, file, config));
  const bool deepseek = architecture.name == "deepseek2";
  const bool qwen3moe = architecture.name == "qwen3moe";
  if (!deepseek) CAPSTAN_RETURN_IF_ERROR(refuse_parts(gguf, prefix, file, qwen3moe));
  if (deepseek) CAPSTAN_RETURN_IF_ERROR(add_deepseek2(gguf, file, config));
  if (qwen3moe) CAPSTAN_RETURN_IF_ERROR(add_qwen3moe(gguf, file, config));

  constexpr std::pair<const char*, const char*> kNumbers[] = {
      {"attention.layer_norm_rms_epsilon", "rms_norm_eps"}, {"rope.freq_base", "rope_theta"}};
  for (const auto& [from, to] : kNumbers) {
    CAPSTAN_ASSIGN(const std::optional<double> v, gguf.number(prefix + from));
    if (v) config[to] = *v;
  }
  if (!config.contains("rms_norm_eps")) {  // config.json has a default that is not llama's
    return data_loss(file + ": metadata key '" + prefix +
                     "attention.layer_norm_rms_epsilon' is missing");
  }
  const TensorView* embedding = find_tensor(gguf, "token_embd.weight");
  if (!config.contains("vocab_size")) {
    CAPSTAN_ASSIGN(const GgufArray* tokens, gguf.array("tokenizer.ggml.tokens"));
    if (embedding != nullptr && embedding->shape.size() == 2) {
      config["vocab_size"] = embedding->shape[0];
    } else if (tokens != nullptr) {
      config["vocab_size"] = static_cast<int64_t>(tokens->count);
    }
  }
  config["tie_word_embeddings"] = find_tensor(gguf, "output.weight") == nullptr;
  CAPSTAN_ASSIGN(const std::optional<int64_t> bos, gguf.integer("tokenizer.ggml.bos_token_id"));
  if (bos && *bos >= 0 && *bos <= INT32_MAX) config["bos_token_id"] = *bos;
  CAPSTAN_ASSIGN(const std::optional<int64_t> eos, gguf.integer("tokenizer.ggml.eos_token_id"));
  if (eos && *eos >= 0 && *eos <= INT32_MAX) config["eos_token_id"] = *eos;

  if (deepseek) return config;  // rotates its own part of each head

  CAPSTAN_ASSIGN(const std::optional<int64_t> rotated,
                 gguf.integer(prefix + "rope.dimension_count"));
  int64_t head_dim = 0;
  if (const json::value* d = config.if_contains("head_dim")) {
    head_dim = d->get_int64();
  } else if (config.contains("hidden_size") && config.contains("num_attention_heads")) {
    const int64_t heads = config["num_attention_heads"].get_int64();
    head_dim = heads > 0 ? config["hidden_size"].get_int64() / heads : 0;
  }
  if (rotated && head_dim > 0 && *rotated != head_dim) {
    config["partial_rotary_factor"] = static_cast<double>(*rotated) / static_cast<double>(head_dim);
  }
  return config;
}

Status apply_gguf_details(const GgufFile& gguf, const std::string& file, ModelConfig& config) {
  CAPSTAN_ASSIGN(const GgufArchitecture architecture, read_architecture(gguf, file));
  config.rope.style = architecture.rope;
  // Llama 3 and later name several ends: of text, of turn, of message.
  const auto vocab = static_cast<uint64_t>(config.vocab_size);
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    CAPSTAN_ASSIGN(const int32_t id, token_id(gguf, key, vocab, file));
    if (id >= 0) add_eos(config, id);
  }
  const TensorView* factors = find_tensor(gguf, "rope_freqs.weight");
  if (factors == nullptr || config.rope.scaling != RopeScaling::kNone) return {};
  const std::string what = file + ": tensor 'rope_freqs.weight'";
  if (factors->dtype != DType::kF32 || factors->elems() != config.rope.dim / 2) {
    return data_loss(what + " is " + std::string(dtype_info(factors->dtype).name) + " of shape " +
                     shape_string(factors->shape) + " instead of F32 [" +
                     std::to_string(config.rope.dim / 2) + "]");
  }
  config.rope.scaling = RopeScaling::kFactors;
  config.rope.factors.resize(static_cast<size_t>(factors->elems()));
  std::memcpy(config.rope.factors.data(), factors->data, factors->bytes());
  for (const float v : config.rope.factors) {
    if (!std::isfinite(v) || v <= 0) {
      return data_loss(what + " holds " + std::to_string(v) + "; factors must be above 0");
    }
  }
  return {};
}

Result<GenerationDefaults> gguf_generation_defaults(const GgufFile& gguf, const std::string& file) {
  GenerationDefaults d;
  CAPSTAN_ASSIGN(d.temperature, gguf.number("general.sampling.temp"));
  CAPSTAN_ASSIGN(d.top_p, gguf.number("general.sampling.top_p"));
  CAPSTAN_ASSIGN(d.min_p, gguf.number("general.sampling.min_p"));
  CAPSTAN_ASSIGN(d.repetition_penalty, gguf.number("general.sampling.penalty_repeat"));
  CAPSTAN_ASSIGN(const std::optional<int64_t> top_k, gguf.integer("general.sampling.top_k"));
  // ggml writes 0 or less for "all".
  if (top_k)
    d.top_k = *top_k <= 0 ? -1 : static_cast<int32_t>(std::min<int64_t>(*top_k, INT32_MAX));
  CAPSTAN_RETURN_IF_ERROR(validate(d, file + ": general.sampling"));
  return d;
}

}  // namespace capstan::model
