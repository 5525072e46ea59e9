// POST /generate, the native dialect: the body.
#include <algorithm>
#include <boost/json/array.hpp>

#include "server/app_state.h"
#include "server/generation_call.h"
#include "server/http_message.h"

namespace capstan::server {
namespace {

constexpr size_t kMaxPrompts = 4096;
constexpr int32_t kDefaultMaxNewTokens = 128;

Result<Prompt> from_text(const AppState& app, const json::value& value, const std::string& path) {
  if (!value.is_string()) {
    return invalid_argument(path + ": expected a string, got " + describe(value) + ".", "text");
  }
  Prompt prompt;
  prompt.text.assign(value.get_string().data(), value.get_string().size());
  CAPSTAN_ASSIGN(prompt.ids, app.tokenizer->encode(prompt.text, true));
  if (prompt.ids.empty()) return invalid_argument(path + ": has no tokens.", "text");
  return prompt;
}

Result<Prompt> from_ids(const AppState& app, const json::value& value, const std::string& path) {
  Prompt prompt;
  if (!value.is_array() || value.get_array().empty()) {
    return invalid_argument(
        path + ": expected a list of at least one token id, got " + describe(value) + ".",
        "input_ids");
  }
  CAPSTAN_ASSIGN(prompt.ids, read_token_ids(value.get_array(), path, app.vocab_size));
  return prompt;
}

// A field that is one value for all prompts or a list with one for each.
const json::value* per_prompt(Fields& fields, std::string_view key, size_t index, size_t prompts,
                              bool batch) {
  const json::value* value = fields.find(key);
  if (value == nullptr || !value->is_array() || !batch) return value;
  if (value->get_array().size() != prompts) {
    fields.fail(key, "has " + std::to_string(value->get_array().size()) + " entries for " +
                         std::to_string(prompts) + " prompts.");
    return nullptr;
  }
  const json::value& own = value->get_array()[index];
  return own.is_null() ? nullptr : &own;
}

Status read_prompts(const AppState& app, Fields& fields, GenerationCall* call) {
  const json::value* text = fields.find("text");
  const json::value* ids = fields.find("input_ids");
  if (fields.find("input_embeds") != nullptr) {
    return invalid_argument("input_embeds: is not supported by this build; send text or input_ids.",
                            "input_embeds");
  }
  if ((text == nullptr) == (ids == nullptr)) {
    return invalid_argument("Send exactly one of text and input_ids.", "text");
  }
  const json::value& given = text != nullptr ? *text : *ids;
  const std::string name = text != nullptr ? "text" : "input_ids";
  const auto one = [&](const json::value& value, const std::string& path) {
    return text != nullptr ? from_text(app, value, path) : from_ids(app, value, path);
  };
  const json::array* list = given.if_array();
  call->batch = list != nullptr && (text != nullptr || (!list->empty() && (*list)[0].is_array()));
  if (!call->batch) {
    CAPSTAN_ASSIGN(Prompt prompt, one(given, name));
    call->prompts.push_back(std::move(prompt));
    return {};
  }
  if (list->empty() || list->size() > kMaxPrompts) {
    return invalid_argument(name + ": expected 1 to " + std::to_string(kMaxPrompts) +
                                " prompts, got " + std::to_string(list->size()) + ".",
                            name);
  }
  for (size_t i = 0; i < list->size(); ++i) {
    CAPSTAN_ASSIGN(Prompt prompt, one((*list)[i], name + "[" + std::to_string(i) + "]"));
    call->prompts.push_back(std::move(prompt));
  }
  return {};
}

// Log-probability fields stand beside sampling_params. `own` is an object with this prompt's
// values.
void read_logprobs(Fields& own, int64_t vocab_size, engine::SamplingParams* params) {
  params->logprobs = own.boolean("return_logprob").value_or(false);
  const auto top = own.integer_in("top_logprobs_num", 0, 1000);
  const auto start = own.integer_in("logprob_start_len", -1, INT32_MAX);
  auto ids = own.token_ids("token_ids_logprob", vocab_size);
  if (!params->logprobs) return;
  params->top_logprobs = static_cast<int32_t>(top.value_or(0));
  params->logprob_start = static_cast<int32_t>(start.value_or(-1));
  if (ids) params->token_ids_logprob = std::move(*ids);
}

Status read_prompt_settings(const AppState& app, Fields& fields, size_t index,
                            GenerationCall* call) {
  Prompt& prompt = call->prompts[index];
  const size_t prompts = call->prompts.size();
  prompt.sampling = app.base_sampling;
  if (!prompt.sampling.max_tokens_given) {
    prompt.sampling.params.max_new_tokens = kDefaultMaxNewTokens;
  }
  bool limit_given = prompt.sampling.max_tokens_given;
  if (const json::value* value =
          per_prompt(fields, "sampling_params", index, prompts, call->batch)) {
    if (!value->is_object()) {
      fields.fail_type("sampling_params", "an object", *value);
      return fields.status();
    }
    Fields inner(value->get_object(), "sampling_params");
    read_sampling(inner, Dialect::kNative, app.vocab_size, &prompt.sampling);
    CAPSTAN_RETURN_IF_ERROR(inner.status());
    limit_given = prompt.sampling.max_tokens_given;
  }
  json::object own;
  for (const char* key : {"return_logprob", "top_logprobs_num", "logprob_start_len"}) {
    if (const json::value* value = per_prompt(fields, key, index, prompts, call->batch)) {
      own[key] = *value;
    }
  }
  if (const json::value* value = fields.find("token_ids_logprob")) {
    const bool lists = call->batch && value->is_array() && !value->get_array().empty() &&
                       value->get_array()[0].is_array();
    const json::value* mine =
        lists ? per_prompt(fields, "token_ids_logprob", index, prompts, true) : value;
    if (mine != nullptr) own["token_ids_logprob"] = *mine;
  }
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  Fields own_fields(own);
  read_logprobs(own_fields, app.vocab_size, &prompt.sampling.params);
  CAPSTAN_RETURN_IF_ERROR(own_fields.status());

  engine::SamplingParams& params = prompt.sampling.params;
  const auto length = static_cast<int64_t>(prompt.ids.size());
  if (params.logprob_start >= length) {
    return invalid_argument("logprob_start_len: must be below the prompt's length of " +
                                std::to_string(length) + " tokens, got " +
                                std::to_string(params.logprob_start) + ".",
                            "logprob_start_len");
  }
  // The default limit yields to the context; a given one does not.
  if (!limit_given && app.context_length > length) {
    params.max_new_tokens =
        static_cast<int32_t>(std::min<int64_t>(params.max_new_tokens, app.context_length - length));
  }
  prompt.sampling.max_tokens_given = true;
  return fit_context(app, "max_new_tokens", &prompt);
}

Status read_rids(Fields& fields, GenerationCall* call) {
  const json::value* rid = fields.find("rid");
  if (rid == nullptr || !rid->is_array()) return {};
  const auto rids = fields.strings("rid");
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  if (!call->batch || rids->size() != call->prompts.size()) {
    return invalid_argument("rid: has " + std::to_string(rids->size()) + " entries for " +
                                std::to_string(call->prompts.size()) + " prompts.",
                            "rid");
  }
  call->prompt_rids = *rids;
  return {};
}

}  // namespace

Result<GenerationCall> prepare_native(const AppState& app, std::string_view body) {
  CAPSTAN_ASSIGN(json::object object, parse_json_object(body));
  // A list of ids is for the prompts; what is common reads a single one.
  json::object common;
  for (const char* key : {"stream", "priority", "extra_key", "rid"}) {
    if (const json::value* value = object.if_contains(key)) common[key] = *value;
  }
  if (common["rid"].is_array()) common["rid"] = nullptr;
  Fields common_fields(common);
  GenerationCall call;
  // The served model is the only one: the strict check has nothing to compare with.
  common["model"] = json::string(app.config.served_model_name);
  CAPSTAN_RETURN_IF_ERROR(read_common(app, common_fields, &call));

  call.keep_token_ids = true;
  Fields fields(object);
  for (const char* key : {"lora_path", "image_data", "session_params"}) {
    if (fields.find(key) != nullptr) {
      return invalid_argument(std::string(key) + ": is not supported by this build.", key);
    }
  }
  if (fields.boolean("return_hidden_states").value_or(false)) {
    fields.fail("return_hidden_states",
                "hidden states are not available in this build; SGLang enables them with "
                "--enable-return-hidden-states.");
  }
  call.return_text_in_logprobs = fields.boolean("return_text_in_logprobs").value_or(false);
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  CAPSTAN_RETURN_IF_ERROR(read_prompts(app, fields, &call));
  CAPSTAN_RETURN_IF_ERROR(read_rids(fields, &call));
  for (size_t i = 0; i < call.prompts.size(); ++i) {
    CAPSTAN_RETURN_IF_ERROR(read_prompt_settings(app, fields, i, &call));
    const int n = call.prompts[i].sampling.n;
    if (i == 0) call.n = n;
    if (n != call.n) {
      return invalid_argument("sampling_params: n must be the same for all prompts of a batch.",
                              "sampling_params.n");
    }
  }
  return call;
}

}  // namespace capstan::server
