#include "model/gguf_config.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <cmath>
#include <cstring>

#include "model/config_json.h"
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
// rows are left as they are.
constexpr GgufArchitecture kArchitectures[] = {
    {"llama", "LlamaForCausalLM", kernels::RopeStyle::kInterleaved},
    {"qwen2", "Qwen2ForCausalLM", kernels::RopeStyle::kHalfSplit},
    {"qwen3", "Qwen3ForCausalLM", kernels::RopeStyle::kHalfSplit},
};

Result<GgufArchitecture> read_architecture(const GgufFile& gguf, const std::string& file) {
  CAPSTAN_ASSIGN(const std::optional<std::string_view> name, gguf.string("general.architecture"));
  if (!name) return data_loss(file + ": metadata key 'general.architecture' is missing");
  for (const GgufArchitecture& a : kArchitectures) {
    if (a.name == *name) return a;
  }
  return invalid_argument(file + ": general.architecture " + printable(*name) +
                          " is not supported; supported are llama, qwen2, qwen3");
}

/// An integer, or an array with the same integer for every layer.
Result<std::optional<int64_t>> uniform_integer(const GgufFile& gguf, const std::string& key,
                                               const std::string& file) {
  const auto it = gguf.metadata().find(key);
  if (it == gguf.metadata().end() || !std::holds_alternative<GgufArray>(it->second)) {
    return gguf.integer(key);
  }
  const auto& array = std::get<GgufArray>(it->second);
  std::optional<int64_t> common;
  for (uint64_t i = 0; i < array.count; ++i) {
    const std::optional<int64_t> v = scalar_integer(array.at(i));
    if (!v) return data_loss(file + ": metadata key " + printable(key) + " is not integers");
    if (common && *common != *v) {
      return invalid_argument(file + ": " + key + " differs between layers (" +
                              std::to_string(*common) + " and " + std::to_string(*v) +
                              "), which is not supported");
    }
    common = v;
  }
  return common;
}

const TensorView* find_tensor(const GgufFile& gguf, std::string_view name) {
  const auto& tensors = gguf.tensors();
  const auto it = std::find_if(tensors.begin(), tensors.end(),
                               [&](const TensorView& t) { return t.name == name; });
  return it == tensors.end() ? nullptr : &*it;
}

/// Copies metadata keys to config.json keys, one table line each.
Status copy_integers(const GgufFile& gguf, const std::string& prefix, const std::string& file,
                     json::object& config) {
  constexpr std::pair<const char*, const char*> kKeys[] = {
      {"embedding_length", "hidden_size"},
      {"feed_forward_length", "intermediate_size"},
      {"block_count", "num_hidden_layers"},
      {"attention.head_count", "num_attention_heads"},
      {"attention.head_count_kv", "num_key_value_heads"},
      {"attention.key_length", "head_dim"},
      {"context_length", "max_position_embeddings"},
      {"vocab_size", "vocab_size"},
  };
  for (const auto& [from, to] : kKeys) {
    CAPSTAN_ASSIGN(const std::optional<int64_t> v, uniform_integer(gguf, prefix + from, file));
    if (v) config[to] = *v;
  }
  return {};
}

