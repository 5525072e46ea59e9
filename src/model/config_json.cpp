#include "model/config_json.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <cmath>

#include "model/json.h"
#include "model/printable.h"

namespace capstan::model {
namespace {

namespace json = boost::json;

// Sizes above these are damage, not models; they keep every product of two of them inside int64.
constexpr int64_t kMaxWidth = int64_t{1} << 24;  // hidden, intermediate; the largest known: 53248
constexpr int64_t kMaxVocab = int64_t{1} << 28;  // token ids are int32
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 65536;
constexpr int64_t kMaxHeadDim = 65536;
constexpr int64_t kMaxPositions = INT32_MAX;

struct ArchitectureInfo {
  Architecture id;
  std::string_view name, model_type;
};
constexpr ArchitectureInfo kArchitectures[] = {
    {Architecture::kLlama, "LlamaForCausalLM", "llama"},
    {Architecture::kQwen2, "Qwen2ForCausalLM", "qwen2"},
    {Architecture::kQwen3, "Qwen3ForCausalLM", "qwen3"},
};

std::string supported_architectures() {
  std::string list;
  for (const ArchitectureInfo& a : kArchitectures) {
    if (!list.empty()) list += ", ";
    list += a.name;
  }
  return list;
}

/// Typed access to one JSON object; null counts as absent.
class Fields {
 public:
  Fields(const json::object& object, std::string source)
      : object_(object), source_(std::move(source)) {}

  const std::string& source() const { return source_; }

  const json::value* find(std::string_view key) const {
    const json::value* v = object_.if_contains(key);
    return v == nullptr || v->is_null() ? nullptr : v;
  }

  Error bad(std::string_view key, const json::value& value, const std::string& wanted) const {
    return invalid_argument(source_ + ": " + std::string(key) + " is " + json_excerpt(value) +
                            "; " + wanted);
  }

  Result<std::optional<int64_t>> integer(std::string_view key, int64_t low, int64_t high) const {
    const json::value* v = find(key);
    if (v == nullptr) return std::optional<int64_t>();
    const std::string wanted =
        "it must be an integer from " + std::to_string(low) + " to " + std::to_string(high);
    if (!v->is_int64() || v->get_int64() < low || v->get_int64() > high) {
      return bad(key, *v, wanted);
    }
    return std::optional<int64_t>(v->get_int64());
  }

  Result<int64_t> required_integer(std::string_view key, int64_t high) const {
    CAPSTAN_ASSIGN(const std::optional<int64_t> v, integer(key, 1, high));
    if (!v) return invalid_argument(source_ + ": " + std::string(key) + " is missing");
    return *v;
  }

  Result<std::optional<double>> number(std::string_view key) const {
    const json::value* v = find(key);
    if (v == nullptr) return std::optional<double>();
    double d = 0;
    if (v->is_double()) {
      d = v->get_double();
    } else if (v->is_int64()) {
      d = static_cast<double>(v->get_int64());
    } else {
      return bad(key, *v, "it must be a number");
    }
    if (!std::isfinite(d)) return bad(key, *v, "it must be finite");
    return std::optional<double>(d);
  }

  Result<double> positive_number(std::string_view key, double absent) const {
    CAPSTAN_ASSIGN(const std::optional<double> d, number(key));
    if (d && *d <= 0) return bad(key, *find(key), "it must be above 0");
    return d.value_or(absent);
  }

  Result<bool> boolean(std::string_view key, bool absent) const {
    const json::value* v = find(key);
    if (v == nullptr) return absent;
    if (!v->is_bool()) return bad(key, *v, "it must be true or false");
    return v->get_bool();
  }

  Result<std::optional<std::string>> string(std::string_view key) const {
    const json::value* v = find(key);
    if (v == nullptr) return std::optional<std::string>();
    if (!v->is_string()) return bad(key, *v, "it must be a string");
    return std::optional<std::string>(std::string(v->get_string()));
  }

