// What a checkpoint says about its model, from config.json or GGUF metadata.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace capstan::model {

enum class Architecture : uint8_t { kLlama, kQwen2, kQwen3, kQwen3Moe, kDeepseekV2, kDeepseekV3 };

enum class RopeScaling : uint8_t { kNone, kLlama3, kFactors, kYarn };

struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;                                   // kLlama3, kYarn
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // kLlama3
  int64_t original_max_position = 0;                     // kLlama3, kYarn
  double beta_fast = 32.0, beta_slow = 1.0;  // kYarn: rotations over the original length
  bool truncate = true;                      // kYarn: whole dimensions as bounds of the ramp
  double attention_factor = 1.0;             // multiplies cos and sin
  double softmax_factor = 1.0;  // multiplies the softmax scale (DeepSeek: m(mscale_all_dim)^2)
  std::vector<float> factors;   // kFactors: divisors of inv_freq (GGUF rope_freqs.weight)
  kernels::RopeStyle style = kernels::RopeStyle::kHalfSplit;
  int dim = 0;  // rotated elements per head: head_dim, or MLA's qk_rope_head_dim
};

/// Multi-head latent attention; kv_lora_rank 0 means the model has none.
struct MlaConfig {
  int q_lora_rank = 0;  // 0: plain q_proj
  int kv_lora_rank = 0;
  int qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  /// kv_b_proj comes as two tensors, K transposed per head, V not (newer GGUF files).
  bool split_kv_b = false;
};

/// Mixture of experts; experts 0 means the model has none. The router's fields mean what they do in
/// kernels::RouterSpec.
struct MoeConfig {
  int experts = 0, top_k = 0;
  int shared_experts = 0;         // folded in one FFN of shared_experts * intermediate_size
  int64_t intermediate_size = 0;  // of one expert
  std::vector<bool> layers;       // [num_layers]: true where the FFN is a mixture
  bool sigmoid = false;           // scores: sigmoid (V3), else softmax
  bool correction_bias = false;   // e_score_correction_bias takes part in the choice
  int groups = 1, groups_kept = 1;
  bool group_top2_sum = false;  // a group's score: sum of its two best (V3), else its best (V2)
  bool mask_with_zero = false;  // scores of dropped groups become 0 (V2), else -infinity (V3)
  bool normalise = false;       // norm_topk_prob
  double scale = 1.0;           // routed_scaling_factor
  bool scale_always = false;    // V3; V2 scales only what is not normalised
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string architecture_name;  // e.g. LlamaForCausalLM
  std::string model_type;         // e.g. llama
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // of dense FFNs
  int num_layers = 0;             // without multi-token prediction
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;  // of queries and keys; for MLA qk_nope_head_dim + qk_rope_head_dim
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // Qwen2
  bool qk_norm = false;   // Qwen3
  RopeConfig rope;
  MlaConfig mla;
  MoeConfig moe;
  int num_nextn_predict_layers = 0;    // multi-token prediction (draft) layers in the checkpoint
  std::vector<int32_t> eos_token_ids;  // config.json, generation_config.json or GGUF
  int32_t bos_token_id = -1;
  DType weight_dtype = DType::kBF16;  // of the bulk of the weights; decides the cache dtype

  bool has_mla() const { return mla.kv_lora_rank > 0; }
  bool has_moe() const { return moe.experts > 0; }
  /// Whether layer l's FFN is a mixture; layers from num_layers on are multi-token prediction.
  bool is_moe_layer(int l) const {
    if (l >= num_layers) return has_moe();
    return has_moe() && moe.layers[static_cast<size_t>(l)];
  }
};

}  // namespace capstan::model
