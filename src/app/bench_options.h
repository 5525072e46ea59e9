// Flags of `capstan bench`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace capstan::app {

struct BenchOptions {
  enum class Kind : uint8_t { kDecode, kPrefill, kServe, kAll };
  Kind kind = Kind::kAll;
  std::string model_path;
  std::string overrides = "{}";  // --json-model-override-args
  bool dummy_weights = false;    // --load-format dummy
  int threads = 0;               // 0: one per usable CPU
  std::string isa = "auto";
  bool exact_activations = false;
  bool fp8_as_int8 = false;
  std::string kv_cache_dtype = "auto";
  int page_size = 16;
  std::vector<int> batches = {1, 8, 32};  // decode
  int prompt_len = 0;                     // 0: 16 for decode, 512 for prefill and serve
  int output_len = 0;                     // 0: 64 for decode, 96 for serve
  int chunk = 512;                        // prefill: tokens per step
  int repeats = 3;                        // prefill: the median counts
  int clients = 32;                       // serve
  int shared_prefix = 384;                // serve: tokens all prompts begin with
  uint64_t seed = 1;
  std::string json_path;

  int prompt_length(Kind k) const {
    return prompt_len > 0 ? prompt_len : (k == Kind::kDecode ? 16 : 512);
  }
  int output_length(Kind k) const {
    return output_len > 0 ? output_len : (k == Kind::kDecode ? 64 : 96);
  }
  bool runs(Kind k) const { return kind == Kind::kAll || kind == k; }
};

/// What parsing ended in: options, or an exit code with everything already printed (--help, a bad
/// flag).
struct ParsedBench {
  BenchOptions options;
  bool proceed = false;
  int exit_code = 0;
};

ParsedBench parse_bench_options(int argc, char** argv);

}  // namespace capstan::app
