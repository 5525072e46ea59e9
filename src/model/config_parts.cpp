#include "model/config_parts.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <cmath>

#include "model/printable.h"

namespace capstan::model {
namespace {

namespace json = boost::json;

/// YaRN's m(k) for a scaling factor.
double yarn_m(double factor, double k) {
  return factor <= 1.0 ? 1.0 : 1.0 + 0.1 * k * std::log(factor);
}

Status read_yarn(const Fields& r, const ModelConfig& config, RopeConfig& rope) {
  rope.scaling = RopeScaling::kYarn;
  CAPSTAN_ASSIGN(rope.original_max_position,
                 r.required_integer("original_max_position_embeddings", kMaxPositions));
  const double grown = static_cast<double>(config.max_position_embeddings) /
                       static_cast<double>(rope.original_max_position);
  CAPSTAN_ASSIGN(rope.factor, r.positive_number("factor", grown));
  CAPSTAN_ASSIGN(rope.beta_fast, r.positive_number("beta_fast", 32.0));
  CAPSTAN_ASSIGN(rope.beta_slow, r.positive_number("beta_slow", 1.0));
  CAPSTAN_ASSIGN(rope.truncate, r.boolean("truncate", true));
  if (rope.theta <= 1.0) {
    return invalid_argument(r.source() + ": rope_theta " + std::to_string(rope.theta) +
                            " must be above 1 for YaRN, which divides by its logarithm");
  }
  CAPSTAN_ASSIGN(const std::optional<double> mscale, r.number("mscale"));
  CAPSTAN_ASSIGN(const std::optional<double> all_dim, r.number("mscale_all_dim"));
  const bool both = mscale.value_or(0) != 0 && all_dim.value_or(0) != 0;
  const double from_mscale = both ? yarn_m(rope.factor, *mscale) / yarn_m(rope.factor, *all_dim)
                                  : yarn_m(rope.factor, 1.0);
  if (!std::isfinite(from_mscale) || from_mscale <= 0) {
    return invalid_argument(r.source() + ": mscale " + std::to_string(mscale.value_or(0)) +
                            " and mscale_all_dim " + std::to_string(all_dim.value_or(0)) +
                            " make no attention factor above 0");
  }
  CAPSTAN_ASSIGN(rope.attention_factor, r.positive_number("attention_factor", from_mscale));
  if (config.has_mla() && all_dim.value_or(0) != 0) {
    const double m = yarn_m(rope.factor, *all_dim);
    rope.softmax_factor = m * m;
  }
  return {};
}

Status read_llama3(const Fields& r, RopeConfig& rope) {
  rope.scaling = RopeScaling::kLlama3;
  CAPSTAN_ASSIGN(rope.factor, r.positive_number("factor", 8.0));
  CAPSTAN_ASSIGN(rope.low_freq_factor, r.positive_number("low_freq_factor", 1.0));
  CAPSTAN_ASSIGN(rope.high_freq_factor, r.positive_number("high_freq_factor", 4.0));
  CAPSTAN_ASSIGN(rope.original_max_position,
                 r.required_integer("original_max_position_embeddings", kMaxPositions));
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    return invalid_argument(
        r.source() + ": high_freq_factor " + std::to_string(rope.high_freq_factor) +
        " must be above low_freq_factor " + std::to_string(rope.low_freq_factor));
  }
  return {};
}

/// Group limits and top-k against the number of experts.
Status check_router(const Fields& f, const MoeConfig& moe) {
  const auto fail = [&](const std::string& what) {
    return invalid_argument(f.source() + ": " + what);
  };
  // One layer's worth of names and panels per expert: more is damage, not a model (V3 has 14848).
  if (moe.experts * static_cast<int64_t>(moe.layers.size()) > kMaxExpertsInAll) {
    return fail(std::to_string(moe.experts) + " experts in each of " +
                std::to_string(moe.layers.size()) + " layers are more than " +
                std::to_string(kMaxExpertsInAll));
  }
  if (moe.top_k > moe.experts) {
    return fail("num_experts_per_tok " + std::to_string(moe.top_k) + " is above the " +
                std::to_string(moe.experts) + " experts");
  }
  if (moe.experts % moe.groups != 0) {
    return fail("n_group " + std::to_string(moe.groups) + " does not divide the " +
                std::to_string(moe.experts) + " experts");
  }
  if (moe.groups_kept > moe.groups) {
    return fail("topk_group " + std::to_string(moe.groups_kept) + " is above n_group " +
                std::to_string(moe.groups));
  }
  if (moe.top_k > moe.experts / moe.groups * moe.groups_kept) {
    return fail("num_experts_per_tok " + std::to_string(moe.top_k) + " is above the " +
                std::to_string(moe.experts / moe.groups * moe.groups_kept) + " experts of the " +
                std::to_string(moe.groups_kept) + " groups that topk_group keeps");
  }
  return {};
}

Result<int> layer_count(const Fields& f, std::string_view key, int64_t low, int64_t absent) {
  CAPSTAN_ASSIGN(const std::optional<int64_t> v, f.integer(key, low, kMaxLayers));
  return static_cast<int>(v.value_or(absent));
}

}  // namespace

