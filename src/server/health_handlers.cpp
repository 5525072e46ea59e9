// /health: does the engine still make progress? A one-token probe goes through the engine beside
// all other work; it is not counted, cached or queued. The answer comes within a second:
//   200  the probe came back, or any step finished since it was sent, or the engine has been busy
//        with one step for less than the timeout (with a prefill chunk: less than the watchdog's);
//   503  starting, draining, or nothing finished for that long although the probe waits; of a split
//        server also while a node is not ready or has not been heard lately.
//
// /readyz says in JSON why a node is or is not ready, without a probe; with phase=load only whether
// it has loaded. /livez: this process answers (what hangs, the watchdog ends).
#include <boost/json/serialize.hpp>
#include <limits>
#include <mutex>

#include "server/handlers.h"

namespace capstan::server {
namespace {

constexpr double kAnswerWithin = 0.9;  // seconds

struct Probe final : public EventReceiver {
  void on_event(engine::OutputEvent&& event) override {
    if (event.finished) {
      done = true;
      if (waiter != nullptr) waiter->notify();
    }
  }
  // IO thread of the request that sent it; null once that has been answered. (Not a member: the
  // engine may hold the probe longer than its IO thread lives.)
  Signal* waiter = nullptr;
  std::atomic<bool> done{false};
  scheduler::RequestId id = 0;
  uint64_t steps = 0;  // of the engine when it was sent
  Clock::time_point sent = Clock::now();
};

// A probe that did not come back in time is kept, so that later calls know since when.
struct HealthState {
  std::mutex mutex;
  std::shared_ptr<Probe> overdue;
};

bool progressed(const AppState& app, const Probe& probe) {
  return probe.done || app.engine->stats().steps > probe.steps;
}

// Seconds a probe may wait without any step finishing. A prefill chunk may honestly take longer
// than the timeout; how long is too long for it the watchdog decides, which ends the process.
double allowed_wait(const AppState& app) {
  const double timeout = app.config.health_timeout;
  if (app.engine->stats().step_prefill_tokens == 0) return timeout;
  const double watchdog = app.engine->config().watchdog_timeout;
  return watchdog > 0 ? std::max(timeout, watchdog) : std::numeric_limits<double>::infinity();
}

Task<HttpResponse> health(AppState& app, Exchange& exchange, HealthState& state) {
  const HttpResponse healthy = text_response(200, ""), unhealthy = text_response(503, "");
  if (!app.ready || app.draining) co_return unhealthy;
  if (app.config.group && !app.config.group().unready().empty()) co_return unhealthy;
  if (!app.config.health_generation) co_return healthy;

  std::shared_ptr<Probe> probe;
  {
    const std::lock_guard lock(state.mutex);
    if (state.overdue && progressed(app, *state.overdue)) {
      app.engine->cancel(state.overdue->id);
      state.overdue.reset();
    }
    probe = state.overdue;
  }
  if (probe) {
    const bool hung = seconds_between(probe->sent, Clock::now()) >= allowed_wait(app);
    co_return hung ? unhealthy : healthy;
  }

  Signal answered(exchange.executor());
  probe = std::make_shared<Probe>();
  probe->waiter = &answered;
  probe->steps = app.engine->stats().steps;
  engine::EngineRequest request;
  request.prompt = {std::max(0, app.tokenizer->bos_id())};
  request.sampling.max_new_tokens = 1;
  request.sampling.temperature = 0;
  request.probe = true;
  const auto id = app.engine->submit(
      std::move(request), [mailbox = exchange.mailbox(), probe](engine::OutputEvent&& event) {
        mailbox->push(probe, std::move(event));
      });
  if (!id.ok()) co_return unhealthy;
  probe->id = *id;
  const auto patience = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(std::min(kAnswerWithin, app.config.health_timeout)));
  const bool in_time = co_await answered.wait_until(probe->sent + patience);
  probe->waiter = nullptr;
  if (in_time) co_return healthy;
  if (progressed(app, *probe)) {
    app.engine->cancel(probe->id);
    co_return healthy;
  }
  {
    const std::lock_guard lock(state.mutex);
    if (!state.overdue) {
      state.overdue = probe;
    } else {
      app.engine->cancel(probe->id);
    }
  }
  co_return seconds_between(probe->sent, Clock::now()) >= allowed_wait(app) ? unhealthy : healthy;
}

/// Why this node should get no requests now; empty: it may.
std::string unready(const AppState& app, const std::optional<GroupView>& group, bool loaded_only) {
  if (!app.ready) return "starting";
  if (group && !group->end.empty()) return group->end;
  if (app.engine == nullptr) {
    const NodeView* own = group->own();
    if (own == nullptr || (own->phase != kPhaseReady && own->phase != kPhaseDraining)) {
      return own == nullptr || own->phase.empty() ? "starting" : own->phase;
    }
  }
  if (loaded_only) return "";
  if (app.draining) return kPhaseDraining;
  if (group) {
    if (std::string why = group->unready(); !why.empty()) return why;
  }
  if (app.engine != nullptr && app.engine->stats().seconds_since_progress >= allowed_wait(app)) {
    return "no step has finished for too long";
  }
  return "";
}

HttpResponse readyz(const AppState& app, const HttpRequest& request) {
  std::optional<GroupView> group;
  if (app.config.group) group = app.config.group();
  const bool loaded_only = request.query_value("phase").value_or("") == "load";
  const std::string why = unready(app, group, loaded_only);
  const NodeView* own = group ? group->own() : nullptr;
  boost::json::object out;
  out["ready"] = why.empty();
  out["phase"] = app.draining     ? kPhaseDraining
                 : own != nullptr ? own->phase
                 : app.ready      ? "ready"
                                  : "starting";
  if (!why.empty()) out["reason"] = why;
  out["step"] = own != nullptr ? own->step : app.engine->stats().steps;
  if (group) {
    out["node"] = group->own_node;
    out["nodes"] = group->nodes.size();
    out["heartbeat_age_seconds"] = group->oldest_heartbeat();
  }
  HttpResponse response = json_response(boost::json::serialize(out));
  response.status = why.empty() ? 200 : 503;
  return response;
}

void add_open(AppState& app, std::string_view path,
              std::function<HttpResponse(const HttpRequest&)> answer) {
  app.router.add({.pattern = path,
                  .methods = {"GET"},
                  .access = Access::kOpen,
                  .handler = immediate(std::move(answer))});
}

void add_common(AppState& app) {
  const auto ok = [](const HttpRequest&) { return text_response(200, ""); };
  add_open(app, "/ping", ok);
  add_open(app, "/livez", ok);
  add_open(app, "/readyz", [&app](const HttpRequest& r) { return readyz(app, r); });
}

}  // namespace

void add_status_routes(AppState& app) {
  add_common(app);
  for (const char* path : {"/health", "/health_generate"}) {
    add_open(app, path, [&app](const HttpRequest&) {
      return text_response(unready(app, app.config.group(), false).empty() ? 200 : 503, "");
    });
  }
  add_metrics_route(app);
}

void add_health_routes(AppState& app) {
  auto state = std::make_shared<HealthState>();
  for (const char* path : {"/health", "/health_generate"}) {
    app.router.add({.pattern = path,
                    .methods = {"GET"},
                    .access = Access::kOpen,
                    .handler = [&app, state](Exchange& e) { return health(app, e, *state); }});
  }
  add_common(app);
}

}  // namespace capstan::server
