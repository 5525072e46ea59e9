// A generation request of any dialect after parsing, validation and tokenisation: what is left to
// do is to run it and to format the result.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/sampling_request.h"
#include "text/reasoning_parser.h"

namespace capstan::server {

struct AppState;

/// What becomes of a model's thinking in chat answers.
struct ReasoningRequest {
  const text::ReasoningFormat* format = nullptr;  // null: no --reasoning-parser
  bool inside = false;                            // the prompt ends inside the thinking
  bool separate = true;  // false: all stays in the content, and is only counted
  bool streamed = true;  // false: sent as one delta when the thinking ends
};

struct Prompt {
  std::vector<int32_t> ids;
  std::string text;          // as given (completions) or rendered (chat); for echo and request logs
  SamplingRequest sampling;  // max_new_tokens depends on the prompt's length
  ReasoningRequest reasoning;
};

struct GenerationCall {
  std::string model;
  std::string rid;                       // client-visible id, given or 32 hex digits
  std::vector<std::string> prompt_rids;  // native batches: one per prompt, instead of `rid`
  bool batch = false;                    // native: the answer is a list
  bool return_text_in_logprobs = false;  // native
  bool keep_token_ids = false;           // native: the answer shows them
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool echo = false;
  std::vector<Prompt> prompts;  // at least one
  int n = 1;                    // choices per prompt
  int64_t priority = 0;
  std::string cache_salt;
};

/// Pure functions of the body; may run on a worker thread.
Result<GenerationCall> prepare_chat(const AppState& app, std::string_view body);
Result<GenerationCall> prepare_completion(const AppState& app, std::string_view body);
Result<GenerationCall> prepare_native(const AppState& app, std::string_view body);

/// The id under which a prompt can be aborted.
inline const std::string& rid_of(const GenerationCall& call, size_t prompt) {
  return call.prompt_rids.empty() ? call.rid : call.prompt_rids[prompt];
}

/// Messages (and tools in history) of a chat body as token ids; also serves /tokenize. Adds what
/// is wrong to `fields`.
struct RenderedChat {
  std::string text;
  std::vector<int32_t> ids;
  bool thinking = false;  // the output begins inside the thinking
};
Result<RenderedChat> render_chat(const AppState& app, Fields& fields);

/// Model name, rid, streaming options, priority, cache namespace: the same in both dialects.
/// kNotFound with param "model" under --strict-model-name.
Status read_common(const AppState& app, Fields& fields, GenerationCall* call);

/// Fits prompt and output into the context, or says with all numbers why they do not fit.
/// `limit_field` names the field of the output limit in messages.
Status fit_context(const AppState& app, std::string_view limit_field, Prompt* prompt);

}  // namespace capstan::server
