// The sampling part of a request: what the engine gets, and what the server does itself with the
// text (stop strings, special tokens, emission interval).
#pragma once

#include <string>
#include <vector>

#include "engine/sampling_params.h"
#include "server/json_fields.h"
#include "server/server_config.h"

namespace capstan::server {

struct SamplingRequest {
  engine::SamplingParams params;
  bool max_tokens_given = false;
  std::vector<std::string> stop;
  bool no_stop_trim = false;
  bool skip_special_tokens = true;
  int n = 1;
  int stream_interval = 0;  // 0: the server's
};

/// Field names of the two dialects.
enum class Dialect : uint8_t {
  kOpenAi,  // max_tokens / max_completion_tokens, min_tokens, seed
  kNative,  // max_new_tokens, min_new_tokens, sampling_seed
};

/// Overwrites in `sampling` what the object says. Kept in `fields`: wrong types, values outside
/// their range, token ids outside the vocabulary, fields this build does not support.
void read_sampling(Fields& fields, Dialect dialect, int64_t vocab_size, SamplingRequest* sampling);

/// Defaults of the model beneath those of --preferred-sampling-params.
Result<SamplingRequest> base_sampling(const ServerConfig& config, int64_t vocab_size);

/// One line for request logs: temperature=0.7 top_p=0.95 ...
std::string describe_sampling(const SamplingRequest& sampling);

}  // namespace capstan::server