Result<RopeConfig> read_rope(const Fields& f, const ModelConfig& config) {
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
  const char* type_key = r.find("rope_type") != nullptr ? "rope_type" : "type";
  const json::value* value = r.find(type_key);
  if (value == nullptr) return rope;
  if (!value->is_string()) return r.bad(type_key, *value, "it must be a string");
  const std::string_view type = value->get_string();
  if (type == "default") return rope;
  if (type == "yarn") {
    CAPSTAN_RETURN_IF_ERROR(read_yarn(r, config, rope));
    return rope;
  }
  if (type == "llama3") {
    CAPSTAN_RETURN_IF_ERROR(read_llama3(r, rope));
    return rope;
  }
  return f.bad(key, *dictionary,
               "RoPE type " + printable(type) + " is not supported; default, llama3 and yarn are");
}

Status read_mla(const Fields& f, ModelConfig& c) {
  CAPSTAN_ASSIGN(const int64_t heads, f.required_integer("num_attention_heads", kMaxHeads));
  CAPSTAN_ASSIGN(const std::optional<int64_t> kv, f.integer("num_key_value_heads", 1, kMaxHeads));
  if (kv && *kv != heads) {
    return invalid_argument(f.source() + ": num_key_value_heads " + std::to_string(*kv) +
                            " must equal num_attention_heads " + std::to_string(heads) +
                            " in latent attention");
  }
  MlaConfig& m = c.mla;
  // 1 to the limit, or absent (0) for the query's rank alone.
  CAPSTAN_ASSIGN(const std::optional<int64_t> q_rank, f.integer("q_lora_rank", 1, kMaxHeadDim));
  m.q_lora_rank = static_cast<int>(q_rank.value_or(0));
  const std::pair<const char*, int*> kWidths[] = {{"kv_lora_rank", &m.kv_lora_rank},
                                                  {"qk_nope_head_dim", &m.qk_nope_head_dim},
                                                  {"qk_rope_head_dim", &m.qk_rope_head_dim},
                                                  {"v_head_dim", &m.v_head_dim}};
  for (const auto& [key, width] : kWidths) {
    CAPSTAN_ASSIGN(const int64_t v, f.required_integer(key, kMaxHeadDim));
    *width = static_cast<int>(v);
  }
  if (m.qk_rope_head_dim % 2 != 0) {
    return f.bad("qk_rope_head_dim", *f.find("qk_rope_head_dim"),
                 "it must be even (RoPE rotates pairs)");
  }
  c.num_heads = c.num_kv_heads = static_cast<int>(heads);
  c.head_dim = m.qk_nope_head_dim + m.qk_rope_head_dim;
  const int64_t widest = std::max(c.head_dim, m.qk_nope_head_dim + m.v_head_dim);
  if (heads * widest > kMaxWidth) {
    return invalid_argument(f.source() + ": num_attention_heads " + std::to_string(heads) +
                            " times " + std::to_string(widest) + " elements per head is above " +
                            std::to_string(kMaxWidth));
  }
  return {};
}

