// One line about a model, for logs.
#pragma once

#include <string>

#include "model/checkpoint.h"
#include "model/config.h"

namespace capstan::model {

/// Weights counted once each (tied embeddings are one matrix).
int64_t parameter_count(const ModelConfig& config);

/// e.g. "LlamaForCausalLM, 134.5M parameters, 30 layers, hidden 576, 9/3 heads of 64, vocabulary
/// 49152 (tied), context 8192; 96.6 MB of weights: Q4_1 78.9%, Q8_0 21.0%, F32 0.0%". Shares are of
/// parameters. A checkpoint without weights ends after the context.
std::string describe(const Checkpoint& checkpoint);

}  // namespace capstan::model
