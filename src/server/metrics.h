// Prometheus metrics under the names dashboards already use (sglang:...). Counters and histograms
// are written as requests go; gauges are read from the engine at scrape time.
#pragma once

#include <prometheus/registry.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "server/server_config.h"

namespace capstan::server {

/// What is known of one choice when it ends.
struct FinishedRequest {
  bool aborted = false;
  int64_t prompt_tokens = 0;  // 0 for choices after the first: the prompt is counted once
  int64_t cached_tokens = 0;
  int64_t generated_tokens = 0;
  double e2e_seconds = 0;
  double ttft_seconds = -1;  // < 0: no token
  double queue_seconds = 0;
};

/// Thread-safe. Without --enable-metrics nothing is recorded.
class Metrics {
 public:
  Metrics(const ServerConfig& config, std::shared_ptr<engine::Engine> engine);

  bool enabled() const { return enabled_; }
  void first_token(double seconds);
  /// `tokens` arrived `seconds` after those before them: observed once per token as seconds/tokens.
  void next_tokens(double seconds, int64_t tokens);
  void finished(const FinishedRequest& request);
  void count_request(std::string_view route, std::string_view method);
  void count_response(std::string_view route, std::string_view method, int status);

  /// Text format 0.0.4.
  std::string scrape() const;

 private:
  prometheus::Histogram& histogram(const std::string& name, const std::string& help,
                                   const std::vector<double>& edges);
  void append_gauges(std::vector<prometheus::MetricFamily>* families) const;
  void append_group(std::vector<prometheus::MetricFamily>* families) const;

  const bool enabled_;
  const MetricsPrefixStyle style_;
  const std::string model_name_;
  const GroupProbe group_;
  std::shared_ptr<engine::Engine> engine_;  // null on nodes without the API
  prometheus::Registry registry_;
  prometheus::Histogram *ttft_, *itl_, *e2e_, *queue_, *tpot_;
  prometheus::Histogram *prompt_histogram_, *generation_histogram_, *uncached_histogram_;
  prometheus::Counter *prompt_tokens_, *generation_tokens_, *requests_, *aborted_;
  prometheus::Family<prometheus::Counter>* cached_tokens_;  // no series until the first hit
  prometheus::Family<prometheus::Counter>*http_requests_, *http_responses_;
};

/// Standard edges of §"Histograms" in docs/metrics.md.
const std::vector<double>& ttft_edges();
const std::vector<double>& itl_edges();
const std::vector<double>& e2e_edges();
const std::vector<double>& queue_edges();
const std::vector<double>& token_count_edges();

}  // namespace capstan::server
