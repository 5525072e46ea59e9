#include "app/bench_options.h"

#include <CLI/CLI.hpp>

namespace capstan::app {

ParsedBench parse_bench_options(int argc, char** argv) {
  ParsedBench parsed;
  BenchOptions& o = parsed.options;
  CLI::App cli{
      "Measures a model on this machine and says what share of the machine's limits it reaches.\n"
      "Other load falsifies the figures; compare figures of one run only.\n"
      "`capstan bench comm` measures the operations among ranks instead, without a model.",
      "capstan bench"};
  std::string what = "all";
  cli.add_option("what", what, "what to measure")
      ->check(CLI::IsMember({"decode", "prefill", "serve", "all"}))
      ->capture_default_str();
  cli.add_option("--model-path,--model", o.model_path, "GGUF file or Hugging Face directory")
      ->required();
  std::string load_format = "auto";
  cli.add_option("--load-format", load_format,
                 "auto, or dummy for random weights (only the config is read)")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  cli.add_option("--json-model-override-args", o.overrides, "JSON merged over config.json");
  cli.add_option("--threads", o.threads, "compute threads, 0 for one per usable CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  cli.add_option("--isa", o.isa, "instruction set")
      ->check(CLI::IsMember({"auto", "ref", "avx2", "avx512"}))
      ->capture_default_str();
  cli.add_flag("--exact-activations", o.exact_activations,
               "do not round activations to int8 (quantised weights) or BF16 (block FP8): slow");
  cli.add_flag("--fp8-as-int8", o.fp8_as_int8, "compute block-FP8 weights as int8 by int8");
  cli.add_option("--kv-cache-dtype", o.kv_cache_dtype, "type of cached keys and values")
      ->check(CLI::IsMember({"auto", "float32", "float16", "bfloat16"}))
      ->capture_default_str();
  cli.add_option("--page-size", o.page_size, "tokens per cache page")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  cli.add_option("--batch", o.batches, "decode: numbers of sequences, e.g. 1,8,32")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  cli.add_option("--prompt-len", o.prompt_len,
                 "prompt tokens per sequence (default: decode 16, prefill and serve 512)")
      ->check(CLI::Range(1, 1 << 20));
  cli.add_option("--output-len", o.output_len,
                 "tokens generated per sequence (default: decode 64, serve 96)")
      ->check(CLI::Range(1, 1 << 20));
  cli.add_option("--chunk", o.chunk, "prefill: tokens per step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  cli.add_option("--repeats", o.repeats, "prefill: runs, of which the median counts")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  cli.add_option("--clients", o.clients, "serve: requests at once")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  cli.add_option("--shared-prefix", o.shared_prefix, "serve: tokens all prompts begin with")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  cli.add_option("--seed", o.seed, "of the random prompts")->capture_default_str();
  cli.add_option("--json", o.json_path, "write the figures to this file as well");
  try {
    cli.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    // CLI11 prints help or the message and gives 0 for help; every real error is 2 here.
    parsed.exit_code = cli.exit(e) == 0 ? 0 : 2;
    return parsed;
  }
  using Kind = BenchOptions::Kind;
  o.kind = what == "decode"    ? Kind::kDecode
           : what == "prefill" ? Kind::kPrefill
           : what == "serve"   ? Kind::kServe
                               : Kind::kAll;
  o.dummy_weights = load_format == "dummy";
  parsed.proceed = true;
  return parsed;
}

}  // namespace capstan::app
