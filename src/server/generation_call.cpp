#include "server/generation_call.h"

#include <algorithm>

#include "server/app_state.h"
#include "server/http_message.h"

namespace capstan::server {
namespace {

constexpr size_t kMaxRidLength = 256;

}  // namespace

Status read_common(const AppState& app, Fields& fields, GenerationCall* call) {
  call->model = fields.string("model").value_or("default");
  if (const auto rid = fields.string("rid")) {
    if (rid->empty() || rid->size() > kMaxRidLength) {
      fields.fail("rid", "must have 1 to " + std::to_string(kMaxRidLength) + " bytes, got " +
                             std::to_string(rid->size()) + ".");
    }
    call->rid = *rid;
  } else {
    call->rid = random_hex_id();
  }
  call->stream = fields.boolean("stream").value_or(false);
  call->include_usage = app.config.stream_default_include_usage;
  if (const json::object* options = fields.object("stream_options")) {
    Fields inner(*options, "stream_options");
    call->include_usage = inner.boolean("include_usage").value_or(call->include_usage);
    call->continuous_usage = inner.boolean("continuous_usage_stats").value_or(false);
    CAPSTAN_RETURN_IF_ERROR(inner.status());
  }
  call->priority = fields.integer("priority").value_or(0);
  for (const char* key : {"extra_key", "cache_salt"}) {
    // Length-prefixed, so that two keys cannot run into each other.
    if (const auto salt = fields.string(key)) {
      call->cache_salt += std::to_string(salt->size()) + ":" + *salt;
    }
  }
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  if (app.config.strict_model_name && call->model != app.config.served_model_name) {
    return Error{ErrorCode::kNotFound,
                 "The model '" + call->model + "' does not exist; this server serves '" +
                     app.config.served_model_name + "'.",
                 "model"};
  }
  return {};
}

Status fit_context(const AppState& app, std::string_view limit_field, Prompt* prompt) {
  const int64_t context = app.context_length;
  engine::SamplingParams& params = prompt->sampling.params;
  int64_t input = static_cast<int64_t>(prompt->ids.size());
  // One position at least must be left for output, except when only the prompt is scored.
  const int64_t room_needed =
      params.max_new_tokens == 0 && prompt->sampling.max_tokens_given ? 0 : 1;
  if (input + room_needed > context) {
    if (!app.config.allow_auto_truncate) {
      return invalid_argument("The input (" + std::to_string(input) +
                              " tokens) is longer than the model's context length (" +
                              std::to_string(context) + " tokens).");
    }
    prompt->ids.resize(static_cast<size_t>(context - room_needed));
    input = context - room_needed;
  }
  if (!prompt->sampling.max_tokens_given) {
    params.max_new_tokens = static_cast<int32_t>(std::max<int64_t>(1, context - input - 1));
  } else if (input + params.max_new_tokens > context) {
    if (!app.config.allow_auto_truncate) {
      return invalid_argument(
          "Requested token count exceeds the model's maximum context length of " +
              std::to_string(context) + " tokens. You requested a total of " +
              std::to_string(input + params.max_new_tokens) + " tokens: " + std::to_string(input) +
              " tokens from the input messages and " + std::to_string(params.max_new_tokens) +
              " tokens for the completion. Shorten the input or lower " + std::string(limit_field) +
              ".",
          std::string(limit_field));
    }
    params.max_new_tokens = static_cast<int32_t>(context - input);
  }
  if (params.min_new_tokens > params.max_new_tokens) {
    return invalid_argument("min_tokens: must be at most the output limit of " +
                                std::to_string(params.max_new_tokens) + " tokens, got " +
                                std::to_string(params.min_new_tokens) + ".",
                            "min_tokens");
  }
  return {};
}

}  // namespace capstan::server
