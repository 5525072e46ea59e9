// Paths to handlers: methods, authentication class, CORS preflight, 404 and 405.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/exchange.h"

namespace capstan::server {

struct AppState;

enum class Access : uint8_t {
  kOpen,   // probes, metrics, the chat page
  kApi,    // --api-key
  kAdmin,  // --admin-api-key if set, else --api-key
};

struct Route {
  std::string_view pattern;  // "/v1/models/*" matches any non-empty rest
  std::vector<std::string_view> methods;
  Access access = Access::kApi;
  Handler handler;
  bool json_body = false;   // POST needs Content-Type application/json
  bool generation = false;  // refused while draining; counted by wait_idle
};

class Router {
 public:
  explicit Router(const AppState& app) : app_(&app) {}
  void add(Route route) { routes_.push_back(std::move(route)); }
  Task<HttpResponse> dispatch(Exchange& exchange) const;

 private:
  const AppState* app_;
  std::vector<Route> routes_;
};

}  // namespace capstan::server
