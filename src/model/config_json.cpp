#include "model/config_json.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <cmath>

#include "model/config_fields.h"
#include "model/config_parts.h"
#include "model/json.h"
#include "model/printable.h"

namespace capstan::model {
namespace {

namespace json = boost::json;

struct ArchitectureInfo {
  Architecture id;
  std::string_view name, model_type;
};
constexpr ArchitectureInfo kArchitectures[] = {
    {Architecture::kLlama, "LlamaForCausalLM", "llama"},
    {Architecture::kQwen2, "Qwen2ForCausalLM", "qwen2"},
    {Architecture::kQwen3, "Qwen3ForCausalLM", "qwen3"},
    {Architecture::kQwen3Moe, "Qwen3MoeForCausalLM", "qwen3_moe"},
    {Architecture::kDeepseekV2, "DeepseekV2ForCausalLM", "deepseek_v2"},
    {Architecture::kDeepseekV3, "DeepseekV3ForCausalLM", "deepseek_v3"},
};

std::string supported_architectures() {
  std::string list;
  for (const ArchitectureInfo& a : kArchitectures) {
    if (!list.empty()) list += ", ";
    list += a.name;
  }
  return list;
}

Result<ArchitectureInfo> read_architecture(const Fields& f) {
  if (const json::value* list = f.find("architectures")) {
    const json::array* names = list->if_array();
    if (names == nullptr || names->empty() || !(*names)[0].is_string()) {
      return f.bad("architectures", *list, "it must be a list of names");
    }
    const std::string_view name = (*names)[0].get_string();
    for (const ArchitectureInfo& a : kArchitectures) {
      if (a.name == name) return a;
    }
    return invalid_argument(f.source() + ": architecture " + printable(name) +
                            " is not supported; supported are " + supported_architectures());
  }
  CAPSTAN_ASSIGN(const std::optional<std::string> type, f.string("model_type"));
  if (!type) {
    return invalid_argument(f.source() +
                            ": neither architectures nor model_type is present; "
                            "supported architectures are " +
                            supported_architectures());
  }
  for (const ArchitectureInfo& a : kArchitectures) {
    if (a.model_type == *type) return a;
  }
  return invalid_argument(f.source() + ": model_type " + printable(*type) +
                          " is not supported; supported architectures are " +
                          supported_architectures());
}

/// Refuses options that would change the computation.
Status refuse_unsupported(const Fields& f, Architecture architecture) {
  for (const std::string_view key : {"attention_bias", "mlp_bias", "use_sliding_window"}) {
    // Qwen2 always has its q, k and v biases; some of its configs say so, most do not.
    if (key == "attention_bias" && architecture == Architecture::kQwen2) continue;
    CAPSTAN_ASSIGN(const bool set, f.boolean(key, false));
    if (set) {
      return f.bad(key, *f.find(key), "only false is supported for this architecture");
    }
  }
  CAPSTAN_ASSIGN(const std::optional<std::string> act, f.string("hidden_act"));
  if (act && *act != "silu" && *act != "swish") {
    return f.bad("hidden_act", *f.find("hidden_act"), "only silu is supported");
  }
  CAPSTAN_ASSIGN(const double rotary, f.positive_number("partial_rotary_factor", 1.0));
  if (rotary != 1.0) {
    return f.bad("partial_rotary_factor", *f.find("partial_rotary_factor"), "only 1 is supported");
  }
  if (const json::value* types = f.find("layer_types")) {
    const json::array* list = types->if_array();
    const bool all_full = list != nullptr && std::all_of(list->begin(), list->end(), [](auto& t) {
                            return t.is_string() && t.get_string() == "full_attention";
                          });
    if (!all_full) return f.bad("layer_types", *types, "only full_attention is supported");
  }
  return {};
}

Result<DType> read_dtype(const Fields& f) {
  const char* key = f.find("dtype") != nullptr ? "dtype" : "torch_dtype";
  CAPSTAN_ASSIGN(const std::optional<std::string> name, f.string(key));
  if (!name) return DType::kF32;  // what transformers assumes
  if (*name == "float32" || *name == "torch.float32") return DType::kF32;
  if (*name == "float16" || *name == "torch.float16") return DType::kF16;
  if (*name == "bfloat16" || *name == "torch.bfloat16") return DType::kBF16;
  return f.bad(key, *f.find(key), "float32, float16 and bfloat16 are supported");
}

Status read_heads(const Fields& f, ModelConfig& c) {
  CAPSTAN_ASSIGN(const int64_t heads, f.required_integer("num_attention_heads", kMaxHeads));
  CAPSTAN_ASSIGN(const std::optional<int64_t> kv, f.integer("num_key_value_heads", 1, kMaxHeads));
  CAPSTAN_ASSIGN(const std::optional<int64_t> dim, f.integer("head_dim", 1, kMaxHeadDim));
  c.num_heads = static_cast<int>(heads);
  c.num_kv_heads = static_cast<int>(kv.value_or(heads));
  if (c.num_heads % c.num_kv_heads != 0) {
    return invalid_argument(f.source() + ": num_attention_heads " + std::to_string(heads) +
                            " is not a multiple of num_key_value_heads " +
                            std::to_string(c.num_kv_heads));
  }
  // transformers gives Qwen3 heads of 128 unless told otherwise, whatever the hidden size is.
  const bool derived = !dim && c.architecture != Architecture::kQwen3;
  if (derived && c.hidden_size % heads != 0) {
    return invalid_argument(f.source() + ": hidden_size " + std::to_string(c.hidden_size) +
                            " is not a multiple of num_attention_heads " + std::to_string(heads) +
                            " and head_dim is missing");
  }
  c.head_dim = static_cast<int>(derived ? c.hidden_size / heads : dim.value_or(128));
  if (c.head_dim % 2 != 0 || c.head_dim > kMaxHeadDim) {
    return invalid_argument(f.source() + ": head_dim " + std::to_string(c.head_dim) +
                            " must be even (RoPE rotates pairs) and at most " +
                            std::to_string(kMaxHeadDim));
  }
  if (int64_t{c.num_heads} * c.head_dim > kMaxWidth) {
    return invalid_argument(f.source() + ": num_attention_heads " + std::to_string(heads) +
                            " times head_dim " + std::to_string(c.head_dim) + " is above " +
                            std::to_string(kMaxWidth));
  }
  return {};
}

/// Heads, rotation and experts.
Status read_family(const Fields& f, ModelConfig& c) {
  const bool deepseek =
      c.architecture == Architecture::kDeepseekV2 || c.architecture == Architecture::kDeepseekV3;
  CAPSTAN_RETURN_IF_ERROR(deepseek ? read_mla(f, c) : read_heads(f, c));
  CAPSTAN_ASSIGN(c.rope, read_rope(f, c));
  c.rope.dim = c.head_dim;
  if (deepseek) {
    c.rope.dim = c.mla.qk_rope_head_dim;
    CAPSTAN_ASSIGN(const bool interleaved, f.boolean("rope_interleave", true));
    if (interleaved) c.rope.style = kernels::RopeStyle::kInterleaved;
    return read_deepseek_experts(f, c);
  }
  return c.architecture == Architecture::kQwen3Moe ? read_qwen3_experts(f, c) : Status();
}

}  // namespace

Result<ModelConfig> config_from_json(const json::object& object, const std::string& source) {
  const Fields f(object, source);
  ModelConfig c;
  CAPSTAN_ASSIGN(const ArchitectureInfo architecture, read_architecture(f));
  c.architecture = architecture.id;
  c.architecture_name = std::string(architecture.name);
  c.model_type = std::string(architecture.model_type);
  CAPSTAN_RETURN_IF_ERROR(refuse_unsupported(f, c.architecture));
  c.qkv_bias = c.architecture == Architecture::kQwen2;
  c.qk_norm = c.architecture == Architecture::kQwen3 || c.architecture == Architecture::kQwen3Moe;

  CAPSTAN_ASSIGN(c.hidden_size, f.required_integer("hidden_size", kMaxWidth));
  CAPSTAN_ASSIGN(c.intermediate_size, f.required_integer("intermediate_size", kMaxWidth));
  CAPSTAN_ASSIGN(c.vocab_size, f.required_integer("vocab_size", kMaxVocab));
  CAPSTAN_ASSIGN(const int64_t layers, f.required_integer("num_hidden_layers", kMaxLayers));
  c.num_layers = static_cast<int>(layers);
  CAPSTAN_ASSIGN(c.max_position_embeddings,
                 f.required_integer("max_position_embeddings", kMaxPositions));
  CAPSTAN_ASSIGN(c.rms_norm_eps, f.positive_number("rms_norm_eps", 1e-6));
  CAPSTAN_ASSIGN(c.tie_word_embeddings, f.boolean("tie_word_embeddings", false));
  CAPSTAN_RETURN_IF_ERROR(read_family(f, c));
  CAPSTAN_ASSIGN(c.weight_dtype, read_dtype(f));
  CAPSTAN_ASSIGN(const bool block_fp8, read_block_fp8(f));
  if (block_fp8) c.weight_dtype = DType::kF8E4M3;
  CAPSTAN_ASSIGN(const std::vector<int32_t> eos, f.token_ids("eos_token_id"));
  for (const int32_t id : eos) add_eos(c, id);
  CAPSTAN_ASSIGN(const std::vector<int32_t> bos, f.token_ids("bos_token_id"));
  if (!bos.empty()) c.bos_token_id = bos[0];
  return c;
}

Status merge_overrides(json::object& object, const std::string& overrides_json) {
  Result<json::object> overrides = parse_json_object(overrides_json, "model override arguments");
  if (!overrides.ok()) {
    return invalid_argument(overrides.error().message, "json_model_override_args");
  }
  for (auto& [key, value] : *overrides) object.insert_or_assign(key, std::move(value));
  return {};
}

Result<GenerationDefaults> generation_defaults_from_json(const json::object& object,
                                                         const std::string& source,
                                                         ModelConfig& config) {
  const Fields f(object, source);
  GenerationDefaults d;
  CAPSTAN_ASSIGN(d.temperature, f.number("temperature"));
  CAPSTAN_ASSIGN(d.top_p, f.number("top_p"));
  CAPSTAN_ASSIGN(d.min_p, f.number("min_p"));
  CAPSTAN_ASSIGN(d.repetition_penalty, f.number("repetition_penalty"));
  CAPSTAN_ASSIGN(const std::optional<int64_t> top_k, f.integer("top_k", -1, INT32_MAX));
  // Both 0 (transformers) and -1 (SGLang) mean "all".
  if (top_k) d.top_k = *top_k == 0 ? -1 : static_cast<int32_t>(*top_k);
  CAPSTAN_RETURN_IF_ERROR(validate(d, source));
  CAPSTAN_ASSIGN(const std::vector<int32_t> eos, f.token_ids("eos_token_id"));
  for (const int32_t id : eos) add_eos(config, id);
  return d;
}

Status validate(const GenerationDefaults& d, const std::string& source) {
  const auto check = [&](const char* key, const std::optional<double>& v, bool good,
                         const char* range) -> Status {
    if (!v || (std::isfinite(*v) && good)) return {};
    return invalid_argument(source + ": " + key + " is " + std::to_string(*v) + "; it must be " +
                            range);
  };
  CAPSTAN_RETURN_IF_ERROR(check("temperature", d.temperature, d.temperature >= 0.0, "0 or above"));
  CAPSTAN_RETURN_IF_ERROR(check("top_p", d.top_p, d.top_p > 0.0 && d.top_p <= 1.0, "in (0, 1]"));
  CAPSTAN_RETURN_IF_ERROR(check("min_p", d.min_p, d.min_p >= 0.0 && d.min_p <= 1.0, "in [0, 1]"));
  return check("repetition_penalty", d.repetition_penalty,
               d.repetition_penalty > 0.0 && d.repetition_penalty <= 2.0, "in (0, 2]");
}

void add_eos(ModelConfig& config, int32_t id) {
  auto& ids = config.eos_token_ids;
  if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
}

}  // namespace capstan::model
