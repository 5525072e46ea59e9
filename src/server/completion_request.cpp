// POST /v1/completions: the body.
#include <limits>

#include "server/app_state.h"
#include "server/generation_call.h"

namespace capstan::server {
namespace {

constexpr int32_t kDefaultMaxTokens = 16;
constexpr size_t kMaxPrompts = 4096;

Result<Prompt> text_prompt(const AppState& app, const json::value& value, const std::string& path) {
  Prompt prompt;
  prompt.text.assign(value.get_string().data(), value.get_string().size());
  if (prompt.text.empty()) return invalid_argument(path + ": must not be empty.", "prompt");
  CAPSTAN_ASSIGN(prompt.ids, app.tokenizer->encode(prompt.text, true));
  // A text that spells BOS out gets it once.
  const int32_t bos = app.tokenizer->bos_id();
  if (bos >= 0 && prompt.ids.size() > 1 && prompt.ids[0] == bos && prompt.ids[1] == bos) {
    prompt.ids.erase(prompt.ids.begin());
  }
  if (prompt.ids.empty()) return invalid_argument(path + ": has no tokens.", "prompt");
  return prompt;
}

Result<Prompt> ids_prompt(const AppState& app, const json::array& list, const std::string& path,
                          bool wants_text) {
  Prompt prompt;
  if (list.empty()) return invalid_argument(path + ": must not be empty.", "prompt");
  CAPSTAN_ASSIGN(prompt.ids, read_token_ids(list, path, app.vocab_size));
  if (wants_text) {
    CAPSTAN_ASSIGN(prompt.text, app.tokenizer->decode(prompt.ids, false));
  }
  return prompt;
}

Result<std::vector<Prompt>> read_prompts(const AppState& app, const json::value* value,
                                         bool wants_text) {
  if (value == nullptr) return invalid_argument("prompt: is required.", "prompt");
  std::vector<Prompt> prompts;
  if (value->is_string()) {
    CAPSTAN_ASSIGN(Prompt prompt, text_prompt(app, *value, "prompt"));
    prompts.push_back(std::move(prompt));
    return prompts;
  }
  if (!value->is_array()) {
    return invalid_argument(
        "prompt: expected a string, a list of strings, a list of token ids or a list of such "
        "lists, got " +
            describe(*value) + ".",
        "prompt");
  }
  const json::array& list = value->get_array();
  if (list.empty()) return invalid_argument("prompt: must not be empty.", "prompt");
  if (list[0].is_number()) {
    CAPSTAN_ASSIGN(Prompt prompt, ids_prompt(app, list, "prompt", wants_text));
    prompts.push_back(std::move(prompt));
    return prompts;
  }
  if (list.size() > kMaxPrompts) {
    return invalid_argument("prompt: at most " + std::to_string(kMaxPrompts) +
                                " prompts are accepted in one request, got " +
                                std::to_string(list.size()) + ".",
                            "prompt");
  }
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string path = "prompt[" + std::to_string(i) + "]";
    if (list[i].kind() != list[0].kind() || (!list[i].is_string() && !list[i].is_array())) {
      return invalid_argument(path + ": expected " +
                                  (list[0].is_array() ? "a list of token ids" : "a string") +
                                  ", got " + describe(list[i]) + ".",
                              "prompt");
    }
    if (list[i].is_string()) {
      CAPSTAN_ASSIGN(Prompt prompt, text_prompt(app, list[i], path));
      prompts.push_back(std::move(prompt));
    } else {
      CAPSTAN_ASSIGN(Prompt prompt, ids_prompt(app, list[i].get_array(), path, wants_text));
      prompts.push_back(std::move(prompt));
    }
  }
  return prompts;
}

}  // namespace

Result<GenerationCall> prepare_completion(const AppState& app, std::string_view body) {
  CAPSTAN_ASSIGN(const json::object object, parse_json_object(body));
  Fields fields(object);
  GenerationCall call;
  CAPSTAN_RETURN_IF_ERROR(read_common(app, fields, &call));

  SamplingRequest sampling = app.base_sampling;
  sampling.params.max_new_tokens = kDefaultMaxTokens;
  read_sampling(fields, Dialect::kOpenAi, app.vocab_size, &sampling);
  call.echo = fields.boolean("echo").value_or(false);
  const auto limit =
      fields.integer_in("max_tokens", call.echo ? 0 : 1, std::numeric_limits<int32_t>::max());
  if (limit) sampling.params.max_new_tokens = static_cast<int32_t>(*limit);
  sampling.max_tokens_given = true;
  if (const json::value* logprobs = fields.find("logprobs"); logprobs && logprobs->is_bool()) {
    sampling.params.logprobs = logprobs->get_bool();
  } else if (const auto top = fields.integer_in("logprobs", 0, 20)) {
    sampling.params.logprobs = true;
    sampling.params.top_logprobs = static_cast<int32_t>(*top);
  }
  if (call.echo && sampling.params.logprobs) sampling.params.logprob_start = 0;
  if (const auto suffix = fields.string("suffix"); suffix && !suffix->empty()) {
    fields.fail("suffix", "the served model has no fill-in-the-middle template.");
  }
  if (const json::object* format = fields.object("response_format")) {
    Fields inner(*format, "response_format");
    if (inner.string("type").value_or("") != "text") {
      fields.fail("response_format", "only {\"type\": \"text\"} is supported by this build.");
    }
  }
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  call.n = sampling.n;

  CAPSTAN_ASSIGN(call.prompts, read_prompts(app, fields.find("prompt"), call.echo));
  for (Prompt& prompt : call.prompts) {
    prompt.sampling = sampling;
    if (!limit) {  // the default limit yields to the context; a given one does not
      const int64_t room = app.context_length - static_cast<int64_t>(prompt.ids.size());
      if (room > 0 && room < kDefaultMaxTokens) {
        prompt.sampling.params.max_new_tokens = static_cast<int32_t>(room);
      }
    }
    CAPSTAN_RETURN_IF_ERROR(fit_context(app, "max_tokens", &prompt));
  }
  return call;
}

}  // namespace capstan::server
