// /v1/chat/completions, /v1/completions and /v1/models.
#include <charconv>
#include <ctime>

#include "server/call.h"
#include "server/handlers.h"
#include "server/json_text.h"
#include "server/openai_format.h"
#include "server/request_log.h"

namespace capstan::server {
namespace {

ApiError to_api_error(const Error& error) {
  ApiError api = from_error(error);
  if (api.status == 404 && api.param == "model") api.code = "model_not_found";
  return api;
}

// Seconds of X-Stream-Ping: comments that keep proxies from closing a stream during a long prefill.
// Off unless asked for, because several load generators take every line for JSON.
double ping_interval(const HttpRequest& request) {
  const std::string_view text = request.header("x-stream-ping");
  double seconds = 0;
  std::from_chars(text.data(), text.data() + text.size(), seconds);
  return seconds >= 0.1 && seconds <= 3600 ? seconds : 0;
}

Task<void> wait_with_pings(Call& call, Exchange& exchange, double interval) {
  const auto step =
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(interval));
  while (!co_await call.wait_until(Clock::now() + step)) {
    exchange.begin_event_stream();
    exchange.stream_buffer() += ": ping\n\n";
    exchange.stream_flush();
  }
}

Task<HttpResponse> generate(AppState& app, Exchange& exchange, bool chat) {
  const std::string_view body = exchange.request().body;
  auto prepare = [&app, body, chat] {
    return chat ? prepare_chat(app, body) : prepare_completion(app, body);
  };
  Result<GenerationCall> prepared =
      co_await prepare_off_thread<GenerationCall>(app, exchange, prepare);
  if (!prepared.ok()) co_return error_response(to_api_error(prepared.error()));
  const GenerationCall& request = *prepared;
  exchange.request().body = std::string();  // prompts are copied; free what may be megabytes
  const OpenAiIdentity identity{request.rid, request.model, std::time(nullptr)};
  log_received(app, exchange.request(), request, chat ? "chat" : "completions");

  std::optional<OpenAiStream> stream;
  if (request.stream) stream.emplace(app, request, identity, chat);
  Call call(app, exchange, request, stream ? &*stream : nullptr);
  if (stream) stream->attach(&call);
  if (std::optional<ApiError> refused = call.submit()) {
    co_return error_response(*refused);
  }
  const double ping = stream ? ping_interval(exchange.request()) : 0;
  if (ping > 0) {
    co_await wait_with_pings(call, exchange, ping);
  } else {
    co_await call.wait();
  }
  log_finished(app, request, call);

  HttpResponse response;
  if (call.client_left()) {
    response.aborted = true;
  } else if (call.error()) {
    if (!exchange.streaming()) co_return error_response(*call.error());
    exchange.stream_buffer() += "data: " + error_event(*call.error()) + "\n\ndata: [DONE]\n\n";
    exchange.stream_flush();
  } else if (stream) {
    stream->end(exchange.stream_buffer());
    exchange.stream_flush();
  } else {
    response.body = chat ? chat_response(app, call, identity)
                         : completion_response(app, call, request, identity);
  }
  co_return response;
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
                    .handler = [&app, chat](Exchange& e) { return generate(app, e, chat); },
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
