#include "app/serve_options.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <random>

namespace capstan::app {
namespace {

Error refuse(std::string_view flag, const std::string& message) {
  return invalid_argument("--" + std::string(flag) + ": " + message, std::string(flag));
}

/// A number within [low, high] or the error that says so.
Status check_range(const FlagValues& f, std::string_view flag, double low, double high,
                   const std::string& wanted) {
  const auto value = f.number(flag);
  if (!value || (*value >= low && *value <= high)) return {};
  return refuse(flag, f.text(flag) + " is out of range; it must be " + wanted);
}

constexpr double kMaxInt = std::numeric_limits<int32_t>::max();

Status check_ranges(const FlagValues& f) {
  struct Range {
    std::string_view flag;
    double low, high;
    const char* wanted;
  };
  constexpr Range kRanges[] = {
      {"port", 0, 65535, "a port number, 0 to 65535 (0: any free port)"},
      {"context-length", 2, kMaxInt, "at least 2"},
      {"max-total-tokens", 1, 1e12, "at least 1"},
      {"max-running-requests", 1, 65536, "1 to 65536"},
      {"max-queued-requests", 0, kMaxInt, "at least 0"},
      {"max-prefill-tokens", 1, kMaxInt, "at least 1"},
      {"page-size", 1, 4096, "1 to 4096 tokens"},
      {"schedule-conservativeness", 0, 1e6, "at least 0"},
      {"priority-scheduling-preemption-threshold", 0, kMaxInt, "at least 0"},
      {"threads", 0, 4096, "0 (one per usable CPU) to 4096"},
      {"io-threads", 1, 256, "1 to 256"},
      {"worker-threads", 1, 256, "1 to 256"},
      {"max-connections", 1, 1e6, "1 to 1000000"},
      {"stream-interval", 1, kMaxInt, "at least 1"},
      {"decode-log-interval", 1, kMaxInt, "at least 1"},
      {"dist-timeout", 1, 1e9, "at least 1 second"},
      {"heartbeat-timeout", 1, 1e6, "at least 1 second"},
      {"watchdog-timeout", 0, 1e9, "at least 0 seconds (0: off)"},
      {"soft-watchdog-timeout", 0, 1e9, "at least 0 seconds (0: off)"},
      {"random-seed", 0, 9.2e18, "at least 0"},
  };
  for (const Range& r : kRanges) {
    CAPSTAN_RETURN_IF_ERROR(check_range(f, r.flag, r.low, r.high, r.wanted));
  }
  const auto fraction = f.number("mem-fraction-static");
  if (fraction && !(*fraction > 0 && *fraction < 1)) {
    return refuse("mem-fraction-static", f.text("mem-fraction-static") +
                                             " is out of range; it must lie between 0 and 1, both "
                                             "excluded, for example 0.8");
  }
  const int64_t chunk = f.integer("chunked-prefill-size").value_or(-1);
  const int64_t page = *f.integer("page-size");
  if (f.given("chunked-prefill-size")) {
    if (chunk != -1 && (chunk < 1 || chunk > static_cast<int64_t>(kMaxInt))) {
      return refuse("chunked-prefill-size",
                    std::to_string(chunk) + " is neither -1 (whole prompts) nor at least 1");
    }
    if (chunk > 0 && chunk % page != 0) {
      return refuse(
          "chunked-prefill-size",
          std::to_string(chunk) + " is not a multiple of --page-size " + std::to_string(page));
    }
  }
  return {};
}

/// Flags whose part does not exist yet must not be swallowed: the user relies on them.
Status check_refused(const FlagValues& f) {
  for (const Flag* flag : f.given_flags()) {
    if (flag->effect != FlagEffect::kRefused) continue;
    const std::string value = f.text(flag->name);
    const bool is_default =
        flag->type == FlagType::kBool ? value != "true" : value == flag->fallback || value.empty();
    if (is_default) continue;
    return refuse(flag->name,
                  (flag->type == FlagType::kBool || flag->secret ? "" : value + ": ") +
                      std::string(flag->help) + ": not available in this version" +
                      (flag->fallback.empty() ? "; leave the flag out"
                                              : "; use " + std::string(flag->fallback)));
  }
  return {};
}

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "";
}

void collect_warnings(const FlagValues& f, ServeOptions& o) {
  for (const Flag* flag : f.given_flags()) {
    if (flag->effect == FlagEffect::kNoEffect) {
      o.warnings.push_back("--" + std::string(flag->name) +
                           " has no effect: " + std::string(flag->help));
    }
  }
}

Result<scheduler::Policy> policy(const FlagValues& f) {
  using scheduler::Policy;
  const std::string name = f.text("schedule-policy");
  if (name == "lpm") return Policy::kLpm;
  if (name == "fcfs") return Policy::kFcfs;
  if (name == "random") return Policy::kRandom;
  if (name == "dfs-weight") return Policy::kDfsWeight;
  if (name == "lof") return Policy::kLof;
  return refuse("schedule-policy",
                name + " is not available in this version" +
                    (name == "priority" ? "; use --enable-priority-scheduling with fcfs or lof"
                                        : "; use fcfs, lpm, dfs-weight, lof or random"));
}

Status fill_scheduler(const FlagValues& f, const Environment& env, ServeOptions& o) {
  scheduler::SchedulerConfig& s = o.engine.scheduler;
  CAPSTAN_ASSIGN(s.policy, policy(f));
  s.page_size = static_cast<int>(*f.integer("page-size"));
  s.max_running_requests = static_cast<int>(*f.integer("max-running-requests"));
  s.max_queued_requests = static_cast<int>(f.integer("max-queued-requests").value_or(-1));
  // 512 rows keep the matrix kernels busy; a larger chunk makes a cancelled prompt end later.
  constexpr int64_t kDefaultChunk = 512;
  const int64_t rounded = std::max<int64_t>(1, kDefaultChunk / s.page_size) * s.page_size;
  s.chunked_prefill_size = static_cast<int>(f.integer("chunked-prefill-size").value_or(rounded));
  s.max_prefill_tokens = static_cast<int>(*f.integer("max-prefill-tokens"));
  s.disable_radix_cache = f.boolean("disable-radix-cache");
  s.enable_priority = f.boolean("enable-priority-scheduling");
  s.low_priority_values_first = f.boolean("schedule-low-priority-values-first");
  s.priority_preemption_threshold = *f.integer("priority-scheduling-preemption-threshold");
  s.disable_priority_preemption = f.boolean("disable-priority-preemption");
  s.retract_by_priority = f.text("retraction-policy") == "priority";
  s.conservativeness = *f.number("schedule-conservativeness");
  if (s.enable_priority && s.policy != scheduler::Policy::kFcfs &&
      s.policy != scheduler::Policy::kLof) {
    return refuse("enable-priority-scheduling",
                  "needs --schedule-policy fcfs or lof, not " + f.text("schedule-policy"));
  }
  if (const auto clip = env("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION")) {
    const int value = std::atoi(clip->c_str());
    if (value < 1) {
      return invalid_argument("SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION=" + *clip +
                              " is not an integer of at least 1");
    }
    s.clip_max_new_tokens = value;
  }
  return {};
}

std::optional<double> env_number(const Environment& env, const char* name) {
  const auto text = env(name);
  if (!text || text->empty()) return std::nullopt;
  double value = 0;
  const auto [at, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || at != text->data() + text->size()) return std::nullopt;
  return value;
}

bool env_true(const Environment& env, const char* name, bool fallback = false) {
  const auto text = env(name);
  if (!text || text->empty()) return fallback;
  std::string lower = *text;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower == "1" || lower == "true" || lower == "yes" || lower == "y" || lower == "on";
}

/// Seconds from the new name, or milliseconds from the old one; negative = off.
double env_timeout(const Environment& env, const char* seconds, const char* milliseconds) {
  if (const auto s = env_number(env, seconds)) return *s;
  if (const auto ms = env_number(env, milliseconds)) return *ms < 0 ? -1 : *ms / 1000;
  return -1;
}

Status check_environment(const Environment& env) {
  for (const char* name :
       {"SGLANG_REQ_WAITING_TIMEOUT", "SGLANG_REQ_RUNNING_TIMEOUT", "SGLANG_QUEUED_TIMEOUT_MS",
        "SGLANG_FORWARD_TIMEOUT_MS", "SGLANG_HEALTH_CHECK_TIMEOUT", "SGLANG_TIMEOUT_KEEP_ALIVE",
        "SGLANG_SHUTDOWN_TIMEOUT"}) {
    const auto text = env(name);
    if (text && !text->empty() && !env_number(env, name)) {
      return invalid_argument(std::string(name) + "=" + *text + " is not a number");
    }
  }
  return {};
}

void fill_engine(const FlagValues& f, const Environment& env, ServeOptions& o) {
  engine::EngineConfig& e = o.engine;
  // SGLang draws the seed from [0, 2^30).
  e.random_seed = static_cast<uint64_t>(
      f.integer("random-seed").value_or(std::random_device{}() & ((1u << 30) - 1)));
  e.scheduler.random_seed = e.random_seed;
  // Ranks of several nodes make parts of one model.
  o.dummy_seed = f.given("random-seed") || !o.parallel.split() ? e.random_seed : 0;
  e.decode_log_interval = static_cast<int>(*f.integer("decode-log-interval"));
  e.watchdog_timeout = *f.number("watchdog-timeout");
  e.soft_watchdog_timeout = f.number("soft-watchdog-timeout").value_or(0);
  e.queue_timeout = env_timeout(env, "SGLANG_REQ_WAITING_TIMEOUT", "SGLANG_QUEUED_TIMEOUT_MS");
  e.run_timeout = env_timeout(env, "SGLANG_REQ_RUNNING_TIMEOUT", "SGLANG_FORWARD_TIMEOUT_MS");
  e.return_original_logprob = env_true(env, "SGLANG_RETURN_ORIGINAL_LOGPROB");
}

/// With speculation the reference serves 48 requests at a time unless told otherwise: drafts pay
/// while a step has few rows.
constexpr int kSpeculativeRequests = 48;

/// Tokens that a step verifies of a request, the last known one included.
Result<int> draft_tokens(int64_t tokens, std::string_view flag) {
  constexpr int64_t kMost = 64;
  if (tokens >= 2 && tokens <= kMost) return static_cast<int>(tokens);
  return refuse(flag, std::to_string(tokens) + " is outside 2 to " + std::to_string(kMost) +
                          "; it counts the tokens that a step verifies, the last known one "
                          "included");
}

/// Drafts of the checkpoint's own multi-token prediction layer: a chain of num-steps tokens.
Status fill_nextn(const FlagValues& f, ServeOptions& o) {
  constexpr int64_t kSteps = 3, kMostSteps = 63;
  if (const int64_t k = f.integer("speculative-eagle-topk").value_or(1); k != 1) {
    return refuse("speculative-eagle-topk",
                  std::to_string(k) +
                      " is not supported: drafts are a chain, not a tree; use 1, or leave the flag "
                      "out, and raise --speculative-num-steps for longer drafts");
  }
  const std::optional<int64_t> wanted = f.integer("speculative-num-steps");
  const std::optional<int64_t> tokens = f.integer("speculative-num-draft-tokens");
  if (wanted && (*wanted < 1 || *wanted > kMostSteps)) {
    return refuse("speculative-num-steps", std::to_string(*wanted) + " is outside 1 to " +
                                               std::to_string(kMostSteps) +
                                               "; it counts the tokens drafted for a request");
  }
  int64_t steps = wanted.value_or(kSteps);
  if (tokens && !wanted) {
    CAPSTAN_ASSIGN(const int checked, draft_tokens(*tokens, "speculative-num-draft-tokens"));
    steps = checked - 1;
  } else if (tokens && *tokens != steps + 1) {
    o.warnings.push_back("--speculative-num-draft-tokens " + std::to_string(*tokens) +
                         " has no effect: " + std::to_string(steps) +
                         " steps make a chain of as many drafts, verified with the last known "
                         "token, " +
                         std::to_string(steps + 1) + " in all");
  }
  o.engine.speculation.source = engine::SpeculationConfig::Source::kNextn;
  o.engine.speculation.max_drafts = static_cast<int>(steps);
  return {};
}

Status fill_ngram(const FlagValues& f, ServeOptions& o) {
  constexpr int64_t kTokens = 12;
  for (const char* flag : {"speculative-num-steps", "speculative-eagle-topk"}) {
    if (f.given(flag)) {
      o.warnings.push_back("--" + std::string(flag) +
                           " has no effect with --speculative-algorithm NGRAM");
    }
  }
  CAPSTAN_ASSIGN(const int tokens,
                 draft_tokens(f.integer("speculative-num-draft-tokens").value_or(kTokens),
                              "speculative-num-draft-tokens"));
  o.engine.speculation.source = engine::SpeculationConfig::Source::kNgram;
  o.engine.speculation.max_drafts = tokens - 1;
  return {};
}

Status fill_speculation(const FlagValues& f, ServeOptions& o) {
  const std::string algorithm = f.text("speculative-algorithm");
  if (algorithm.empty()) {
    for (const char* flag :
         {"speculative-num-draft-tokens", "speculative-num-steps", "speculative-eagle-topk"}) {
      if (f.given(flag)) {
        o.warnings.push_back("--" + std::string(flag) +
                             " has no effect without --speculative-algorithm");
      }
    }
    return {};
  }
  if (algorithm == "NGRAM") {
    CAPSTAN_RETURN_IF_ERROR(fill_ngram(f, o));
  } else if (algorithm == "NEXTN" || algorithm == "EAGLE") {
    CAPSTAN_RETURN_IF_ERROR(fill_nextn(f, o));
  } else {
    return refuse("speculative-algorithm",
                  algorithm +
                      " is not available in this version; use NEXTN for a checkpoint with a "
                      "multi-token prediction layer (DeepSeek-V3, R1), or NGRAM, which needs none");
  }
  if (!f.given("max-running-requests")) {
    o.engine.scheduler.max_running_requests = kSpeculativeRequests;
  }
  return {};
}

bool quieter_than_info(const std::string& level) {
  return level == "warning" || level == "error" || level == "critical";
}

Status fill_server(const FlagValues& f, const Environment& env, ServeOptions& o) {
  server::ServerConfig& s = o.server;
  s.host = f.text("host");
  s.port = static_cast<uint16_t>(*f.integer("port"));
  s.api_key = f.text("api-key");
  s.admin_api_key = f.text("admin-api-key");
  s.served_model_name = f.text("served-model-name");
  if (s.served_model_name.find(':') != std::string::npos) {
    return refuse("served-model-name",
                  "'" + s.served_model_name + "' must not contain ':' (it separates an adapter)");
  }
  s.tokenizer_path = o.tokenizer_path;
  s.strict_model_name = f.boolean("strict-model-name");
  s.weight_version = f.text("weight-version");
  s.version = CAPSTAN_VERSION;
  s.preferred_sampling_params = f.text("preferred-sampling-params");
  s.default_chat_template_kwargs = f.text("default-chat-template-kwargs");
  s.reasoning_parser = f.text("reasoning-parser");
  s.allow_auto_truncate = f.boolean("allow-auto-truncate");
  s.enable_cache_report = f.boolean("enable-cache-report");
  s.stream_default_include_usage = f.boolean("stream-response-default-include-usage");
  s.stream_interval = static_cast<int>(*f.integer("stream-interval"));
  s.incremental_streaming_output = f.boolean("incremental-streaming-output");
  s.enable_metrics = f.boolean("enable-metrics");
  const std::string style = f.text("metrics-prefix-style");
  s.metrics_prefix_style = style == "both"         ? server::MetricsPrefixStyle::kBoth
                           : style == "underscore" ? server::MetricsPrefixStyle::kUnderscore
                                                   : server::MetricsPrefixStyle::kColon;
  s.bucket_time_to_first_token = f.numbers("bucket-time-to-first-token");
  s.bucket_inter_token_latency = f.numbers("bucket-inter-token-latency");
  s.bucket_e2e_request_latency = f.numbers("bucket-e2e-request-latency");
  s.log_requests = f.boolean("log-requests");
  s.log_requests_level = static_cast<int>(*f.integer("log-requests-level"));
  s.log_requests_json = f.text("log-requests-format") == "json";
  const std::string http_level = f.given("log-level-http") ? f.text("log-level-http") : o.log_level;
  s.access_log = !quieter_than_info(http_level);
  s.assets = server::embedded_assets();
  s.health_timeout = env_number(env, "SGLANG_HEALTH_CHECK_TIMEOUT").value_or(s.health_timeout);
  s.health_generation = env_true(env, "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", true);
  s.keep_alive_timeout =
      env_number(env, "SGLANG_TIMEOUT_KEEP_ALIVE").value_or(s.keep_alive_timeout);
  s.max_connections = static_cast<int>(*f.integer("max-connections"));
  s.io_threads = static_cast<int>(*f.integer("io-threads"));
  s.worker_threads = static_cast<int>(*f.integer("worker-threads"));
  return {};
}

Status fill_model(const FlagValues& f, const Environment& env, ServeOptions& o) {
  o.model_path = f.text("model-path");
  o.tokenizer_path = f.text("tokenizer-path");
  o.chat_template_path = f.text("chat-template");
  o.model_overrides_json = f.text("json-model-override-args");
  o.quantization = f.text("quantization");
  o.context_length = f.integer("context-length");
  o.allow_longer_context = env_true(env, "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN");
  o.mem_fraction_static = f.number("mem-fraction-static");
  o.max_total_tokens = f.integer("max-total-tokens");
  o.threads = static_cast<int>(*f.integer("threads"));
  o.exact_activations = f.boolean("exact-activations");
  o.fp8_as_int8 = f.boolean("fp8-as-int8");
  o.deterministic = f.boolean("enable-deterministic-inference");
  o.sampling_defaults_from_model = f.text("sampling-defaults") == "model";
  o.skip_warmup = f.boolean("skip-server-warmup");

  const std::string format = f.text("load-format");
  if (format == "safetensors") {
    o.load_format = LoadFormat::kSafetensors;
  } else if (format == "gguf") {
    o.load_format = LoadFormat::kGguf;
  } else if (format == "dummy") {
    o.load_format = LoadFormat::kDummy;
  } else if (format != "auto") {
    return refuse("load-format", format +
                                     " is not supported; weights are read from safetensors or "
                                     "GGUF files: use auto, or convert the checkpoint");
  }
  o.kv_cache_dtype = f.text("kv-cache-dtype");
  if (o.kv_cache_dtype == "fp8_e5m2" || o.kv_cache_dtype.starts_with("fp4")) {
    return refuse("kv-cache-dtype", o.kv_cache_dtype +
                                        " is not available in this version; use auto, f16, bf16, "
                                        "f32, or for DeepSeek models fp8_e4m3");
  }
  const std::string device = f.text("device");
  if (device != "auto" && device != "cpu") {
    return refuse("device", device + " is not available in this version; use cpu");
  }
  const std::string isa = f.text("isa");
  if (isa == "ref") o.isa = kernels::Isa::kRef;
  if (isa == "avx2") o.isa = kernels::Isa::kAvx2;
  if (isa == "avx512") o.isa = kernels::Isa::kAvx512;
  return {};
}

}  // namespace

