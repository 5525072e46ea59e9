// /tokenize and /detokenize.
#include <boost/json/serialize.hpp>

#include "server/generation_call.h"
#include "server/handlers.h"
#include "server/json_text.h"

namespace capstan::server {
namespace {

void append_ids(std::string& out, std::span<const int32_t> ids) {
  out += '[';
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) out += ',';
    append_json_int(out, ids[i]);
  }
  out += ']';
}

std::string tokenized(const AppState& app, const std::string& tokens, const std::string& count) {
  return "{\"tokens\":" + tokens + ",\"count\":" + count +
         ",\"max_model_len\":" + std::to_string(app.context_length) + "}";
}

Result<std::string> tokenize(const AppState& app, std::string_view body) {
  CAPSTAN_ASSIGN(const json::object object, parse_json_object(body));
  Fields fields(object);
  const bool special = fields.boolean("add_special_tokens").value_or(true);
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  const json::value* prompt = fields.find("prompt");
  if (prompt == nullptr) prompt = fields.find("content");
  const bool chat = fields.find("messages") != nullptr;
  if (chat == (prompt != nullptr)) {
    return invalid_argument("Send either prompt (a string or a list of strings) or messages" +
                                std::string(chat ? ", not both." : "."),
                            "prompt");
  }
  if (chat) {
    CAPSTAN_ASSIGN(const RenderedChat rendered, render_chat(app, fields));
    std::string tokens;
    append_ids(tokens, rendered.ids);
    return tokenized(app, tokens, std::to_string(rendered.ids.size()));
  }
  const std::string key = fields.find("prompt") != nullptr ? "prompt" : "content";
  const auto texts = fields.strings(key);
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  std::string tokens, counts;
  for (const std::string& text : *texts) {
    CAPSTAN_ASSIGN(const std::vector<int32_t> ids, app.tokenizer->encode(text, special));
    if (!counts.empty()) {
      tokens += ',';
      counts += ',';
    }
    append_ids(tokens, ids);
    append_json_int(counts, static_cast<int64_t>(ids.size()));
  }
  if (prompt->is_string()) return tokenized(app, tokens, counts);
  return tokenized(app, "[" + tokens + "]", "[" + counts + "]");
}

Result<std::string> detokenize(const AppState& app, std::string_view body) {
  CAPSTAN_ASSIGN(const json::object object, parse_json_object(body));
  Fields fields(object);
  const bool skip = fields.boolean("skip_special_tokens").value_or(true);
  const json::array* tokens = fields.array("tokens");
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  if (tokens == nullptr) return invalid_argument("tokens: is required.", "tokens");
  std::string out = "{\"text\":";
  if (!tokens->empty() && (*tokens)[0].is_array()) {
    out += '[';
    for (size_t i = 0; i < tokens->size(); ++i) {
      const std::string path = "tokens[" + std::to_string(i) + "]";
      const json::array* list = (*tokens)[i].if_array();
      if (list == nullptr) {
        return invalid_argument(path + ": expected a list, got " + describe((*tokens)[i]) + ".",
                                "tokens");
      }
      CAPSTAN_ASSIGN(const std::vector<int32_t> ids, read_token_ids(*list, path, app.vocab_size));
      CAPSTAN_ASSIGN(const std::string text, app.tokenizer->decode(ids, skip));
      if (i > 0) out += ',';
      append_json_string(out, text);
    }
    out += ']';
  } else {
    CAPSTAN_ASSIGN(const std::vector<int32_t> ids,
                   read_token_ids(*tokens, "tokens", app.vocab_size));
    CAPSTAN_ASSIGN(const std::string text, app.tokenizer->decode(ids, skip));
    append_json_string(out, text);
  }
  return out + "}";
}

using Function = Result<std::string> (*)(const AppState&, std::string_view);

Task<HttpResponse> serve(AppState& app, Exchange& exchange, Function function) {
  const std::string_view body = exchange.request().body;
  auto prepare = [&app, body, function] { return function(app, body); };
  Result<std::string> out = co_await prepare_off_thread<std::string>(app, exchange, prepare);
  if (!out.ok()) co_return error_response(from_error(out.error()));
  co_return json_response(std::move(*out));
}

}  // namespace

void add_tokenizer_routes(AppState& app) {
  const auto add = [&app](std::string_view path, Function function) {
    app.router.add({.pattern = path,
                    .methods = {"POST"},
                    .handler = [&app, function](Exchange& e) { return serve(app, e, function); },
                    .json_body = true});
  };
  add("/tokenize", tokenize);
  add("/v1/tokenize", tokenize);
  add("/detokenize", detokenize);
  add("/v1/detokenize", detokenize);
}

}  // namespace capstan::server