/// Checks that no metadata asks for a computation that is not done.
Status refuse_unsupported(const GgufFile& gguf, const std::string& prefix, const std::string& file,
                          json::object& config) {
  CAPSTAN_ASSIGN(const std::optional<int64_t> splits, gguf.integer("split.count"));
  if (splits.value_or(0) > 1) {
    return invalid_argument(file + ": the model is split in " + std::to_string(*splits) +
                            " files; merge them with `llama-gguf-split --merge` first");
  }
  CAPSTAN_ASSIGN(const std::optional<int64_t> experts, gguf.integer(prefix + "expert_count"));
  if (experts.value_or(0) > 0) {
    return invalid_argument(file + ": " + prefix + "expert_count is " + std::to_string(*experts) +
                            "; mixtures of experts are not supported for this architecture");
  }
  CAPSTAN_ASSIGN(const std::optional<int64_t> window,
                 gguf.integer(prefix + "attention.sliding_window"));
  if (window.value_or(0) > 0) config["use_sliding_window"] = true;

  CAPSTAN_ASSIGN(const std::optional<std::string_view> scaling,
                 gguf.string(prefix + "rope.scaling.type"));
  if (scaling && *scaling != "none") {
    config["rope_scaling"] = json::object{{"rope_type", json::string_view(*scaling)}};
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

/// Token ids; absent and 0xFFFFFFFF mean none.
Result<int32_t> token_id(const GgufFile& gguf, const std::string& key, uint64_t limit,
                         const std::string& file) {
  CAPSTAN_ASSIGN(const std::optional<int64_t> id, gguf.integer(key));
  if (!id || *id == -1 || *id == int64_t{UINT32_MAX}) return int32_t{-1};
  if (*id < 0 || static_cast<uint64_t>(*id) >= limit) {
    return data_loss(file + ": " + key + " is " + std::to_string(*id) +
                     ", outside the vocabulary of " + std::to_string(limit) + " tokens");
  }
  return static_cast<int32_t>(*id);
}

}  // namespace

Result<json::object> gguf_config_json(const GgufFile& gguf, const std::string& file) {
  CAPSTAN_ASSIGN(const GgufArchitecture architecture, read_architecture(gguf, file));
  const std::string prefix = std::string(architecture.name) + ".";
  json::object config;
  config["architectures"] = json::array{json::string_view(architecture.hf_architecture)};
  CAPSTAN_RETURN_IF_ERROR(copy_integers(gguf, prefix, file, config));
  CAPSTAN_RETURN_IF_ERROR(refuse_unsupported(gguf, prefix, file, config));

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

Result<text::GgufVocabulary> gguf_vocabulary(const GgufFile& gguf, const std::string& file) {
  text::GgufVocabulary v;
  CAPSTAN_ASSIGN(const std::optional<std::string_view> model, gguf.string("tokenizer.ggml.model"));
  if (!model) return v;
  CAPSTAN_ASSIGN(const std::optional<std::string_view> pre, gguf.string("tokenizer.ggml.pre"));
  CAPSTAN_ASSIGN(const std::optional<std::string_view> chat,
                 gguf.string("tokenizer.chat_template"));
  v.model = std::string(*model);
  v.pre = std::string(pre.value_or(""));
  v.chat_template = std::string(chat.value_or(""));

  CAPSTAN_ASSIGN(const GgufArray* tokens, gguf.array("tokenizer.ggml.tokens"));
  if (tokens == nullptr || tokens->type != GgufType::kString) {
    return data_loss(file + ": tokenizer.ggml.tokens is missing or not an array of strings");
  }
  v.tokens.assign(tokens->strings.begin(), tokens->strings.end());
  CAPSTAN_ASSIGN(const GgufArray* merges, gguf.array("tokenizer.ggml.merges"));
  if (merges != nullptr) {
    if (merges->type != GgufType::kString) {
      return data_loss(file + ": tokenizer.ggml.merges is not an array of strings");
    }
    v.merges.assign(merges->strings.begin(), merges->strings.end());
  }
  CAPSTAN_ASSIGN(const GgufArray* types, gguf.array("tokenizer.ggml.token_type"));
  if (types != nullptr) {
    if (types->count != tokens->count) {
      return data_loss(file + ": tokenizer.ggml.token_type has " + std::to_string(types->count) +
                       " entries for " + std::to_string(tokens->count) + " tokens");
    }
    v.token_types.reserve(static_cast<size_t>(types->count));
    for (uint64_t i = 0; i < types->count; ++i) {
      const std::optional<int64_t> type = scalar_integer(types->at(i));
      if (!type || *type < 0 || *type > 6) {
        return data_loss(file + ": tokenizer.ggml.token_type of token " + std::to_string(i) +
                         " is not one of the types 0 to 6");
      }
      v.token_types.push_back(static_cast<int32_t>(*type));
    }
  }
  CAPSTAN_ASSIGN(v.bos_id, token_id(gguf, "tokenizer.ggml.bos_token_id", tokens->count, file));
  CAPSTAN_ASSIGN(v.eos_id, token_id(gguf, "tokenizer.ggml.eos_token_id", tokens->count, file));
  CAPSTAN_ASSIGN(v.pad_id, token_id(gguf, "tokenizer.ggml.padding_token_id", tokens->count, file));
  CAPSTAN_ASSIGN(v.add_bos, gguf.boolean("tokenizer.ggml.add_bos_token"));
  CAPSTAN_ASSIGN(v.add_eos, gguf.boolean("tokenizer.ggml.add_eos_token"));
  return v;
}

std::string hf_tensor_name(std::string_view name) {
  constexpr std::pair<std::string_view, std::string_view> kGlobal[] = {
      {"token_embd.weight", "model.embed_tokens.weight"},
      {"output_norm.weight", "model.norm.weight"},
      {"output.weight", "lm_head.weight"},
  };
  for (const auto& [from, to] : kGlobal) {
    if (name == from) return std::string(to);
  }
  constexpr std::string_view kBlock = "blk.";
  if (!name.starts_with(kBlock)) return std::string(name);
  const size_t dot = name.find('.', kBlock.size());
  const size_t last = name.rfind('.');
  if (dot == std::string_view::npos || last <= dot) return std::string(name);
  const std::string_view layer = name.substr(kBlock.size(), dot - kBlock.size());
  const std::string_view part = name.substr(dot + 1, last - dot - 1);
  const std::string_view suffix = name.substr(last);  // .weight or .bias
  constexpr std::pair<std::string_view, std::string_view> kParts[] = {
      {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
      {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
      {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
      {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
      {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
      {"ffn_down", "mlp.down_proj"},
  };
  for (const auto& [from, to] : kParts) {
    if (part == from) {
      return "model.layers." + std::string(layer) + "." + std::string(to) + std::string(suffix);
    }
  }
  return std::string(name);
}

}  // namespace capstan::model