Status read_deepseek_experts(const Fields& f, ModelConfig& c) {
  const bool v3 = c.architecture == Architecture::kDeepseekV3;
  MoeConfig& m = c.moe;
  m.layers.assign(static_cast<size_t>(c.num_layers), false);
  // transformers' class for V3 fills gaps with the values of the 671B model, which no other model
  // means: there a gap is an error. n_shared_experts may be null, which says that there are none.
  if (v3) {
    for (const char* key : {"n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
                            "first_k_dense_replace", "n_group", "topk_group", "norm_topk_prob",
                            "routed_scaling_factor"}) {
      if (f.find(key) == nullptr) return f.missing(key);
    }
    if (!f.contains("n_shared_experts")) return f.missing("n_shared_experts");
  }
  CAPSTAN_ASSIGN(const std::optional<int64_t> mtp,
                 f.integer("num_nextn_predict_layers", 0, kMaxLayers));
  CAPSTAN_ASSIGN(const std::optional<int64_t> mtp_new, f.integer("num_mtp_layers", 0, kMaxLayers));
  c.num_nextn_predict_layers = static_cast<int>(mtp ? *mtp : mtp_new.value_or(0));
  CAPSTAN_ASSIGN(const std::optional<int64_t> experts,
                 f.integer("n_routed_experts", 1, kMaxExperts));
  if (!experts) return {};  // V2's dense relatives
  m.experts = static_cast<int>(*experts);
  CAPSTAN_ASSIGN(const int64_t top_k, f.required_integer("num_experts_per_tok", kMaxExperts));
  m.top_k = static_cast<int>(top_k);
  CAPSTAN_ASSIGN(m.intermediate_size, f.required_integer("moe_intermediate_size", kMaxWidth));
  CAPSTAN_ASSIGN(const std::optional<int64_t> shared,
                 f.integer("n_shared_experts", 0, kMaxExperts));
  m.shared_experts = static_cast<int>(shared.value_or(0));
  if (m.shared_experts * m.intermediate_size > kMaxWidth) {
    return f.bad("n_shared_experts", *f.find("n_shared_experts"),
                 "times moe_intermediate_size it is above " + std::to_string(kMaxWidth));
  }
  CAPSTAN_ASSIGN(const int first, layer_count(f, "first_k_dense_replace", 0, 0));
  CAPSTAN_ASSIGN(const int every, layer_count(f, "moe_layer_freq", 1, 1));
  for (int l = first; l < c.num_layers; ++l) m.layers[static_cast<size_t>(l)] = l % every == 0;

  CAPSTAN_ASSIGN(const std::optional<int64_t> groups, f.integer("n_group", 1, kMaxExperts));
  CAPSTAN_ASSIGN(const std::optional<int64_t> kept, f.integer("topk_group", 1, kMaxExperts));
  m.groups = static_cast<int>(groups.value_or(1));
  m.groups_kept = static_cast<int>(kept.value_or(1));
  if (v3) {
    CAPSTAN_RETURN_IF_ERROR(f.one_of("scoring_func", {"sigmoid"}));
    CAPSTAN_RETURN_IF_ERROR(f.one_of("topk_method", {"noaux_tc"}));
    m.sigmoid = m.correction_bias = m.group_top2_sum = m.scale_always = true;
  } else {
    CAPSTAN_RETURN_IF_ERROR(f.one_of("scoring_func", {"softmax"}));
    CAPSTAN_RETURN_IF_ERROR(f.one_of("topk_method", {"greedy", "group_limited_greedy"}));
    m.mask_with_zero = true;
    // The plain method ignores groups, whatever the config says about them.
    const json::value* method = f.find("topk_method");
    if (method == nullptr || *method == "greedy") m.groups = m.groups_kept = 1;
  }
  CAPSTAN_ASSIGN(m.normalise, f.boolean("norm_topk_prob", false));
  // With a single expert per token, V2 scales instead: its weight would always be 1.
  if (!v3 && m.top_k == 1) m.normalise = false;
  CAPSTAN_ASSIGN(m.scale, f.positive_number("routed_scaling_factor", 1.0));
  return check_router(f, m);
}

