// POST /v1/chat/completions: the body, apart from its messages (chat_messages.cpp).
#include <algorithm>
#include <boost/json/serialize.hpp>
#include <limits>

#include "server/app_state.h"
#include "server/chat_messages.h"
#include "server/generation_call.h"

namespace capstan::server {
namespace {

// What this build cannot constrain is refused rather than ignored: a client that asked for JSON
// would fail later and elsewhere.
void read_response_format(Fields& fields) {
  const json::object* format = fields.object("response_format");
  if (format == nullptr) return;
  Fields inner(*format, "response_format");
  const auto type = inner.string("type");
  static constexpr std::string_view kKnown[] = {"text", "json_object", "json_schema",
                                                "structural_tag"};
  if (!type) {
    fields.fail("response_format",
                "needs a \"type\": text, json_object, json_schema or structural_tag.");
  } else if (std::find(std::begin(kKnown), std::end(kKnown), *type) == std::end(kKnown)) {
    fields.fail("response_format", "unknown type \"" + *type +
                                       "\"; accepted are text, json_object, json_schema and "
                                       "structural_tag.");
  } else if (*type != "text") {
    fields.fail("response_format",
                "type \"" + *type + "\" is not supported by this build; only \"text\" is.");
  }
}

void read_tools(Fields& fields) {
  const json::array* tools = fields.array("tools");
  const bool any = tools != nullptr && !tools->empty();
  bool hidden = false;
  if (const json::value* choice = fields.find("tool_choice")) {
    if (choice->is_string()) {
      const auto& text = choice->get_string();
      if (text != "none" && text != "auto" && text != "required") {
        fields.fail("tool_choice",
                    "must be none, auto, required or a function, got " + describe(*choice) + ".");
      }
      hidden = text == "none";
      if (text == "required" && !any) {
        fields.fail("tool_choice", "\"required\" needs tools, but `tools` is empty.");
      }
    } else if (choice->is_object()) {
      if (!any) fields.fail("tool_choice", "a named function needs tools, but `tools` is empty.");
    } else {
      fields.fail_type("tool_choice", "a string or an object", *choice);
    }
  }
  if (any && !hidden) {
    fields.fail("tools",
                "tool calling is not supported by this build; leave `tools` out or send "
                "tool_choice \"none\".");
  }
  fields.boolean("parallel_tool_calls");
}

void read_logprobs(Fields& fields, engine::SamplingParams* params) {
  const auto wanted = fields.boolean("logprobs");
  const auto top = fields.integer_in("top_logprobs", 0, 20);
  params->logprobs = wanted.value_or(top.value_or(0) > 0);
  params->top_logprobs = params->logprobs ? static_cast<int32_t>(top.value_or(0)) : 0;
}

void read_limit(const AppState& app, Fields& fields, SamplingRequest* sampling) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  auto limit = fields.integer_in("max_completion_tokens", 1, kMax);
  const auto older = fields.integer_in("max_tokens", 1, kMax);
  if (!limit) limit = older;
  if (!limit) return;
  if (*limit > app.context_length && !app.config.allow_auto_truncate) {
    fields.fail("max_completion_tokens",
                "max_completion_tokens is too large: " + std::to_string(*limit) +
                    ". This model supports at most " + std::to_string(app.context_length) +
                    " completion tokens.");
  }
  sampling->params.max_new_tokens = static_cast<int32_t>(*limit);
  sampling->max_tokens_given = true;
}

// A prompt of ids shows its end only after decoding.
Result<bool> ends_inside_thinking(const AppState& app, std::span<const int32_t> ids) {
  if (app.reasoning == nullptr) return false;
  constexpr size_t kTail = 32;  // tokens; a tag in single bytes and white space after it
  CAPSTAN_ASSIGN(const std::string tail,
                 app.tokenizer->decode(ids.last(std::min(ids.size(), kTail)), false));
  return text::prompt_opens_thinking(*app.reasoning, tail);
}

}  // namespace

Result<GenerationCall> prepare_chat(const AppState& app, std::string_view body) {
  CAPSTAN_ASSIGN(const json::object object, parse_json_object(body));
  Fields fields(object);
  GenerationCall call;
  CAPSTAN_RETURN_IF_ERROR(read_common(app, fields, &call));

  Prompt prompt;
  prompt.sampling = app.base_sampling;
  prompt.sampling.max_tokens_given = false;
  read_sampling(fields, Dialect::kOpenAi, app.vocab_size, &prompt.sampling);
  read_limit(app, fields, &prompt.sampling);
  read_logprobs(fields, &prompt.sampling.params);
  read_response_format(fields);
  read_tools(fields);
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  call.n = prompt.sampling.n;

  CAPSTAN_ASSIGN(RenderedChat rendered, render_chat(app, fields));
  prompt.text = std::move(rendered.text);
  prompt.ids = std::move(rendered.ids);
  prompt.reasoning.format = app.reasoning;
  prompt.reasoning.inside = rendered.thinking;
  prompt.reasoning.separate = fields.boolean("separate_reasoning").value_or(true);
  prompt.reasoning.streamed = fields.boolean("stream_reasoning").value_or(true);
  if (auto ids = fields.token_ids("input_ids", app.vocab_size)) {
    if (ids->empty()) fields.fail("input_ids", "must not be empty.");
    prompt.ids = std::move(*ids);
    CAPSTAN_ASSIGN(prompt.reasoning.inside, ends_inside_thinking(app, prompt.ids));
  }
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  if (prompt.ids.empty()) {
    return invalid_argument("messages: the chat template rendered them to an empty prompt.",
                            "messages");
  }
  CAPSTAN_RETURN_IF_ERROR(fit_context(app, "max_completion_tokens", &prompt));
  call.prompts.push_back(std::move(prompt));
  return call;
}

}  // namespace capstan::server
