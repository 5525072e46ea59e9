// The endpoints, by subject. Each function adds its routes; `app` outlives the router's use.
#pragma once

#include "server/app_state.h"

namespace capstan::server {

void add_openai_routes(AppState& app);     // chat, completions, models
void add_native_routes(AppState& app);     // /generate
void add_health_routes(AppState& app);     // /health, /ping, /readyz, /livez
void add_status_routes(AppState& app);     // health and metrics of a node without an engine
void add_metrics_route(AppState& app);     // /metrics
void add_info_routes(AppState& app);       // model and server info, loads, metrics, version
void add_control_routes(AppState& app);    // cache flush, abort
void add_tokenizer_routes(AppState& app);  // tokenize, detokenize
void add_reasoning_routes(AppState& app);  // /separate_reasoning
void add_page_routes(AppState& app);       // the chat page and "/"

/// Parses a body that may be large on a worker thread; `prepare` is called once, with no exceptions
/// getting out. Small bodies are handled at once: a hop to a worker costs more than they do.
template <class T, class Prepare>
Task<Result<T>> prepare_off_thread(AppState& app, Exchange& exchange, Prepare& prepare) {
  constexpr size_t kInline = 2048;  // bytes; about 0.5 ms of tokenisation at 4 MB/s
  auto job = [&]() -> Result<T> {
    try {
      return prepare();
    } catch (const std::bad_alloc&) {
      return resource_exhausted("Not enough memory for this request.");
    } catch (const std::exception& e) {
      return internal_error(std::string("Reading the request failed: ") + e.what());
    }
  };
  if (exchange.request().body.size() <= kInline) co_return job();
  co_return co_await app.workers.run<Result<T>>(exchange.executor(), job);
}

/// Wraps a handler that needs no coroutine.
template <class Function>
Handler immediate(Function function) {
  return [function](Exchange& exchange) -> Task<HttpResponse> {
    co_return function(exchange.request());
  };
}

}  // namespace capstan::server
