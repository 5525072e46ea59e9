// Everything the HTTP server is told at start. src/app fills it from the command line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/group_view.h"

namespace capstan::server {

/// A file of the chat page. The bytes live as long as the program (generated from web/).
struct Asset {
  std::string_view path;  // "/", "/app.js"
  std::string_view content_type;
  std::string_view body;
  std::string_view etag;  // quoted
};

/// The page built into the program; empty when there was no web/ folder at build time.
const std::vector<Asset>& embedded_assets();

/// Sampling values used where a request is silent. Absent: 1.0, 1.0, -1, 0, 1.0 (OpenAI's).
struct SamplingDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int32_t> top_k;
};

/// Reads MODEL/generation_config.json; a missing file gives empty defaults, a broken one an error.
/// top_k 0 (transformers: off) becomes -1; do_sample=false becomes temperature 0.
Result<SamplingDefaults> read_generation_config(const std::string& model_directory);

enum class MetricsPrefixStyle : uint8_t { kColon, kUnderscore, kBoth };

struct ServerConfig {
  std::string host = "127.0.0.1";  // address or name; "0.0.0.0", "::"
  uint16_t port = 30000;           // 0: any free port, see Server::port()
  std::string api_key;             // empty: no key is asked for
  std::string admin_api_key;       // guards control endpoints; empty: api_key does

  std::string served_model_name;  // id in /v1/models and model_name label of metrics
  std::string model_path;
  std::string tokenizer_path;  // empty: model_path
  bool strict_model_name = false;
  std::string weight_version = "default";
  std::string version;  // of the program
  int32_t context_length = 0;

  SamplingDefaults sampling_defaults;        // leave empty for --sampling-defaults openai
  std::string preferred_sampling_params;     // JSON object beneath request values, or empty
  std::string default_chat_template_kwargs;  // JSON object beneath request values, or empty
  /// A name of text::find_reasoning_format, "auto" (deepseek-r1's if the tokenizer has its closing
  /// tag, else none), or empty: thinking stays in the content.
  std::string reasoning_parser;
  bool allow_auto_truncate = false;
  bool enable_cache_report = false;
  bool stream_default_include_usage = false;
  int stream_interval = 1;  // first token at once, then every n tokens
  bool incremental_streaming_output = false;

  bool enable_metrics = false;
  MetricsPrefixStyle metrics_prefix_style = MetricsPrefixStyle::kColon;
  std::vector<double> bucket_time_to_first_token;  // empty: the standard edges
  std::vector<double> bucket_inter_token_latency;
  std::vector<double> bucket_e2e_request_latency;

  bool log_requests = false;
  int log_requests_level = 2;      // 0 metadata, 1 + sampling, 2 + truncated text, 3 + full text
  bool log_requests_json = false;  // one JSON object per line
  bool access_log = true;          // one line per HTTP request (probes and scrapes excluded)

  /// JSON object of all launch arguments with underscored names, for /server_info. Keys that hold
  /// secrets are redacted by the server as well.
  std::string launch_args = "{}";
  std::vector<Asset> assets;  // the chat page; usually embedded_assets()

  GroupProbe group;  // of a split server; null: one rank

  double health_timeout = 20;         // seconds, SGLANG_HEALTH_CHECK_TIMEOUT
  bool health_generation = true;      // false: /health is 200 without a probe
  double keep_alive_timeout = 5;      // seconds an idle connection is kept
  double header_timeout = 60;         // seconds from first byte to complete headers
  double body_idle_timeout = 120;     // seconds without a byte of an unfinished body
  size_t max_body_bytes = 64u << 20;  // larger: 413
  int max_connections = 16384;
  int backlog = 4096;
  int io_threads = 1;      // each owns its connections
  int worker_threads = 1;  // JSON, templates and tokenisation of large requests
};

}  // namespace capstan::server
