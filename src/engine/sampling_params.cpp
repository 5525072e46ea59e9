#include "engine/sampling_params.h"

#include <cmath>
#include <string>

namespace capstan::engine {
namespace {

std::string shown(double v) {
  std::string s = std::to_string(v);
  if (s.find('.') == std::string::npos) return s;  // nan, inf
  s.erase(s.find_last_not_of('0') + 1);
  if (s.back() == '.') s.pop_back();
  return s;
}

Error out_of_range(const char* field, const std::string& value, const char* range) {
  return {ErrorCode::kOutOfRange, std::string(field) + " must be " + range + ", but is " + value,
          field};
}

Status check_id(const char* field, int32_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return {};
  return Error{ErrorCode::kOutOfRange,
               std::string(field) + ": token id " + std::to_string(id) +
                   " is outside the vocabulary of " + std::to_string(vocab_size) + " tokens",
               field};
}

}  // namespace

Status validate(const SamplingParams& p, int64_t vocab_size) {
  if (p.max_new_tokens < 0) {
    return out_of_range("max_new_tokens", std::to_string(p.max_new_tokens), "at least 0");
  }
  if (p.min_new_tokens < 0 || p.min_new_tokens > p.max_new_tokens) {
    return Error{
        ErrorCode::kOutOfRange,
        "min_new_tokens must be in [0, max_new_tokens = " + std::to_string(p.max_new_tokens) +
            "], but is " + std::to_string(p.min_new_tokens),
        "min_new_tokens"};
  }
  // Written so that NaN fails every test.
  if (!(p.temperature >= 0) || std::isinf(p.temperature)) {
    return out_of_range("temperature", shown(p.temperature), "a finite number of at least 0");
  }
  if (!(p.top_p > 0 && p.top_p <= 1)) {
    return out_of_range("top_p", shown(p.top_p), "in (0, 1]");
  }
  if (p.top_k != -1 && p.top_k < 1) {
    return out_of_range("top_k", std::to_string(p.top_k), "-1 (all tokens) or at least 1");
  }
  if (!(p.min_p >= 0 && p.min_p <= 1)) {
    return out_of_range("min_p", shown(p.min_p), "in [0, 1]");
  }
  if (!(p.frequency_penalty >= -2 && p.frequency_penalty <= 2)) {
    return out_of_range("frequency_penalty", shown(p.frequency_penalty), "in [-2, 2]");
  }
  if (!(p.presence_penalty >= -2 && p.presence_penalty <= 2)) {
    return out_of_range("presence_penalty", shown(p.presence_penalty), "in [-2, 2]");
  }
  if (!(p.repetition_penalty > 0 && p.repetition_penalty <= 2)) {
    return out_of_range("repetition_penalty", shown(p.repetition_penalty), "in (0, 2]");
  }
  if (p.top_logprobs < 0) {
    return out_of_range("top_logprobs", std::to_string(p.top_logprobs), "at least 0");
  }
  if (p.logprob_start < -1) {
    return out_of_range("logprob_start_len", std::to_string(p.logprob_start),
                        "-1 (outputs only) or at least 0");
  }
  for (const auto& [id, bias] : p.logit_bias) {
    CAPSTAN_RETURN_IF_ERROR(check_id("logit_bias", id, vocab_size));
    if (!std::isfinite(bias)) return out_of_range("logit_bias", shown(bias), "a finite number");
  }
  for (int32_t id : p.stop_token_ids) {
    CAPSTAN_RETURN_IF_ERROR(check_id("stop_token_ids", id, vocab_size));
  }
  for (int32_t id : p.token_ids_logprob) {
    CAPSTAN_RETURN_IF_ERROR(check_id("token_ids_logprob", id, vocab_size));
  }
  return {};
}

}  // namespace capstan::engine
