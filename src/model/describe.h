// One line about a model, for logs.
#pragma once

#include <string>

#include "model/checkpoint.h"
#include "model/config.h"

namespace capstan::model {

/// Weights counted once each (tied embeddings are one matrix).
int64_t parameter_count(const ModelConfig& config);

/// "671.0B parameters (37.6B per token), 61 layers, hidden 7168, 128 heads of 128+64 over a latent
/// of 512+64, 8 of 256 experts and 1 shared in 58 layers" names what MLA and experts look like;
/// e.g. "LlamaForCausalLM, 134.5M parameters, 30 layers, hidden 576, 9/3 heads of 64, vocabulary
/// 49152 (tied), context 8192; 96.6 MB of weights: Q4_1 78.9%, Q8_0 21.0%, F32 0.0%". Shares are of
/// parameters. A checkpoint without weights ends after the context.
std::string describe(const Checkpoint& checkpoint);

}  // namespace capstan::model
