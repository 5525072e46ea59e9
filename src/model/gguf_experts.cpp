// Metadata of GGUF models with experts: deepseek2 and qwen3moe.
#include <algorithm>
#include <boost/json/array.hpp>

#include "model/gguf_keys.h"

namespace capstan::model {
namespace {

namespace json = boost::json;

constexpr char kDeepseek2[] = "deepseek2.";

constexpr GgufKey kDeepseek2Keys[] = {
    {"leading_dense_block_count", "first_k_dense_replace"},
    {"attention.q_lora_rank", "q_lora_rank"},
    {"attention.kv_lora_rank", "kv_lora_rank"},
    {"rope.dimension_count", "qk_rope_head_dim"},
    {"expert_feed_forward_length", "moe_intermediate_size"},
    {"expert_count", "n_routed_experts"},
    {"expert_used_count", "num_experts_per_tok"},
    {"expert_shared_count", "n_shared_experts"},
    {"expert_group_count", "n_group"},
    {"expert_group_used_count", "topk_group"},
    {"nextn_predict_layers", "num_nextn_predict_layers"},
};

/// Widths of a head. Old files give them as key_length and value_length; in new ones those are the
/// widths of the latent cache, and the heads' are called key_length_mla and value_length_mla.
Status add_head_widths(const GgufFile& gguf, const std::string& file, json::object& config) {
  const std::string attention = std::string(kDeepseek2) + "attention.";
  const auto width = [&](const char* name) -> Result<int64_t> {
    CAPSTAN_ASSIGN(std::optional<int64_t> v,
                   uniform_integer(gguf, attention + name + "_mla", file));
    if (!v) {
      CAPSTAN_ASSIGN(v, uniform_integer(gguf, attention + name, file));
    }
    if (!v) return data_loss(file + ": metadata key '" + attention + name + "' is missing");
    return *v;
  };
  CAPSTAN_ASSIGN(const int64_t key, width("key_length"));
  CAPSTAN_ASSIGN(const int64_t value, width("value_length"));
  const json::value* rotated = config.if_contains("qk_rope_head_dim");
  if (rotated == nullptr) {
    return data_loss(file + ": metadata key '" + kDeepseek2 + "rope.dimension_count' is missing");
  }
  if (rotated->get_int64() < 1 || key <= rotated->get_int64()) {
    return invalid_argument(file + ": " + attention + "key_length is " + std::to_string(key) +
                            ", which leaves nothing beside the " +
                            std::to_string(rotated->get_int64()) + " rotated elements");
  }
  config["qk_nope_head_dim"] = key - rotated->get_int64();
  config["v_head_dim"] = value;
  config.erase("head_dim");
  // New files count the one latent head.
  if (const json::value* heads = config.if_contains("num_attention_heads")) {
    config["num_key_value_heads"] = heads->get_int64();
  }
  return {};
}

/// Whether experts are scored by a sigmoid. Files without the key are softmax, except that the
/// correction bias exists in V3 only.
Result<bool> is_sigmoid(const GgufFile& gguf, const std::string& file) {
  const std::string key = std::string(kDeepseek2) + "expert_gating_func";
  CAPSTAN_ASSIGN(const std::optional<int64_t> gating, gguf.integer(key));
  const int64_t kind = gating.value_or(0);
  if (kind < 0 || kind > 2) {
    return invalid_argument(file + ": " + key + " is " + std::to_string(kind) +
                            "; 1 (softmax) and 2 (sigmoid) are supported");
  }
  if (kind != 0) return kind == 2;
  const auto& tensors = gguf.tensors();
  return std::any_of(tensors.begin(), tensors.end(), [](const TensorView& t) {
    return t.name.find(".exp_probs_b") != std::string::npos;
  });
}

/// Groups that older converters did not write, as the published models have them.
void add_missing_groups(bool sigmoid, json::object& config) {
  if (config.contains("n_group") && config.contains("topk_group")) return;
  int64_t groups = 1, kept = 1;
  const json::value* experts = config.if_contains("n_routed_experts");
  const int64_t count = experts == nullptr ? 0 : experts->get_int64();
  if (sigmoid && count == 256) groups = 8, kept = 4;   // V3, R1
  if (!sigmoid && count == 160) groups = 8, kept = 3;  // V2, V2.5
  config["n_group"] = groups;
  config["topk_group"] = kept;
}

Status add_router(const GgufFile& gguf, const std::string& file, json::object& config) {
  const std::string prefix = kDeepseek2;
  CAPSTAN_ASSIGN(const bool sigmoid, is_sigmoid(gguf, file));
  add_missing_groups(sigmoid, config);
  config["architectures"] =
      json::array{sigmoid ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"};
  config["scoring_func"] = sigmoid ? "sigmoid" : "softmax";
  if (sigmoid) {
    config["topk_method"] = "noaux_tc";
  } else {
    config["topk_method"] = config["n_group"] == 1 ? "greedy" : "group_limited_greedy";
  }
  CAPSTAN_ASSIGN(const std::optional<bool> norm, gguf.boolean(prefix + "expert_weights_norm"));
  config["norm_topk_prob"] = norm.value_or(false);
  CAPSTAN_ASSIGN(const std::optional<double> scale, gguf.number(prefix + "expert_weights_scale"));
  config["routed_scaling_factor"] = scale.value_or(0.0) == 0.0 ? 1.0 : *scale;  // 0: not set
  for (const char* key : {"first_k_dense_replace", "n_shared_experts"}) {
    if (!config.contains(key)) config[key] = 0;
  }
  return {};
}

/// YaRN's log multiplier is 0.1 mscale_all_dim. It scales the softmax; cos and sin stay as they
/// are, since mscale equals mscale_all_dim in every model this format was made for.
Status add_yarn(const GgufFile& gguf, json::object& config) {
  json::value* rope = config.if_contains("rope_scaling");
  if (rope == nullptr || rope->at("rope_type") != "yarn") return {};
  CAPSTAN_ASSIGN(const std::optional<double> multiplier,
                 gguf.number(std::string(kDeepseek2) + "rope.scaling.yarn_log_multiplier"));
  json::object& scaling = rope->get_object();
  scaling["attention_factor"] = 1.0;
  if (multiplier) {
    scaling["mscale"] = *multiplier * 10.0;
    scaling["mscale_all_dim"] = *multiplier * 10.0;
  }
  return {};
}

/// block_count includes the multi-token prediction layers that the file holds.
Status subtract_draft_layers(const std::string& file, json::object& config) {
  const json::value* draft = config.if_contains("num_nextn_predict_layers");
  json::value* layers = config.if_contains("num_hidden_layers");
  if (draft == nullptr || layers == nullptr) return {};
  if (draft->get_int64() < 0 || draft->get_int64() >= layers->get_int64()) {
    return invalid_argument(file + ": " + kDeepseek2 + "nextn_predict_layers is " +
                            std::to_string(draft->get_int64()) + " of " +
                            std::to_string(layers->get_int64()) + " blocks");
  }
  *layers = layers->get_int64() - draft->get_int64();
  return {};
}

}  // namespace

Status add_deepseek2(const GgufFile& gguf, const std::string& file, json::object& config) {
  CAPSTAN_RETURN_IF_ERROR(copy_integers(gguf, kDeepseek2, kDeepseek2Keys, file, config));
  CAPSTAN_RETURN_IF_ERROR(add_head_widths(gguf, file, config));
  CAPSTAN_RETURN_IF_ERROR(subtract_draft_layers(file, config));
  CAPSTAN_RETURN_IF_ERROR(add_router(gguf, file, config));
  return add_yarn(gguf, config);
}

Status add_qwen3moe(const GgufFile& gguf, const std::string& file, json::object& config) {
  const std::string prefix = "qwen3moe.";
  constexpr GgufKey kKeys[] = {{"expert_feed_forward_length", "moe_intermediate_size"},
                               {"expert_count", "num_experts"},
                               {"expert_used_count", "num_experts_per_tok"}};
  CAPSTAN_RETURN_IF_ERROR(copy_integers(gguf, prefix, kKeys, file, config));
  CAPSTAN_ASSIGN(const std::optional<bool> norm, gguf.boolean(prefix + "expert_weights_norm"));
  config["norm_topk_prob"] = norm.value_or(true);  // converters leave out what all models do
  CAPSTAN_ASSIGN(const std::optional<double> scale, gguf.number(prefix + "expert_weights_scale"));
  if (scale && *scale != 0.0 && *scale != 1.0) {
    return invalid_argument(file + ": " + prefix + "expert_weights_scale is " +
                            std::to_string(*scale) + "; only 1 is supported");
  }
  return {};
}

}  // namespace capstan::model
