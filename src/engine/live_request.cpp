#include "engine/live_request.h"

#include <algorithm>

#include "engine/philox.h"

namespace capstan::engine {
namespace {

int64_t pool_tokens(const EngineConfig& config) {
  return static_cast<int64_t>(config.scheduler.num_pages) * config.scheduler.page_size;
}

/// Tokens a request of this prompt may generate before context or pool is full.
int64_t room_after(int64_t prompt_length, const EngineConfig& config) {
  return std::min<int64_t>(config.scheduler.context_length, pool_tokens(config)) - prompt_length;
}

int64_t vocabulary(const model::ModelConfig& model, const EngineConfig& config) {
  return config.token_limit > 0 ? std::min<int64_t>(config.token_limit, model.vocab_size)
                                : model.vocab_size;
}

}  // namespace

Status check_request(const EngineRequest& request, const model::ModelConfig& model,
                     const EngineConfig& config) {
  const int64_t vocab = vocabulary(model, config);
  CAPSTAN_RETURN_IF_ERROR(validate(request.sampling, vocab));
  if (request.prompt.empty()) {
    return invalid_argument("the prompt is empty; at least one token is needed", "input_ids");
  }
  const auto length = static_cast<int64_t>(request.prompt.size());
  if (length >= config.scheduler.context_length) {
    return Error{ErrorCode::kOutOfRange,
                 "the prompt of " + std::to_string(length) +
                     " tokens is longer than the model's context length of " +
                     std::to_string(config.scheduler.context_length) +
                     " tokens allows (at least one must be left for the answer)",
                 "input_ids"};
  }
  const int64_t needed = request.sampling.max_new_tokens > 0 ? 1 : 0;
  if (room_after(length, config) < needed) {
    return Error{ErrorCode::kOutOfRange,
                 "the prompt of " + std::to_string(length) +
                     " tokens can never fit the KV pool of " + std::to_string(pool_tokens(config)) +
                     " tokens; shorten it, or start the server with a larger --max-total-tokens",
                 "input_ids"};
  }
  for (int32_t id : request.prompt) {
    if (id < 0 || id >= vocab) {
      return Error{ErrorCode::kOutOfRange,
                   "input_ids: token id " + std::to_string(id) + " is outside the vocabulary of " +
                       std::to_string(vocab) + " tokens",
                   "input_ids"};
    }
  }
  if (request.choice_index < 0) {
    return Error{ErrorCode::kOutOfRange,
                 "choice_index must be at least 0, but is " + std::to_string(request.choice_index),
                 "n"};
  }
  return {};
}

std::unique_ptr<LiveRequest> make_live_request(RequestId id, EngineRequest request, OutputSink sink,
                                               const model::ModelConfig& model,
                                               const EngineConfig& config, double now) {
  auto live = std::make_unique<LiveRequest>();
  live->id = id;
  live->sink = std::move(sink);
  live->submitted = now;
  live->prompt_length = static_cast<int32_t>(request.prompt.size());
  const SamplingParams& s = request.sampling;
  live->max_new_tokens = static_cast<int32_t>(
      std::min<int64_t>(s.max_new_tokens, room_after(live->prompt_length, config)));
  live->end_ids = model.eos_token_ids;
  live->end_ids.insert(live->end_ids.end(), s.stop_token_ids.begin(), s.stop_token_ids.end());
  live->seed = s.seed ? static_cast<uint64_t>(*s.seed) : derived_seed(config.random_seed, id);
  live->counts_tokens =
      s.frequency_penalty != 0 || s.presence_penalty != 0 || s.repetition_penalty != 1;
  live->next_prompt_row = std::max(0, s.logprob_start);
  live->request = std::move(request);
  return live;
}

FinishKind record_token(LiveRequest& live, OutputToken token) {
  const SamplingParams& params = live.request.sampling;
  const int32_t id = token.token;
  live.new_tokens.push_back(std::move(token));
  ++live.generated;
  if (live.counts_tokens) live.counts.add(id);
  if (live.generated >= live.max_new_tokens) return FinishKind::kLength;
  if (!params.ignore_eos && live.generated >= params.min_new_tokens &&
      std::find(live.end_ids.begin(), live.end_ids.end(), id) != live.end_ids.end()) {
    live.matched_token = id;
    return FinishKind::kStop;
  }
  return FinishKind::kNone;
}

}  // namespace capstan::engine
