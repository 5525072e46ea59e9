// What the engine keeps about a request from submit() to its last event; the scheduler keeps the
// rest. Touched by the engine thread alone once it has left the mailbox.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/sampler.h"
#include "engine/token_counts.h"

namespace capstan::engine {

struct LiveRequest {
  RequestId id = 0;
  EngineRequest
      request;  // the prompt moves to the scheduler, unless its log-probabilities are wanted
  OutputSink sink;
  int32_t prompt_length = 0;
  int32_t max_new_tokens = 0;  // clipped to context and pool
  std::vector<int32_t> end_ids;
  uint64_t seed = 0;
  double submitted = 0;
  double admitted = -1;  // first time; < 0: still waiting for it

  int32_t generated = 0;
  bool counts_tokens = false;  // a penalty needs them
  TokenCounts counts;
  int32_t cached_tokens = 0;  // at first admission
  int32_t retractions = 0;
  int32_t decode_steps = 0;
  int32_t next_prompt_row = 0;  // the next position whose logits give a prompt log-probability
  std::vector<OutputToken> prompt_logprobs;

  /// Set when something other than the scheduler ended the request.
  std::string abort_message;
  ErrorCode abort_code = ErrorCode::kAborted;
  int32_t matched_token = -1;
  std::vector<OutputToken> new_tokens;  // of the step in progress

  bool wants_prompt_logprobs() const {
    return request.sampling.logprob_start >= 0 && request.sampling.logprob_start < prompt_length;
  }
};

/// Fills the fields that follow from the request, the model and the configuration.
std::unique_ptr<LiveRequest> make_live_request(RequestId id, EngineRequest request, OutputSink sink,
                                               const model::ModelConfig& model,
                                               const EngineConfig& config, double now);

/// The refusals that need no queue: ranges, ids, lengths against context and pool.
Status check_request(const EngineRequest& request, const model::ModelConfig& model,
                     const EngineConfig& config);

/// Applies the stop conditions to a token just drawn and records it; its place in the order of
/// docs/sampling.md: length before end ids.
FinishKind record_token(LiveRequest& live, OutputToken token);

}  // namespace capstan::engine
