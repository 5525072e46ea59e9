#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/text_serializer.h>

#include <algorithm>

namespace capstan::server {
namespace {

std::vector<double> steps(std::vector<double> head,
                          const std::vector<std::array<double, 2>>& runs) {
  for (const auto& [step, end] : runs) {
    while (head.back() + step <= end) head.push_back(head.back() + step);
  }
  return head;
}

prometheus::Labels with(const std::string& model, prometheus::Labels labels = {}) {
  labels.emplace("model_name", model);
  return labels;
}

bool is_probe(std::string_view route) {
  return route.starts_with("/health") || route.starts_with("/metrics") || route == "/ping" ||
         route == "/readyz" || route == "/livez";
}

std::string method_label(std::string_view method) {
  for (const char* known : {"GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH"}) {
    if (method == known) return known;
  }
  return "other";  // a client's invention must not become a series
}

}  // namespace

const std::vector<double>& ttft_edges() {
  static const std::vector<double> edges = {0.1, 0.2, 0.4, 0.6, 0.8, 1,  2,   4,   6,
                                            8,   10,  20,  40,  60,  80, 100, 200, 400};
  return edges;
}
const std::vector<double>& itl_edges() {
  static const std::vector<double> edges = {0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025,
                                            0.03,  0.035, 0.04,  0.06,  0.08, 0.1,   0.2,  0.4,
                                            0.6,   0.8,   1,     2,     4,    6,     8};
  return edges;
}
const std::vector<double>& e2e_edges() {
  static const std::vector<double> edges = {0.1, 0.2, 0.4, 0.6,  0.8,  1,   2,  4,
                                            6,   8,   10,  20,   40,   60,  80, 100,
                                            200, 400, 600, 1200, 1800, 2400};
  return edges;
}
const std::vector<double>& queue_edges() {
  static const std::vector<double> edges =
      steps({0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 10, 15, 20},
            {{10, 100}, {100, 1000}, {200, 3000}});
  return edges;
}
const std::vector<double>& token_count_edges() {
  static const std::vector<double> edges = [] {
    std::vector<double> all =
        steps({100, 300, 500, 700, 1000, 1500, 2000}, {{1000, 10000}, {2500, 30000}});
    for (const double edge : {35e3, 40e3, 60e3, 80e3, 1e5, 2e5, 3e5, 4e5, 6e5, 8e5, 1e6, 1.1e6}) {
      all.push_back(edge);
    }
    return all;
  }();
  return edges;
}

prometheus::Histogram& Metrics::histogram(const std::string& name, const std::string& help,
                                          const std::vector<double>& edges) {
  return prometheus::BuildHistogram()
      .Name("sglang:" + name)
      .Help(help)
      .Register(registry_)
      .Add(with(model_name_), edges);
}

Metrics::Metrics(const ServerConfig& config, std::shared_ptr<engine::Engine> engine)
    : enabled_(config.enable_metrics),
      style_(config.metrics_prefix_style),
      model_name_(config.served_model_name),
      group_(config.group),
      engine_(std::move(engine)) {
  const auto edges = [](const std::vector<double>& own, const std::vector<double>& standard) {
    return own.empty() ? standard : own;
  };
  ttft_ = &histogram("time_to_first_token_seconds",
                     "Time from a request's arrival to its first output.",
                     edges(config.bucket_time_to_first_token, ttft_edges()));
  itl_ = &histogram("inter_token_latency_seconds", "Time between successive output tokens.",
                    edges(config.bucket_inter_token_latency, itl_edges()));
  e2e_ = &histogram("e2e_request_latency_seconds", "Time from a request's arrival to its end.",
                    edges(config.bucket_e2e_request_latency, e2e_edges()));
  queue_ = &histogram("queue_time_seconds", "Time from a request's arrival to its admission.",
                      queue_edges());
  tpot_ = &histogram("time_per_output_token_seconds",
                     "Mean time per output token after the first, of one request.",
                     edges(config.bucket_inter_token_latency, itl_edges()));
  prompt_histogram_ =
      &histogram("prompt_tokens_histogram", "Prompt tokens of a request.", token_count_edges());
  generation_histogram_ = &histogram("generation_tokens_histogram",
                                     "Generated tokens of a request.", token_count_edges());
  uncached_histogram_ = &histogram("uncached_prompt_tokens_histogram",
                                   "Prompt tokens of a request that the prefix cache did not hold.",
                                   token_count_edges());
  const auto family = [this](const char* name, const char* help) {
    return &prometheus::BuildCounter()
                .Name(std::string("sglang:") + name)
                .Help(help)
                .Register(registry_);
  };
  const auto counter = [&](const char* name, const char* help) {
    return &family(name, help)->Add(with(model_name_));
  };
  prompt_tokens_ = counter("prompt_tokens_total", "Prompt tokens of finished requests.");
  generation_tokens_ = counter("generation_tokens_total", "Generated tokens of finished requests.");
  requests_ = counter("num_requests_total", "Finished requests.");
  aborted_ =
      counter("num_aborted_requests_total", "Requests that ended before they were complete.");
  cached_tokens_ = family("cached_tokens_total", "Prompt tokens served from the prefix cache.");
  http_requests_ = family("http_requests_total", "HTTP requests by endpoint and method.");
  http_responses_ =
      family("http_responses_total", "HTTP responses by endpoint, method and status.");
}

void Metrics::first_token(double seconds) {
  if (enabled_) ttft_->Observe(seconds);
}

void Metrics::next_tokens(double seconds, int64_t tokens) {
  if (!enabled_) return;
  const double each = seconds / static_cast<double>(tokens);
  for (int64_t i = 0; i < tokens; ++i) itl_->Observe(each);
}

void Metrics::finished(const FinishedRequest& request) {
  if (!enabled_) return;
  const auto count = [](int64_t n) { return static_cast<double>(n); };
  if (request.aborted) aborted_->Increment();
  if (request.aborted && request.generated_tokens == 0) return;
  requests_->Increment();
  generation_tokens_->Increment(count(request.generated_tokens));
  generation_histogram_->Observe(count(request.generated_tokens));
  if (request.prompt_tokens > 0) {
    prompt_tokens_->Increment(count(request.prompt_tokens));
    prompt_histogram_->Observe(count(request.prompt_tokens));
    uncached_histogram_->Observe(count(request.prompt_tokens - request.cached_tokens));
  }
  if (request.cached_tokens > 0) {
    cached_tokens_->Add(with(model_name_, {{"cache_source", "device"}}))
        .Increment(count(request.cached_tokens));
  }
  e2e_->Observe(request.e2e_seconds);
  queue_->Observe(request.queue_seconds);
  if (request.ttft_seconds >= 0 && request.generated_tokens > 1) {
    tpot_->Observe((request.e2e_seconds - request.ttft_seconds) /
                   count(request.generated_tokens - 1));
  }
}

void Metrics::count_request(std::string_view route, std::string_view method) {
  if (!enabled_ || is_probe(route)) return;
  http_requests_
      ->Add(with(model_name_, {{"endpoint", std::string(route)}, {"method", method_label(method)}}))
      .Increment();
}

void Metrics::count_response(std::string_view route, std::string_view method, int status) {
  if (!enabled_ || is_probe(route)) return;
  http_responses_
      ->Add(with(model_name_, {{"endpoint", std::string(route)},
                               {"method", method_label(method)},
                               {"status_code", std::to_string(status)}}))
      .Increment();
}

void Metrics::append_gauges(std::vector<prometheus::MetricFamily>* families) const {
  const engine::EngineStats stats = engine_->stats();
  const scheduler::SchedulerStats& s = stats.scheduler;
  const auto add = [&](const char* name, const char* help, prometheus::MetricType type,
                       double value, std::vector<prometheus::ClientMetric::Label> labels = {}) {
    if (families->empty() || families->back().name != std::string("sglang:") + name) {
      families->push_back({std::string("sglang:") + name, help, type, {}});
    }
    prometheus::ClientMetric metric;
    metric.label = std::move(labels);
    metric.label.push_back({"model_name", model_name_});
    (type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
    families->back().metric.push_back(std::move(metric));
  };
  const auto gauge = [&](const char* name, const char* help, double value) {
    add(name, help, prometheus::MetricType::Gauge, value);
  };
  const auto counter = [&](const char* name, const char* help, double value,
                           std::vector<prometheus::ClientMetric::Label> labels = {}) {
    add(name, help, prometheus::MetricType::Counter, value, std::move(labels));
  };
  const auto real = [](auto n) { return static_cast<double>(n); };
  const int page = engine_->config().scheduler.page_size;
  gauge("num_running_reqs", "Requests in the running batch.", s.running);
  gauge("num_queue_reqs", "Requests waiting for admission.", s.waiting);
  gauge("num_grammar_queue_reqs", "Requests waiting for a grammar to compile.", 0);
  gauge("num_used_tokens", "KV tokens held by requests.", real(s.used_tokens));
  gauge("token_usage", "Used fraction of the KV pool.",
        s.total_tokens > 0 ? real(s.used_tokens) / real(s.total_tokens) : 0);
  gauge("gen_throughput", "Generated tokens per second over the last interval.",
        stats.gen_throughput);
  gauge("cache_hit_rate", "Cached share of prompt tokens of the last reporting window.",
        stats.cache_hit_rate);
  gauge("spec_accept_length",
        "Tokens per request and step with speculation, of the last reporting window.",
        stats.spec_accept_length);
  gauge("spec_accept_rate", "Share of drafted tokens that held, of the last reporting window.",
        stats.spec_accept_rate);
  gauge("spec_followed_reqs",
        "Requests of the last step that the multi-token prediction layer was run for.",
        stats.spec_followed);
  gauge("max_total_num_tokens", "KV pool size in tokens.", real(s.total_tokens));
  gauge("kv_available_tokens", "Free KV tokens.", real(s.free_tokens));
  gauge("kv_evictable_tokens", "KV tokens cached and not pinned.", real(s.evictable_tokens));
  gauge("page_size", "KV tokens per page.", page);
  gauge("num_pages", "Pages of the KV pool.", page > 0 ? real(s.total_tokens / page) : 0);
  gauge("context_len", "Largest prompt plus output of a request, in tokens.",
        engine_->config().scheduler.context_length);
  counter("spec_draft_seconds_total", "Seconds that the multi-token prediction layer took.",
          stats.spec_draft_seconds);
  counter("spec_verified_drafts_total", "Drafted tokens that a step verified.",
          real(stats.spec_draft_tokens));
  counter("spec_accepted_drafts_total", "Drafted tokens that held.",
          real(stats.spec_accepted_tokens));
  counter("num_retracted_requests_total", "Requests pushed back when KV memory ran out.",
          real(s.retractions));
  counter("evicted_tokens_total", "Cached KV tokens given up for new ones.",
          real(s.evicted_tokens));
  static constexpr char kRealtime[] = "Tokens worked on, counted as they happen.";
  counter("realtime_tokens_total", kRealtime, real(stats.decode_tokens), {{"mode", "decode"}});
  counter("realtime_tokens_total", kRealtime, real(stats.prefill_cached_tokens),
          {{"mode", "prefill_cache"}});
  counter("realtime_tokens_total", kRealtime, real(stats.prefill_compute_tokens),
          {{"mode", "prefill_compute"}});
  const std::vector<std::vector<uint64_t>> load = engine_->expert_load();
  for (size_t layer = 0; layer < load.size(); ++layer) {
    for (size_t expert = 0; expert < load[layer].size(); ++expert) {
      counter("expert_tokens_total", "Tokens routed to the expert of the layer.",
              real(load[layer][expert]),
              {{"layer", std::to_string(layer)}, {"expert", std::to_string(expert)}});
    }
  }
}

/// Of a split server: its nodes and what each rank computes.
void Metrics::append_group(std::vector<prometheus::MetricFamily>* families) const {
  const GroupView view = group_();
  const auto family = [&](const char* name, const char* help) {
    families->push_back({std::string("sglang:") + name, help, prometheus::MetricType::Gauge, {}});
  };
  const auto add = [&](double value, std::vector<prometheus::ClientMetric::Label> labels) {
    prometheus::ClientMetric metric;
    metric.label = std::move(labels);
    metric.label.push_back({"model_name", model_name_});
    metric.gauge.value = value;
    families->back().metric.push_back(std::move(metric));
  };
  uint64_t front = 0;
  for (const NodeView& n : view.nodes) front = std::max(front, n.step);
  const auto per_node = [&](const char* name, const char* help, auto value) {
    family(name, help);
    for (const NodeView& n : view.nodes) {
      add(value(n), {{"node", std::to_string(n.node)}, {"host", n.host}});
    }
  };
  per_node("group_heartbeat_age_seconds", "Time since the node was last heard.",
           [](const NodeView& n) { return n.heartbeat_age; });
  per_node("group_step", "The last step that the node is known to have finished.",
           [](const NodeView& n) { return static_cast<double>(n.step); });
  per_node("group_step_skew", "Steps that the node is behind the foremost, as last heard.",
           [&](const NodeView& n) { return static_cast<double>(front - n.step); });
  per_node("group_node_ready", "1 if the node says that it is ready.",
           [](const NodeView& n) { return n.phase == kPhaseReady ? 1.0 : 0.0; });
  if (view.compute_seconds.empty()) return;
  family("group_rank_compute_seconds",
         "Time that the rank computed per step, waiting for others left out, of the last 64.");
  for (size_t r = 0; r < view.compute_seconds.size(); ++r) {
    add(view.compute_seconds[r], {{"rank", std::to_string(r)}});
  }
}

std::string Metrics::scrape() const {
  std::vector<prometheus::MetricFamily> families;
  if (engine_ != nullptr) append_gauges(&families);
  if (group_) append_group(&families);
  for (prometheus::MetricFamily& family : registry_.Collect()) {
    if (!family.metric.empty()) families.push_back(std::move(family));
  }
  if (style_ != MetricsPrefixStyle::kColon) {
    std::vector<prometheus::MetricFamily> renamed = families;
    for (prometheus::MetricFamily& family : renamed) {
      std::replace(family.name.begin(), family.name.end(), ':', '_');
    }
    if (style_ == MetricsPrefixStyle::kBoth) {
      families.insert(families.end(), std::make_move_iterator(renamed.begin()),
                      std::make_move_iterator(renamed.end()));
    } else {
      families = std::move(renamed);
    }
  }
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace capstan::server
