// Parts of a config.json: rotary embedding, latent attention, mixture of experts, quantisation.
#pragma once

#include "base/result.h"
#include "model/config.h"
#include "model/config_fields.h"

namespace capstan::model {

/// rope_theta with rope_scaling (older) or rope_parameters (newer). Needs config.has_mla() and
/// max_position_embeddings; leaves `dim` to the caller.
///
/// YaRN's multiplier of cos and sin is attention_factor if given, else m(mscale) /
/// m(mscale_all_dim) if both are given and not 0, else m(1), with m(k) = 1 + 0.1 k ln(factor), as
/// in transformers. With latent attention the softmax scale grows by m(mscale_all_dim)^2
/// (DeepSeek).
Result<RopeConfig> read_rope(const Fields& f, const ModelConfig& config);

/// Fields of DeepSeek's latent attention; sets heads and head_dim too.
Status read_mla(const Fields& f, ModelConfig& config);

/// Experts of DeepSeek V2 and V3. Needs num_layers.
Status read_deepseek_experts(const Fields& f, ModelConfig& config);

/// Experts of Qwen3-MoE. Needs num_layers.
Status read_qwen3_experts(const Fields& f, ModelConfig& config);

/// quantization_config: absent (false) or block FP8 as DeepSeek stores it (true): E4M3 weights with
/// one float32 scale per 128x128 block. Anything else is refused.
Result<bool> read_block_fp8(const Fields& f);

}  // namespace capstan::model
