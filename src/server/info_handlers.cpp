// What the server says about itself: model, arguments, loads, metrics, version.
#include <algorithm>
#include <boost/json/serialize.hpp>
#include <ctime>

#include "server/handlers.h"

namespace capstan::server {
namespace {

json::value text_value(std::string_view text) { return json::value(json::string(text)); }

HttpResponse model_info(const AppState& app) {
  const auto& model = app.engine->model_config();
  json::object out;
  out["model_path"] = text_value(app.config.model_path);
  out["tokenizer_path"] = text_value(app.config.tokenizer_path.empty() ? app.config.model_path
                                                                       : app.config.tokenizer_path);
  out["is_generation"] = true;
  out["preferred_sampling_params"] = app.config.preferred_sampling_params.empty()
                                         ? json::value(nullptr)
                                         : text_value(app.config.preferred_sampling_params);
  out["weight_version"] = text_value(app.config.weight_version);
  out["has_image_understanding"] = false;
  out["has_audio_understanding"] = false;
  out["model_type"] = text_value(model.model_type);
  out["architectures"] = json::array{text_value(model.architecture_name)};
  return json_response(json::serialize(out));
}

HttpResponse server_info(const AppState& app) {
  const engine::EngineStats stats = app.engine->stats();
  const double giga = 1e9;
  json::object out = app.launch_args;
  out["max_total_num_tokens"] = stats.scheduler.total_tokens;
  out["max_req_input_len"] = app.context_length - 1;
  json::object memory;
  memory["weight"] = static_cast<double>(stats.weight_bytes) / giga;
  memory["kvcache"] = static_cast<double>(stats.kv_bytes) / giga;
  memory["token_capacity"] = stats.scheduler.total_tokens;
  memory["graph"] = 0;
  json::object state;
  state["last_gen_throughput"] = stats.gen_throughput;
  state["memory_usage"] = std::move(memory);
  state["effective_max_running_requests_per_dp"] =
      app.engine->config().scheduler.max_running_requests;
  using Source = engine::SpeculationConfig::Source;
  if (app.engine->config().speculation.source != Source::kNone) {
    const auto steps = static_cast<double>(std::max<uint64_t>(stats.spec_verify_count, 1));
    state["avg_spec_accept_length"] = 1 + static_cast<double>(stats.spec_accepted_tokens) / steps;
  }
  out["internal_states"] = json::array{std::move(state)};
  out["version"] = text_value(app.config.version);
  return json_response(json::serialize(out));
}

std::string iso_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

HttpResponse loads(const AppState& app, const HttpRequest& request) {
  static constexpr std::string_view kSections[] = {"core",   "memory", "spec", "lora",
                                                   "disagg", "queues", "all"};
  const std::string include = request.query_value("include").value_or("core");
  const auto wants = [&](std::string_view section) {
    const std::string list = "," + include + ",";
    return list.find("," + std::string(section) + ",") != std::string::npos ||
           list.find(",all,") != std::string::npos;
  };
  for (std::string_view rest = include; !rest.empty();) {
    const std::string_view item = rest.substr(0, rest.find(','));
    if (std::find(std::begin(kSections), std::end(kSections), item) == std::end(kSections)) {
      return error_response(
          bad_request("include: unknown section \"" + std::string(item) +
                          "\"; use core, memory, spec, lora, disagg, queues, all.",
                      "include"));
    }
    rest.remove_prefix(std::min(rest.size(), item.size() + 1));
  }
  const std::string rank = request.query_value("dp_rank").value_or("0");
  if (rank != "0") {
    return error_response(
        bad_request("dp_rank: this server has rank 0 only, got \"" + rank + "\".", "dp_rank"));
  }
  const std::string format = request.query_value("format").value_or("json");
  if (format == "prometheus") {
    HttpResponse response = text_response(200, app.metrics->scrape());
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    return response;
  }
  if (format != "json") {
    return error_response(
        bad_request("format: use json or prometheus, got \"" + format + "\".", "format"));
  }

  const engine::EngineStats stats = app.engine->stats();
  const scheduler::SchedulerStats& s = stats.scheduler;
  const auto& config = app.engine->config().scheduler;
  json::object load;
  load["dp_rank"] = 0;
  load["num_running_reqs"] = s.running;
  load["num_waiting_reqs"] = s.waiting;
  load["num_used_tokens"] = s.used_tokens;
  load["num_total_tokens"] = s.used_tokens + s.evictable_tokens;
  load["max_total_num_tokens"] = s.total_tokens;
  load["max_running_requests"] = config.max_running_requests;
  load["token_usage"] =
      s.total_tokens > 0 ? static_cast<double>(s.used_tokens) / static_cast<double>(s.total_tokens)
                         : 0.0;
  load["gen_throughput"] = stats.gen_throughput;
  load["cache_hit_rate"] = stats.cache_hit_rate;
  load["utilization"] = config.max_running_requests > 0
                            ? static_cast<double>(s.running) / config.max_running_requests
                            : 0.0;
  if (wants("memory")) {
    json::object memory;
    memory["weight_bytes"] = stats.weight_bytes;
    memory["kv_bytes"] = stats.kv_bytes;
    memory["free_tokens"] = s.free_tokens;
    memory["evictable_tokens"] = s.evictable_tokens;
    load["memory"] = std::move(memory);
  }
  if (wants("spec")) {
    json::object spec;
    spec["accept_length"] = stats.spec_accept_length;
    spec["accept_rate"] = stats.spec_accept_rate;
    spec["verify_ct_total"] = stats.spec_verify_count;
    spec["draft_tokens_total"] = stats.spec_draft_tokens;
    spec["accepted_tokens_total"] = stats.spec_accepted_tokens;
    load["speculative"] = std::move(spec);
  }
  if (wants("queues")) {
    json::object queues;
    queues["waiting"] = s.waiting;
    queues["grammar"] = 0;
    queues["retracted_total"] = s.retractions;
    load["queues"] = std::move(queues);
  }
  json::object out;
  out["timestamp"] = text_value(iso_now());
  out["version"] = text_value(app.config.version);
  out["loads"] = json::array{std::move(load)};
  return json_response(json::serialize(out));
}

HttpResponse get_load(const AppState& app) {
  const scheduler::SchedulerStats s = app.engine->stats().scheduler;
  json::object load;
  load["dp_rank"] = 0;
  load["num_reqs"] = s.running + s.waiting;
  load["num_waiting_reqs"] = s.waiting;
  load["num_tokens"] = s.used_tokens;
  return json_response(json::serialize(json::array{std::move(load)}));
}

HttpResponse metrics(const AppState& app) {
  if (!app.metrics->enabled()) {
    return error_response(
        api_error(404, "Metrics are off; start the server with --enable-metrics."));
  }
  HttpResponse response = text_response(200, app.metrics->scrape());
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  return response;
}

}  // namespace

void add_metrics_route(AppState& app) {
  for (const char* path : {"/metrics", "/metrics/*"}) {
    app.router.add({.pattern = path,
                    .methods = {"GET"},
                    .access = Access::kOpen,
                    .handler = immediate([&app](const HttpRequest&) { return metrics(app); })});
  }
}

void add_info_routes(AppState& app) {
  const auto get = [&app](std::string_view path, auto function, Access access = Access::kApi) {
    app.router.add(
        {.pattern = path, .methods = {"GET"}, .access = access, .handler = immediate(function)});
  };
  for (const char* path : {"/model_info", "/get_model_info"}) {
    get(path, [&app](const HttpRequest&) { return model_info(app); });
  }
  for (const char* path : {"/server_info", "/get_server_info"}) {
    get(path, [&app](const HttpRequest&) { return server_info(app); });
  }
  for (const char* path : {"/weight_version", "/get_weight_version"}) {
    get(path, [&app](const HttpRequest&) { return text_response(200, app.config.weight_version); });
  }
  get("/v1/loads", [&app](const HttpRequest& request) { return loads(app, request); });
  get("/get_load", [&app](const HttpRequest&) { return get_load(app); });
  get("/version", [&app](const HttpRequest&) {
    json::object out;
    out["version"] = text_value(app.config.version);
    return json_response(json::serialize(out));
  });
  add_metrics_route(app);
}

}  // namespace capstan::server
