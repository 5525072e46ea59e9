// What `capstan serve` does, decided from its flags and the environment before anything is opened.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/environment.h"
#include "app/flags.h"
#include "app/parallel_options.h"
#include "engine/engine.h"
#include "kernels/cpu_ops.h"
#include "server/server.h"

namespace capstan::app {

enum class LoadFormat : uint8_t { kAuto, kSafetensors, kGguf, kDummy };

struct ServeOptions {
  std::string model_path;  // empty: the default model
  std::string tokenizer_path;
  std::string chat_template_path;
  std::string model_overrides_json = "{}";
  LoadFormat load_format = LoadFormat::kAuto;
  uint64_t dummy_seed = 0;  // of LoadFormat::kDummy; the same on all nodes
  std::string quantization;
  std::string kv_cache_dtype = "auto";
  std::optional<int64_t> context_length;
  bool allow_longer_context = false;
  std::optional<double> mem_fraction_static;
  std::optional<int64_t> max_total_tokens;
  int threads = 0;
  std::optional<kernels::Isa> isa;
  bool exact_activations = false;
  bool deterministic = false;
  bool fp8_as_int8 = false;
  bool sampling_defaults_from_model = true;
  bool skip_warmup = false;
  std::string log_level = "info";

  ParallelOptions parallel;
  engine::EngineConfig engine;  // without what only the checkpoint can tell
  server::ServerConfig server;

  double shutdown_timeout = 0;  // seconds; 0 = unbounded
  bool force_shutdown = false;  // the first signal ends the process at once

  std::vector<std::string> warnings;  // one line each, for the log
  std::vector<std::string> notes;     // what the environment filled in
};

/// Checks what can be checked without a model. Errors say which flag, which value and what to do;
/// the process exits with 1.
Result<ServeOptions> make_serve_options(const FlagValues& flags, const Environment& environment);

}  // namespace capstan::app
