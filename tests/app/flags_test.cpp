#include "app/flags.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <set>

namespace capstan::app {
namespace {

FlagValues parse(const std::vector<std::string>& args) {
  auto values = parse_flags(args);
  if (!values.ok()) {
    ADD_FAILURE() << values.error().message;
    return {};
  }
  return *values;
}

std::string error_of(const std::vector<std::string>& args) {
  const auto values = parse_flags(args);
  if (values.ok()) {
    ADD_FAILURE() << "accepted";
    return "";
  }
  EXPECT_EQ(values.error().code, ErrorCode::kInvalidArgument);
  return values.error().message;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// A file that goes away with the test.
class TempFile {
 public:
  explicit TempFile(const std::string& content)
      : path_(std::filesystem::temp_directory_path() /
              ("capstan_flags_" + std::to_string(::getpid()) + "_" + std::to_string(counter_++))) {
    std::ofstream(path_) << content;
  }
  ~TempFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  static inline int counter_ = 0;
  std::filesystem::path path_;
};

TEST(FlagTable, NamesAreUniqueAndDefaultsAreValid) {
  std::set<std::string_view> seen;
  for (const Flag& flag : all_flags()) {
    EXPECT_TRUE(seen.insert(flag.name).second) << flag.name;
    for (std::string_view alias : split_words(flag.aliases)) {
      EXPECT_TRUE(seen.insert(alias).second) << alias;
    }
    EXPECT_FALSE(flag.help.empty()) << flag.name;
    if (!flag.fallback.empty() && flag.type != FlagType::kBool) {
      parse({"--" + std::string(flag.name), std::string(flag.fallback)});
    }
  }
}

TEST(FlagTable, SpecifiedFlagsAreAllThere) {
  // Every flag that the interface specification names in its tables.
  for (const char* name :
       {"model-path", "model", "served-model-name", "tp-size", "tensor-parallel-size", "tp",
        "dist-init-addr", "nccl-init-addr", "nnodes", "node-rank", "trust-remote-code",
        "context-length", "enable-metrics", "host", "port", "mem-fraction-static",
        "max-running-requests", "max-queued-requests", "max-total-tokens", "chunked-prefill-size",
        "max-prefill-tokens", "schedule-policy", "schedule-conservativeness", "dp-size",
        "enable-dp-attention", "enable-dp-lm-head", "load-balance-method", "ep-size",
        "enable-ep-moe", "enable-deepep-moe", "pp-size", "quantization", "kv-cache-dtype", "dtype",
        "load-format", "tokenizer-path", "tokenizer-mode", "skip-tokenizer-init", "chat-template",
        "api-key", "admin-api-key", "tool-call-parser", "reasoning-parser", "grammar-backend",
        "sampling-defaults", "preferred-sampling-params", "speculative-algorithm",
        "speculative-draft-model-path", "speculative-draft-model", "speculative-num-steps",
        "disable-radix-cache", "radix-eviction-policy", "page-size", "disable-overlap-schedule",
        "enable-hierarchical-cache", "hicache-ratio", "watchdog-timeout", "soft-watchdog-timeout",
        "dist-timeout", "enable-priority-scheduling", "retraction-policy", "log-level",
        "log-level-http", "log-requests", "log-requests-level", "log-requests-format",
        "decode-log-interval", "crash-dump-folder", "stream-interval",
        "incremental-streaming-output", "stream-output", "stream-response-default-include-usage",
        "random-seed", "enable-deterministic-inference", "enable-cache-report",
        "enable-custom-logit-processor", "enable-return-hidden-states", "allow-auto-truncate",
        "is-embedding", "enable-lora", "lora-paths", "bucket-time-to-first-token",
        "prompt-tokens-buckets", "extra-metric-labels", "weight-version", "fastapi-root-path",
        "skip-server-warmup", "warmups", "ssl-keyfile", "ssl-certfile", "json-model-override-args",
        "device", "download-dir", "revision", "enable-trace", "otlp-traces-endpoint",
        // P2
        "disable-cuda-graph", "disable-cuda-graph-padding", "cuda-graph-max-bs", "cuda-graph-bs",
        "cuda-graph-max-bs-decode", "enable-torch-compile", "torch-compile-max-bs",
        "torchao-config", "attention-backend", "decode-attention-backend",
        "prefill-attention-backend", "sampling-backend", "moe-runner-backend", "moe-a2a-backend",
        "deepep-mode", "deepep-config", "fp8-gemm-backend", "enable-flashinfer-mla",
        "enable-flashmla", "flashinfer-mla-disable-ragged", "disable-mla",
        "triton-attention-reduce-in-fp32", "triton-attention-num-kv-splits",
        "disable-shared-experts-fusion", "n-share-experts-fusion", "enable-two-batch-overlap",
        "enable-single-batch-overlap", "disable-custom-all-reduce", "enable-nccl-nvls",
        "enable-mscclpp", "enable-symm-mem", "enable-p2p-check", "nccl-port", "pre-warm-nccl",
        "enable-eplb", "ep-num-redundant-experts", "init-expert-location", "eplb-algorithm",
        "moe-dense-tp-size", "expert-distribution-recorder-mode", "disaggregation-mode",
        "disaggregation-transfer-backend", "disaggregation-bootstrap-port",
        "disaggregation-ib-device", "cpu-offload-gb", "offload-mode", "kt-weight-path", "kt-method",
        "kt-cpuinfer", "kt-threadpool-count", "kt-num-gpu-experts", "enable-http2", "grpc-port",
        "tokenizer-worker-num", "detokenizer-worker-num", "batch-notify-size", "sleep-on-idle",
        "file-storage-path", "tool-server", "completion-template", "hf-chat-template-name",
        "enable-multimodal", "limit-mm-data-per-request", "enable-memory-saver", "kv-events-config",
        "enable-metrics-for-all-schedulers", "enable-mfu-metrics", "collect-tokens-histogram",
        "uvicorn-access-log-exclude-prefixes", "show-time-cost", "disable-outlines-disk-cache",
        "enable-nan-detection", "enable-double-sparsity", "ds-channel-config-path",
        "disable-jump-forward", "prefill-only-one-req", "return-hidden-states",
        "speculative-ngram-max-bfs-breadth", "model-impl", "use-ray",
        "default-chat-template-kwargs", "config"}) {
    const auto flag = resolve_flag(name);
    ASSERT_TRUE(flag.ok()) << name << ": " << flag.error().message;
    const auto aliases = split_words((*flag)->aliases);
    EXPECT_TRUE((*flag)->name == name ||
                std::find(aliases.begin(), aliases.end(), name) != aliases.end())
        << name << " only resolves to --" << (*flag)->name;
  }
}

TEST(Flags, SpellingsOfOneFlag) {
  EXPECT_EQ(parse({"--port", "8000"}).integer("port"), 8000);
  EXPECT_EQ(parse({"--port=8000"}).integer("port"), 8000);
  EXPECT_EQ(parse({"--port", "1", "--port=2"}).integer("port"), 2);
  EXPECT_EQ(parse({"--model_path", "a"}).text("model-path"), "a");
  EXPECT_EQ(parse({"--model", "a"}).text("model-path"), "a");
  EXPECT_EQ(parse({"--tensor_parallel_size=4"}).integer("tp-size"), 4);
  EXPECT_EQ(parse({"--chat-template="}).text("chat-template"), "");
  EXPECT_EQ(parse({"--chunked-prefill-size", "-1"}).integer("chunked-prefill-size"), -1);
  EXPECT_EQ(parse({}).integer("port"), 30000);
  EXPECT_FALSE(parse({}).integer("max-total-tokens").has_value());
}

// Shipped manifests depend on these.
TEST(Flags, Abbreviations) {
  const std::pair<const char*, const char*> cases[] = {
      {"tp", "tp-size"},
      {"dp", "dp-size"},
      {"mem-frac", "mem-fraction-static"},
      {"context-len", "context-length"},
      {"max-total-token", "max-total-tokens"},
      {"disable-radix", "disable-radix-cache"},
      {"model", "model-path"},
      {"tensor-parallel", "tp-size"},
      {"speculative-draft-model", "speculative-draft-model-path"},
      {"trust-remote", "trust-remote-code"},
      {"cuda-graph-max", "cuda-graph-max-bs"},
      {"enable-metrics", "enable-metrics"},  // exact, though a prefix of another
      {"chunked-prefill", "chunked-prefill-size"},
  };
  for (const auto& [written, name] : cases) {
    const auto flag = resolve_flag(written);
    if (std::string(written) == "cuda-graph-max") {
      EXPECT_FALSE(flag.ok());  // -bs, -bs-decode, -bs-prefill
      continue;
    }
    ASSERT_TRUE(flag.ok()) << written << ": " << flag.error().message;
    EXPECT_EQ((*flag)->name, name) << written;
  }
}

TEST(Flags, AmbiguousPrefixListsCandidates) {
  const std::string error = error_of({"--max", "4"});
  EXPECT_TRUE(contains(error, "ambiguous")) << error;
  EXPECT_TRUE(contains(error, "--max-total-tokens")) << error;
  EXPECT_TRUE(contains(error, "--max-running-requests")) << error;
}

TEST(Flags, MistakesSayWhatToDo) {
  std::string error = error_of({"--nosuch-flag"});
  EXPECT_TRUE(contains(error, "--nosuch-flag")) << error;
  error = error_of({"--modle-path", "x"});
  EXPECT_TRUE(contains(error, "did you mean --model-path?")) << error;
  error = error_of({"--prot", "1"});
  EXPECT_TRUE(contains(error, "did you mean --port?")) << error;
  error = error_of({"--port"});
  EXPECT_TRUE(contains(error, "--port needs a value")) << error;
  error = error_of({"--port", "--host", "x"});
  EXPECT_TRUE(contains(error, "--port needs a value")) << error;
  error = error_of({"--port", "80a"});
  EXPECT_TRUE(contains(error, "80a")) << error;
  error = error_of({"--schedule-policy", "best"});
  EXPECT_TRUE(contains(error, "invalid choice 'best'") && contains(error, "lpm")) << error;
  error = error_of({"--enable-metrics=7"});
  EXPECT_TRUE(contains(error, "switch")) << error;
  error = error_of({"serve"});
  EXPECT_TRUE(contains(error, "unexpected argument 'serve'")) << error;
  error = error_of({"--json-model-override-args", "[1]"});
  EXPECT_TRUE(contains(error, "JSON object")) << error;
  error = error_of({"--mem-fraction-static", "nan"});
  EXPECT_TRUE(contains(error, "nan")) << error;
  error_of({"--"});
  error_of({"-p", "80"});
}

TEST(Flags, Switches) {
  EXPECT_TRUE(parse({"--enable-metrics"}).boolean("enable-metrics"));
  EXPECT_FALSE(parse({}).boolean("enable-metrics"));
  EXPECT_FALSE(parse({"--enable-metrics=false"}).boolean("enable-metrics"));
  EXPECT_TRUE(parse({"--enable-metrics", "true", "--port", "1"}).boolean("enable-metrics"));
  EXPECT_FALSE(parse({"--enable-metrics", "--enable-metrics=false"}).boolean("enable-metrics"));
}

TEST(Flags, ListsTakeSeveralValues) {
  const FlagValues v =
      parse({"--bucket-time-to-first-token", "0.1", "1", "10", "--cuda-graph-bs", "1", "2"});
  EXPECT_EQ(v.numbers("bucket-time-to-first-token"), (std::vector<double>{0.1, 1, 10}));
  EXPECT_EQ(v.list("cuda-graph-bs"), (std::vector<std::string>{"1", "2"}));
}

TEST(Flags, HumanReadableSizes) {
  const std::pair<const char*, int64_t> good[] = {
      {"4096", 4096},   {"4k", 4000},          {"1.5k", 1500},     {"2M", 2000000},
      {"4Ki", 4096},    {"1Mi", 1048576},      {"1G", 1000000000}, {"1Ti", int64_t{1} << 40},
      {"0.5M", 500000}, {"1T", 1000000000000},
  };
  for (const auto& [text, value] : good) {
    const auto size = parse_size(text);
    ASSERT_TRUE(size.ok()) << text;
    EXPECT_EQ(*size, value) << text;
  }
  for (const char* bad :
       {"", "k", "4K", "1.5Ki", "4kb", "1e3", "4 k", "99999999999999999999", "9999999999T"}) {
    EXPECT_FALSE(parse_size(bad).ok()) << bad;
  }
  EXPECT_EQ(parse({"--context-length", "8k"}).integer("context-length"), 8000);
  EXPECT_EQ(parse({"--max-total-tokens=64Ki"}).integer("max-total-tokens"), 65536);
  error_of({"--context-length", "8K"});
}

TEST(Flags, ConfigFileLiesBeneathTheCommandLine) {
  const TempFile file(
      "port: 9000\n"
      "host: 0.0.0.0\n"
      "enable-metrics: true\n"
      "log_requests: false\n"
      "context-len: 2Ki\n"
      "bucket-time-to-first-token: [0.1, 0.2]\n"
      "served-model-name: null\n");
  const FlagValues v = parse({"--port", "9001", "--config", file.path()});
  EXPECT_EQ(v.integer("port"), 9001);  // also when the flag comes first
  EXPECT_EQ(v.text("host"), "0.0.0.0");
  EXPECT_TRUE(v.boolean("enable-metrics"));
  EXPECT_FALSE(v.boolean("log-requests"));
  EXPECT_EQ(v.integer("context-length"), 2048);
  EXPECT_EQ(v.numbers("bucket-time-to-first-token"), (std::vector<double>{0.1, 0.2}));
  EXPECT_EQ(v.text("served-model-name"), "");
}

TEST(Flags, BrokenConfigFilesAreNamed) {
  EXPECT_TRUE(contains(error_of({"--config", "/nonexistent.yaml"}), "/nonexistent.yaml"));
  for (const char* content :
       {"- a\n- b\n", "port: [1, 2]\n", "prot: 1\n", "port: {a: 1}\n", "enable-metrics: maybe\n",
        "a: b: c\n", "port: x\n", "config: other.yaml\n"}) {
    const TempFile file(content);
    EXPECT_TRUE(contains(error_of({"--config", file.path()}), file.path())) << content;
  }
  const TempFile empty("");
  EXPECT_EQ(parse({"--config", empty.path()}).integer("port"), 30000);
}

TEST(Flags, JsonHidesSecretsAndKeepsTypes) {
  const FlagValues v =
      parse({"--api-key", "s3cret", "--port", "1", "--enable-metrics", "--cuda-graph-max-bs", "8"});
  const auto json = boost::json::parse(v.to_json()).as_object();
  EXPECT_FALSE(contains(v.to_json(), "s3cret"));
  EXPECT_EQ(json.at("api_key"), "***");
  EXPECT_EQ(json.at("port"), 1);
  EXPECT_EQ(json.at("enable_metrics"), true);
  EXPECT_EQ(json.at("log_requests"), false);
  EXPECT_EQ(json.at("schedule_conservativeness"), 1.0);
  EXPECT_TRUE(json.at("max_total_tokens").is_null());
  EXPECT_EQ(json.at("cuda_graph_max_bs"), "8");
  EXPECT_FALSE(json.contains("cuda_graph_bs"));
}

TEST(Flags, HelpNamesEveryFlag) {
  const std::string help = help_text(), table = markdown_table();
  for (const Flag& flag : all_flags()) {
    EXPECT_TRUE(contains(help, "--" + std::string(flag.name))) << flag.name;
  }
  for (const Flag& flag : documented_flags()) {
    EXPECT_TRUE(contains(table, "| `--" + std::string(flag.name) + "`")) << flag.name;
  }
  EXPECT_TRUE(parse({"-h"}).help);
  EXPECT_TRUE(parse({"--help"}).help);
  EXPECT_TRUE(parse({"--help-markdown"}).help_markdown);
  EXPECT_TRUE(parse({"--version"}).version);
}

}  // namespace
}  // namespace capstan::app