Result<ServeOptions> make_serve_options(const FlagValues& flags, const Environment& environment) {
  ServeOptions o;
  o.log_level = flags.text("log-level");
  CAPSTAN_RETURN_IF_ERROR(check_environment(environment));
  CAPSTAN_ASSIGN(o.parallel, make_parallel_options(flags, environment, host_name(), o.notes));
  CAPSTAN_RETURN_IF_ERROR(check_refused(flags));
  CAPSTAN_RETURN_IF_ERROR(check_ranges(flags));
  CAPSTAN_RETURN_IF_ERROR(fill_model(flags, environment, o));
  CAPSTAN_RETURN_IF_ERROR(fill_scheduler(flags, environment, o));
  fill_engine(flags, environment, o);
  CAPSTAN_RETURN_IF_ERROR(fill_speculation(flags, o));
  CAPSTAN_RETURN_IF_ERROR(fill_server(flags, environment, o));
  o.server.launch_args = flags.to_json();
  // The name may still follow from the model's path; the rest can be judged now.
  server::ServerConfig named = o.server;
  if (named.served_model_name.empty()) named.served_model_name = "model";
  CAPSTAN_RETURN_IF_ERROR(server::validate_config(named));
  o.shutdown_timeout =
      std::max(0.0, env_number(environment, "SGLANG_SHUTDOWN_TIMEOUT").value_or(0));
  o.force_shutdown =
      env_true(environment, "SGL_FORCE_SHUTDOWN") || env_true(environment, "SGLANG_FORCE_SHUTDOWN");
  collect_warnings(flags, o);
  return o;
}

}  // namespace capstan::app
