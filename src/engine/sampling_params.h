// How one request's next tokens are chosen. Meaning and order of operations: docs/sampling.md.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "base/result.h"

namespace capstan::engine {

struct SamplingParams {
  int32_t max_new_tokens = 128;     // >= 0
  int32_t min_new_tokens = 0;       // EOS and stop ids are -inf until reached
  double temperature = 1.0;         // finite, >= 0; below 1e-6 greedy
  double top_p = 1.0;               // (0, 1]
  int32_t top_k = -1;               // -1 = all, or >= 1
  double min_p = 0.0;               // [0, 1]
  double frequency_penalty = 0.0;   // [-2, 2]
  double presence_penalty = 0.0;    // [-2, 2]
  double repetition_penalty = 1.0;  // (0, 2]
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> stop_token_ids;  // besides the model's EOS ids
  bool ignore_eos = false;              // neither EOS nor stop ids end the request
  std::optional<int64_t> seed;          // absent: from process seed and request counter
  bool logprobs = false;                // report the chosen token's log-probability
  int32_t top_logprobs = 0;             // and this many alternatives
  std::vector<int32_t> token_ids_logprob;
  int32_t logprob_start = -1;  // >= 0: prompt log-probabilities from this position
};

/// Ranges of the table above and ids against the vocabulary; the error's param is the field's name.
Status validate(const SamplingParams& params, int64_t vocab_size);

}  // namespace capstan::engine