 private:
  const json::object& object_;
  std::string source_;
};

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
  if (const json::value* quantization = f.find("quantization_config")) {
    const json::object* q = quantization->if_object();
    const json::value* method = q == nullptr ? nullptr : q->if_contains("quant_method");
    return f.bad("quantization_config", method == nullptr ? *quantization : *method,
                 "quantised safetensors are not supported for this architecture; use the BF16 "
                 "checkpoint or a GGUF file");
  }
  return {};
}

Result<RopeConfig> read_rope(const Fields& f) {
  RopeConfig rope;
  // The newer spelling holds theta and scaling in one object; the older has them side by side.
  const char* key = f.find("rope_parameters") != nullptr ? "rope_parameters" : "rope_scaling";
  const json::value* dictionary = f.find(key);
  CAPSTAN_ASSIGN(rope.theta, f.positive_number("rope_theta", 10000.0));
  if (dictionary == nullptr) return rope;
  const json::object* object = dictionary->if_object();
  if (object == nullptr) return f.bad(key, *dictionary, "it must be an object");
  const Fields r(*object, f.source() + ": " + key);
  CAPSTAN_ASSIGN(rope.theta, r.positive_number("rope_theta", rope.theta));
  CAPSTAN_ASSIGN(std::optional<std::string> type, r.string("rope_type"));
  if (!type) {
    CAPSTAN_ASSIGN(type, r.string("type"));
  }
  if (!type || *type == "default") return rope;
  if (*type != "llama3") {
    return f.bad(key, *dictionary,
                 "RoPE type " + printable(*type) + " is not supported; default and llama3 are");
  }
  rope.scaling = RopeScaling::kLlama3;
  CAPSTAN_ASSIGN(rope.factor, r.positive_number("factor", 8.0));
  CAPSTAN_ASSIGN(rope.low_freq_factor, r.positive_number("low_freq_factor", 1.0));
  CAPSTAN_ASSIGN(rope.high_freq_factor, r.positive_number("high_freq_factor", 4.0));
  CAPSTAN_ASSIGN(rope.original_max_position,
                 r.required_integer("original_max_position_embeddings", kMaxPositions));
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    return f.bad(key, *dictionary, "high_freq_factor must be above low_freq_factor");
  }
  return rope;
}

/// An id, a list of ids, or nothing.
Result<std::vector<int32_t>> read_ids(const Fields& f, std::string_view key) {
  std::vector<int32_t> ids;
  const json::value* v = f.find(key);
  if (v == nullptr) return ids;
  const auto add = [&](const json::value& id) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > INT32_MAX) return false;
    ids.push_back(static_cast<int32_t>(id.get_int64()));
    return true;
  };
  bool good = true;
  if (const json::array* list = v->if_array()) {
    for (const json::value& id : *list) good = good && add(id);
  } else {
    good = add(*v);
  }
  if (!good) return f.bad(key, *v, "it must be a token id or a list of token ids");
  return ids;
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
  c.qk_norm = c.architecture == Architecture::kQwen3;

  CAPSTAN_ASSIGN(c.hidden_size, f.required_integer("hidden_size", kMaxWidth));
  CAPSTAN_ASSIGN(c.intermediate_size, f.required_integer("intermediate_size", kMaxWidth));
  CAPSTAN_ASSIGN(c.vocab_size, f.required_integer("vocab_size", kMaxVocab));
  CAPSTAN_ASSIGN(const int64_t layers, f.required_integer("num_hidden_layers", kMaxLayers));
  c.num_layers = static_cast<int>(layers);
  CAPSTAN_RETURN_IF_ERROR(read_heads(f, c));
  CAPSTAN_ASSIGN(c.max_position_embeddings,
                 f.required_integer("max_position_embeddings", kMaxPositions));
  CAPSTAN_ASSIGN(c.rms_norm_eps, f.positive_number("rms_norm_eps", 1e-6));
  CAPSTAN_ASSIGN(c.tie_word_embeddings, f.boolean("tie_word_embeddings", false));
  CAPSTAN_ASSIGN(c.rope, read_rope(f));
  c.rope.dim = c.head_dim;
  CAPSTAN_ASSIGN(c.weight_dtype, read_dtype(f));
  CAPSTAN_ASSIGN(const std::vector<int32_t> eos, read_ids(f, "eos_token_id"));
  for (const int32_t id : eos) add_eos(c, id);
  CAPSTAN_ASSIGN(const std::vector<int32_t> bos, read_ids(f, "bos_token_id"));
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
  CAPSTAN_ASSIGN(const std::vector<int32_t> eos, read_ids(f, "eos_token_id"));
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
