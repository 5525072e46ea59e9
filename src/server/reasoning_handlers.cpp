// /separate_reasoning: what chat answers do with a model's thinking, for text that is there
// already.
#include "server/handlers.h"
#include "server/json_fields.h"
#include "server/json_text.h"
#include "text/reasoning_parser.h"

namespace capstan::server {
namespace {

Result<std::string> separate(const AppState& app, std::string_view body) {
  CAPSTAN_ASSIGN(const json::object object, parse_json_object(body));
  Fields fields(object);
  const auto given = fields.string("text");
  const auto name = fields.string("reasoning_parser");
  CAPSTAN_RETURN_IF_ERROR(fields.status());
  if (!given) return invalid_argument("text: is required.", "text");
  const text::ReasoningFormat* format =
      name && *name != "auto" ? text::find_reasoning_format(*name) : app.reasoning;
  if (format == nullptr) {
    return invalid_argument(
        "reasoning_parser: " +
            (name && *name != "auto" ? "unknown parser \"" + *name + "\""
                                     : std::string("is required, as the server was started without "
                                                   "--reasoning-parser")) +
            "; known are " + text::known_reasoning_formats() + ".",
        "reasoning_parser");
  }
  text::ReasoningParser parser(*format, format->assumed);
  text::ReasoningText parts;
  parser.push(*given, &parts);
  parser.finish(&parts);
  std::string out = "{\"reasoning_text\":";
  append_json_string(out, parts.reasoning);
  out += ",\"text\":";
  append_json_string(out, parts.content);
  return out + "}";
}

}  // namespace

void add_reasoning_routes(AppState& app) {
  app.router.add({.pattern = "/separate_reasoning",
                  .methods = {"POST"},
                  .handler = immediate([&app](const HttpRequest& request) {
                    Result<std::string> out = separate(app, request.body);
                    return out.ok() ? json_response(std::move(*out))
                                    : error_response(from_error(out.error()));
                  }),
                  .json_body = true});
}

}  // namespace capstan::server