Status read_qwen3_experts(const Fields& f, ModelConfig& c) {
  MoeConfig& m = c.moe;
  m.layers.assign(static_cast<size_t>(c.num_layers), false);
  // transformers 5 writes num_local_experts, earlier versions num_experts.
  const char* key = f.find("num_experts") != nullptr ? "num_experts" : "num_local_experts";
  if (f.find(key) == nullptr) return f.missing("num_experts");
  CAPSTAN_ASSIGN(const int64_t experts, f.required_integer(key, kMaxExperts));
  CAPSTAN_ASSIGN(const int64_t top_k, f.required_integer("num_experts_per_tok", kMaxExperts));
  CAPSTAN_ASSIGN(m.intermediate_size, f.required_integer("moe_intermediate_size", kMaxWidth));
  m.experts = static_cast<int>(experts);
  m.top_k = static_cast<int>(top_k);
  CAPSTAN_ASSIGN(const int every, layer_count(f, "decoder_sparse_step", 1, 1));
  for (int l = 0; l < c.num_layers; ++l) m.layers[static_cast<size_t>(l)] = (l + 1) % every == 0;
  if (const json::value* dense = f.find("mlp_only_layers")) {
    const json::array* list = dense->if_array();
    if (list == nullptr) return f.bad("mlp_only_layers", *dense, "it must be a list of layers");
    for (const json::value& l : *list) {
      if (!l.is_int64() || l.get_int64() < 0 || l.get_int64() >= c.num_layers) {
        return f.bad("mlp_only_layers", l, "layers are numbered from 0 to num_hidden_layers - 1");
      }
      m.layers[static_cast<size_t>(l.get_int64())] = false;
    }
  }
  CAPSTAN_ASSIGN(m.normalise, f.boolean("norm_topk_prob", false));
  return check_router(f, m);
}

Result<bool> read_block_fp8(const Fields& f) {
  const json::value* value = f.find("quantization_config");
  if (value == nullptr) return false;
  const json::object* object = value->if_object();
  if (object == nullptr) return f.bad("quantization_config", *value, "it must be an object");
  const Fields q(*object, f.source() + ": quantization_config");
  const json::value* method = q.find("quant_method");
  if (method == nullptr) return q.missing("quant_method");
  if (!method->is_string() || method->get_string() != "fp8") {
    return q.bad("quant_method", *method,
                 "of quantised safetensors only block FP8 (\"fp8\") is supported; use that, the "
                 "BF16 checkpoint or a GGUF file");
  }
  CAPSTAN_RETURN_IF_ERROR(q.one_of("fmt", {"e4m3"}));
  CAPSTAN_RETURN_IF_ERROR(q.one_of("activation_scheme", {"dynamic"}));
  // Powers of two as scales (V3.1) are float32 numbers like others.
  CAPSTAN_RETURN_IF_ERROR(q.one_of("scale_fmt", {"ue8m0", "float"}));
  const json::value* block = q.find("weight_block_size");
  if (block == nullptr) return q.missing("weight_block_size");
  if (*block != json::value(json::array{128, 128})) {
    return q.bad("weight_block_size", *block, "only [128, 128] is supported");
  }
  return true;
}

}  // namespace capstan::model
