// What a checkpoint says about its model, from config.json or GGUF metadata.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace capstan::model {

enum class Architecture : uint8_t { kLlama, kQwen2, kQwen3 };

enum class RopeScaling : uint8_t { kNone, kLlama3, kFactors };

struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0, low_freq_factor = 1.0, high_freq_factor = 4.0;  // kLlama3
  int64_t original_max_position = 0;
  std::vector<float> factors;  // kFactors: divisors of inv_freq (GGUF rope_freqs.weight)
  kernels::RopeStyle style = kernels::RopeStyle::kHalfSplit;
  int dim = 0;  // rotated elements per head, == head_dim here
};

/// Multi-head latent attention; kv_lora_rank 0 means the model has none.
struct MlaConfig {
  int q_lora_rank = 0;  // 0: plain q_proj
  int kv_lora_rank = 0;
  int qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  /// kv_b_proj comes as two tensors, K transposed per head, V not (newer GGUF files).
  bool split_kv_b = false;
};

struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  std::string architecture_name;  // e.g. LlamaForCausalLM
  std::string model_type;         // e.g. llama
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // Qwen2
  bool qk_norm = false;   // Qwen3
  RopeConfig rope;
  MlaConfig mla;
  std::vector<int32_t> eos_token_ids;  // config.json, generation_config.json or GGUF
  int32_t bos_token_id = -1;
  DType weight_dtype = DType::kBF16;  // of the bulk of the weights; decides the cache dtype

  bool has_mla() const { return mla.kv_lora_rank > 0; }
};

}  // namespace capstan::model
