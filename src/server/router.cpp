#include "server/router.h"

#include <algorithm>

#include "server/app_state.h"
#include "server/auth.h"

namespace capstan::server {
namespace {

bool matches(std::string_view pattern, std::string_view path) {
  if (!pattern.ends_with("/*")) return pattern == path;
  pattern.remove_suffix(1);
  return path.size() > pattern.size() && path.starts_with(pattern);
}

bool allows(const Route& route, std::string_view method) {
  if (method == "HEAD") method = "GET";
  return std::find(route.methods.begin(), route.methods.end(), method) != route.methods.end();
}

bool is_json(std::string_view content_type) {
  content_type = content_type.substr(0, content_type.find(';'));
  while (!content_type.empty() && content_type.back() == ' ') content_type.remove_suffix(1);
  static constexpr std::string_view kJson = "application/json";
  return std::equal(content_type.begin(), content_type.end(), kJson.begin(), kJson.end(),
                    [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a + 32 : a) == b; });
}

HttpResponse preflight(const HttpRequest& request) {
  HttpResponse response = text_response(200, "OK");
  response.headers.emplace_back("Access-Control-Allow-Methods",
                                "GET, POST, PUT, DELETE, PATCH, HEAD, OPTIONS");
  const std::string_view wanted = request.header("access-control-request-headers");
  response.headers.emplace_back(
      "Access-Control-Allow-Headers",
      wanted.empty() ? "Authorization, Content-Type, X-Request-Id" : std::string(wanted));
  response.headers.emplace_back("Access-Control-Max-Age", "600");
  return response;
}

}  // namespace

Task<HttpResponse> Router::dispatch(Exchange& exchange) const {
  HttpRequest& request = exchange.request();
  const Route* found = nullptr;
  std::vector<std::string_view> allowed;
  for (const Route& route : routes_) {
    if (!matches(route.pattern, request.path)) continue;
    request.route = route.pattern;
    if (allows(route, request.method)) {
      found = &route;
      break;
    }
    allowed.insert(allowed.end(), route.methods.begin(), route.methods.end());
  }
  app_->metrics->count_request(request.route, request.method);
  if (request.method == "OPTIONS") co_return preflight(request);

  // Without the key nothing is learned, not even which paths exist.
  const Access access = found != nullptr ? found->access : Access::kApi;
  if (!authorized(request, access, app_->config.api_key, app_->config.admin_api_key)) {
    HttpResponse response = error_response(
        api_error(401, presented_key(request).empty()
                           ? "Unauthorized: send the API key as 'Authorization: Bearer KEY'."
                           : "Unauthorized: the API key is not valid for this endpoint."));
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
    co_return response;
  }
  if (found == nullptr && allowed.empty()) {
    co_return error_response(
        api_error(404, "Unknown path '" + request.path + "'. See /v1/models for a start."));
  }
  if (found == nullptr) {
    std::string list;
    for (const std::string_view method : allowed) {
      if (!list.empty()) list += ", ";
      list += method;
      if (method == "GET") list += ", HEAD";
    }
    list += ", OPTIONS";
    HttpResponse response = error_response(
        api_error(405, "Method " + request.method + " is not allowed here; use " + list + "."));
    response.headers.emplace_back("Allow", list);
    co_return response;
  }
  if (found->json_body && !is_json(request.header("content-type"))) {
    const std::string_view given = request.header("content-type");
    co_return error_response(bad_request(
        "Unsupported media type: this endpoint needs 'Content-Type: application/json', got " +
        (given.empty() ? "no Content-Type" : "'" + std::string(given) + "'") + "."));
  }
  if (found->generation) {
    exchange.hold_drain();  // before the check: see Server::wait_idle
    if (app_->draining.load()) {
      co_return error_response(
          api_error(503, "The server is shutting down and takes no new requests."));
    }
  }
  co_return co_await found->handler(exchange);
}

}  // namespace capstan::server
