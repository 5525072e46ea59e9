// What every handler needs, owned by the Server. Immutable after start apart from members that are
// thread-safe themselves.
#pragma once

#include <atomic>
#include <boost/json/object.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "engine/engine.h"
#include "server/live_requests.h"
#include "server/metrics.h"
#include "server/router.h"
#include "server/sampling_request.h"
#include "server/server_config.h"
#include "server/worker_pool.h"
#include "text/chat_template.h"
#include "text/reasoning_parser.h"
#include "text/tokenizer.h"

namespace capstan::server {

struct AppState {
  explicit AppState(ServerConfig c)
      : config(std::move(c)), router(*this), workers(config.worker_threads) {}

  const ServerConfig config;
  std::shared_ptr<engine::Engine> engine;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const text::ChatTemplate> chat_template;  // may be null
  int64_t vocab_size = 0;
  int32_t context_length = 0;
  int64_t created = 0;  // Unix time of /v1/models

  SamplingRequest base_sampling;  // generation config, then preferred parameters
  boost::json::object default_template_kwargs;
  const text::ReasoningFormat* reasoning = nullptr;  // null: no parser
  boost::json::object launch_args;                   // secrets redacted

  Router router;
  std::unique_ptr<Metrics> metrics;
  LiveRequests live;
  ActiveCount generations;
  std::atomic<bool> ready{false};
  std::atomic<bool> draining{false};
  std::atomic<int64_t> connections{0};
  std::atomic<uint64_t> next_sibling_group{1};
  WorkerPool workers;
};

}  // namespace capstan::server
