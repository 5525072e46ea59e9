#include "server/generate.h"

#include <charconv>

#include "server/call.h"
#include "server/handlers.h"
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

}  // namespace

Task<HttpResponse> generate(AppState& app, Exchange& exchange, Prepare prepare,
                            MakeWriter make_writer) {
  const std::string_view body = exchange.request().body;
  auto job = [&app, body, prepare] { return prepare(app, body); };
  Result<GenerationCall> prepared = co_await prepare_off_thread<GenerationCall>(app, exchange, job);
  if (!prepared.ok()) co_return error_response(to_api_error(prepared.error()));
  const GenerationCall& request = *prepared;
  exchange.request().body = std::string();  // prompts are copied; free what may be megabytes
  log_received(app, exchange.request(), request);

  const std::unique_ptr<ResponseWriter> writer = make_writer(request);
  Call call(app, exchange, request, request.stream ? writer.get() : nullptr);
  if (std::optional<ApiError> refused = call.submit()) co_return error_response(*refused);
  const double ping = request.stream ? ping_interval(exchange.request()) : 0;
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
  } else if (request.stream) {
    writer->end(call, exchange.stream_buffer());
    exchange.stream_flush();
  } else {
    response.body = writer->whole(call);
  }
  co_return response;
}

}  // namespace capstan::server
