// Administration: dropping the prefix cache, ending requests.
#include <charconv>

#include "base/log.h"
#include "server/handlers.h"

namespace capstan::server {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(20);  // how often a flush looks for idleness

Task<HttpResponse> flush_cache(AppState& app, Exchange& exchange) {
  double timeout = 0;
  if (const auto text = exchange.request().query_value("timeout")) {
    const auto parsed = std::from_chars(text->data(), text->data() + text->size(), timeout);
    if (parsed.ec != std::errc() || parsed.ptr != text->data() + text->size() || !(timeout >= 0)) {
      co_return error_response(bad_request(
          "timeout: expected seconds of zero or more, got \"" + *text + "\".", "timeout"));
    }
  }
  const Clock::time_point begin = Clock::now();
  Timer timer(exchange.executor());
  // On a worker: a request that arrives in between makes the engine answer after its next step.
  const auto flush = [&app] { return app.engine->flush_cache(); };
  while (!co_await app.workers.run<bool>(exchange.executor(), flush)) {
    if (seconds_between(begin, Clock::now()) >= timeout || exchange.disconnected()) {
      co_return text_response(400,
                              "Flushing the cache failed: requests are running or waiting. Nothing "
                              "was dropped; retry when idle or pass ?timeout=SECONDS.\n");
    }
    error_code ignored;
    timer.expires_after(kPoll);
    co_await timer.async_wait(asio::redirect_error(use_task, ignored));
  }
  co_return text_response(200, "Cache flushed.\n");
}

HttpResponse abort_request(AppState& app, const HttpRequest& request) {
  const auto body = parse_json_object(request.body);
  if (!body.ok()) return error_response(from_error(body.error()));
  Fields fields(*body);
  const std::string rid = fields.string("rid").value_or("");
  const bool all = fields.boolean("abort_all").value_or(false);
  if (!fields.ok()) return error_response(from_error(fields.status().error()));
  if (all) {
    LOG_INFO("all requests aborted by the administrator");
    app.engine->cancel_all("aborted by the administrator");
  } else if (!rid.empty()) {
    for (const scheduler::RequestId id : app.live.engine_ids(rid)) {
      app.engine->cancel(id, engine::FinishKind::kAbort, "aborted by the administrator");
    }
  }
  return text_response(200, "");
}

}  // namespace

void add_control_routes(AppState& app) {
  app.router.add({.pattern = "/flush_cache",
                  .methods = {"GET", "POST"},
                  .access = Access::kAdmin,
                  .handler = [&app](Exchange& e) { return flush_cache(app, e); }});
  app.router.add(
      {.pattern = "/abort_request",
       .methods = {"POST"},
       .access = Access::kAdmin,
       .handler = immediate([&app](const HttpRequest& r) { return abort_request(app, r); }),
       .json_body = true});
}

}  // namespace capstan::server
