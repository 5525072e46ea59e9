// /v1/chat/completions, /v1/completions and /v1/models.
#include <ctime>

#include "server/generate.h"
#include "server/handlers.h"
#include "server/json_text.h"
#include "server/openai_format.h"

namespace capstan::server {
namespace {

Task<HttpResponse> openai(AppState& app, Exchange& exchange, bool chat) {
  return generate(app, exchange, chat ? prepare_chat : prepare_completion,
                  [&app, chat](const GenerationCall& request) -> std::unique_ptr<ResponseWriter> {
                    return std::make_unique<OpenAiWriter>(
                        app, request,
                        OpenAiIdentity{request.rid, request.model, std::time(nullptr)}, chat);
                  });
}

void append_model(const AppState& app, std::string& out) {
  out += "{\"id\":";
  append_json_string(out, app.config.served_model_name);
  out += ",\"name\":";
  append_json_string(out, app.config.served_model_name);
  out += ",\"object\":\"model\",\"created\":";
  append_json_int(out, app.created);
  out += ",\"owned_by\":\"sglang\",\"root\":";
  append_json_string(out, app.config.served_model_name);
  out += ",\"parent\":null,\"max_model_len\":";
  append_json_int(out, app.context_length);
  out += '}';
}

HttpResponse list_models(const AppState& app) {
  std::string out = "{\"object\":\"list\",\"data\":[";
  append_model(app, out);
  return json_response(out + "]}");
}

HttpResponse one_model(const AppState& app, const HttpRequest& request) {
  std::string_view id = request.path;
  id.remove_prefix(id.find("/models/") + std::string_view("/models/").size());
  if (id != app.config.served_model_name) {
    ApiError error =
        api_error(404, "The model '" + std::string(id) + "' does not exist; this server serves '" +
                           app.config.served_model_name + "'.");
    error.param = "model";
    error.code = "model_not_found";
    return error_response(error);
  }
  std::string out;
  append_model(app, out);
  return json_response(std::move(out));
}

}  // namespace

void add_openai_routes(AppState& app) {
  const auto add = [&app](std::string_view path, bool chat) {
    app.router.add({.pattern = path,
                    .methods = {"POST"},
                    .handler = [&app, chat](Exchange& e) { return openai(app, e, chat); },
                    .json_body = true,
                    .generation = true});
  };
  add("/v1/chat/completions", true);
  add("/v1/completions", false);
  for (const char* path : {"/v1/models", "/models"}) {
    app.router.add({.pattern = path,
                    .methods = {"GET"},
                    .handler = immediate([&app](const HttpRequest&) { return list_models(app); })});
  }
  for (const char* path : {"/v1/models/*", "/models/*"}) {
    app.router.add(
        {.pattern = path, .methods = {"GET"}, .handler = immediate([&app](const HttpRequest& r) {
                                                return one_model(app, r);
                                              })});
  }
  app.router.add(
      {.pattern = "/v1/embeddings",
       .methods = {"POST"},
       .handler = immediate([](const HttpRequest&) {
         return error_response(bad_request(
             "This server generates text; embeddings need an embedding model served with "
             "--is-embedding, which this build does not offer."));
       })});
}

}  // namespace capstan::server
