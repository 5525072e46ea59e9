#include "app/serve_options.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "app/default_model.h"
#include "app/model_setup.h"
#include "model/recipe.h"
#include "text/reasoning_parser.h"

namespace capstan::app {
namespace {

using Variables = std::map<std::string, std::string>;

Environment environment(Variables variables = {}) {
  return [variables](const std::string& name) -> std::optional<std::string> {
    const auto it = variables.find(name);
    if (it == variables.end()) return std::nullopt;
    return it->second;
  };
}

Result<ServeOptions> options_of(const std::vector<std::string>& args, Variables variables = {}) {
  const auto flags = parse_flags(args);
  EXPECT_TRUE(flags.ok()) << flags.error().message;
  return make_serve_options(*flags, environment(std::move(variables)));
}

ServeOptions good(const std::vector<std::string>& args, Variables variables = {}) {
  auto options = options_of(args, std::move(variables));
  if (!options.ok()) {
    ADD_FAILURE() << options.error().message;
    return {};
  }
  return *options;
}

std::string refused(const std::vector<std::string>& args, Variables variables = {}) {
  const auto options = options_of(args, std::move(variables));
  if (options.ok()) {
    ADD_FAILURE() << "accepted";
    return "";
  }
  return options.error().message;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(ServeOptions, Defaults) {
  const ServeOptions o = good({});
  EXPECT_EQ(o.server.host, "127.0.0.1");
  EXPECT_EQ(o.server.port, 30000);
  EXPECT_EQ(o.engine.scheduler.page_size, 16);
  EXPECT_EQ(o.engine.scheduler.chunked_prefill_size, 512);
  EXPECT_EQ(o.engine.scheduler.policy, scheduler::Policy::kFcfs);
  EXPECT_EQ(o.engine.scheduler.max_queued_requests, -1);
  EXPECT_EQ(o.engine.watchdog_timeout, 300);
  EXPECT_LT(o.engine.random_seed, 1u << 30);
  EXPECT_FALSE(o.server.enable_metrics);
  EXPECT_TRUE(o.server.access_log);
  EXPECT_TRUE(o.warnings.empty());
}

TEST(ServeOptions, FlagsReachTheirPlace) {
  const ServeOptions o = good({"--model-path",
                               "/m",
                               "--served-model-name",
                               "name",
                               "--host",
                               "::",
                               "--port",
                               "0",
                               "--context-length",
                               "4k",
                               "--page-size",
                               "32",
                               "--chunked-prefill-size=64",
                               "--max-running-requests",
                               "7",
                               "--max-queued",
                               "3",
                               "--schedule-policy",
                               "lpm",
                               "--retraction-policy",
                               "priority",
                               "--disable-radix",
                               "--random-seed",
                               "5",
                               "--api-key",
                               "k",
                               "--enable-metrics",
                               "--enable-cache-report",
                               "--stream-interval",
                               "4",
                               "--log-level-http",
                               "warning",
                               "--mem-fraction-static",
                               "0.5",
                               "--load-format",
                               "dummy",
                               "--sampling-defaults",
                               "openai",
                               "--isa",
                               "ref",
                               "--threads",
                               "2"});
  EXPECT_EQ(o.model_path, "/m");
  EXPECT_EQ(o.server.served_model_name, "name");
  EXPECT_EQ(o.server.port, 0);
  EXPECT_EQ(o.context_length, 4000);
  EXPECT_EQ(o.engine.scheduler.page_size, 32);
  EXPECT_EQ(o.engine.scheduler.chunked_prefill_size, 64);
  EXPECT_EQ(o.engine.scheduler.max_running_requests, 7);
  EXPECT_EQ(o.engine.scheduler.max_queued_requests, 3);
  EXPECT_EQ(o.engine.scheduler.policy, scheduler::Policy::kLpm);
  EXPECT_TRUE(o.engine.scheduler.retract_by_priority);
  EXPECT_TRUE(o.engine.scheduler.disable_radix_cache);
  EXPECT_EQ(o.engine.random_seed, 5u);
  EXPECT_EQ(o.server.api_key, "k");
  EXPECT_FALSE(contains(o.server.launch_args, "\"k\""));
  EXPECT_TRUE(o.server.enable_metrics);
  EXPECT_TRUE(o.server.enable_cache_report);
  EXPECT_EQ(o.server.stream_interval, 4);
  EXPECT_FALSE(o.server.access_log);
  EXPECT_EQ(o.mem_fraction_static, 0.5);
  EXPECT_EQ(o.load_format, LoadFormat::kDummy);
  EXPECT_FALSE(o.sampling_defaults_from_model);
  EXPECT_EQ(o.isa, kernels::Isa::kRef);
  EXPECT_EQ(o.threads, 2);
}

TEST(ServeOptions, FlagsWithoutMeaningGiveOneWarningEach) {
  const ServeOptions o = good({"--cuda-graph-max-bs", "8", "--trust-remote-code",
                               "--torch-compile-max-bs", "8", "--attention-backend", "fa3"});
  ASSERT_EQ(o.warnings.size(), 4u);
  for (const char* name :
       {"cuda-graph-max-bs", "trust-remote-code", "torch-compile-max-bs", "attention-backend"}) {
    EXPECT_EQ(std::count_if(o.warnings.begin(), o.warnings.end(),
                            [&](const std::string& w) {
                              return contains(w, "--" + std::string(name) + " has no effect");
                            }),
              1)
        << name;
  }
}

TEST(ServeOptions, Speculation) {
  using Source = engine::SpeculationConfig::Source;
  const ServeOptions none = good({});
  EXPECT_EQ(none.engine.speculation.source, Source::kNone);
  EXPECT_EQ(none.engine.scheduler.max_running_requests, 256);
  const ServeOptions ngram = good({"--speculative-algorithm", "NGRAM"});
  EXPECT_EQ(ngram.engine.speculation.source, Source::kNgram);
  EXPECT_EQ(ngram.engine.speculation.max_drafts, 11);
  EXPECT_TRUE(ngram.engine.speculation.adaptive);
  EXPECT_EQ(ngram.engine.scheduler.max_running_requests, 48);
  const ServeOptions chosen =
      good({"--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", "5",
            "--max-running-requests", "100"});
  EXPECT_EQ(chosen.engine.speculation.max_drafts, 4);
  EXPECT_EQ(chosen.engine.scheduler.max_running_requests, 100);
  for (const char* tokens : {"1", "65", "-3"}) {
    const std::string message =
        refused({"--speculative-algorithm", "NGRAM", "--speculative-num-draft-tokens", tokens});
    EXPECT_TRUE(contains(message, tokens)) << message;
    EXPECT_TRUE(contains(message, "speculative-num-draft-tokens")) << message;
  }
  const ServeOptions idle = good({"--speculative-num-draft-tokens", "5"});
  EXPECT_EQ(idle.engine.speculation.source, Source::kNone);
  ASSERT_EQ(idle.warnings.size(), 1u);
  EXPECT_TRUE(contains(idle.warnings[0], "--speculative-algorithm"));
}

TEST(ServeOptions, SpeculationWithThePredictionLayer) {
  using Source = engine::SpeculationConfig::Source;
  for (const char* name : {"NEXTN", "EAGLE"}) {
    const ServeOptions o = good({"--speculative-algorithm", name});
    EXPECT_EQ(o.engine.speculation.source, Source::kNextn);
    EXPECT_EQ(o.engine.speculation.max_drafts, 3);
    EXPECT_TRUE(o.engine.speculation.adaptive);
    EXPECT_EQ(o.engine.scheduler.max_running_requests, 48);
    EXPECT_TRUE(o.warnings.empty());
  }
  const auto nextn = [](std::vector<std::string> more) {
    more.insert(more.begin(), {"--speculative-algorithm", "NEXTN"});
    return more;
  };
  const ServeOptions usual =
      good(nextn({"--speculative-num-steps", "2", "--speculative-eagle-topk", "1",
                  "--speculative-num-draft-tokens", "3", "--max-running-requests", "9"}));
  EXPECT_EQ(usual.engine.speculation.max_drafts, 2);
  EXPECT_EQ(usual.engine.scheduler.max_running_requests, 9);
  EXPECT_TRUE(usual.warnings.empty());
  EXPECT_EQ(good(nextn({"--speculative-num-draft-tokens", "6"})).engine.speculation.max_drafts, 5);
  const ServeOptions odd =
      good(nextn({"--speculative-num-steps", "2", "--speculative-num-draft-tokens", "8"}));
  EXPECT_EQ(odd.engine.speculation.max_drafts, 2);
  ASSERT_EQ(odd.warnings.size(), 1u);
  EXPECT_TRUE(contains(odd.warnings[0], "speculative-num-draft-tokens 8")) << odd.warnings[0];

  const auto refusal = [&](const std::string& flag, const std::string& value) {
    const std::string message = refused(nextn({"--" + flag, value}));
    EXPECT_TRUE(contains(message, flag)) << message;
    EXPECT_TRUE(contains(message, value)) << message;
    return message;
  };
  EXPECT_TRUE(contains(refusal("speculative-eagle-topk", "4"), "use 1"));
  refusal("speculative-num-steps", "0");
  refusal("speculative-num-steps", "64");
  refusal("speculative-num-draft-tokens", "1");
  refusal("speculative-num-draft-tokens", "65");
  const ServeOptions ngram =
      good({"--speculative-algorithm", "NGRAM", "--speculative-num-steps", "2"});
  EXPECT_EQ(ngram.engine.speculation.max_drafts, 11);
  ASSERT_EQ(ngram.warnings.size(), 1u);
  EXPECT_TRUE(contains(ngram.warnings[0], "--speculative-num-steps"));
}

TEST(ServeOptions, WhatDoesNotExistYetIsRefused) {
  const std::vector<std::vector<std::string>> cases = {
      {"--dp", "2"},
      {"--pp-size", "2"},
      {"--speculative-algorithm", "EAGLE3"},
      {"--disaggregation-mode", "prefill"},
      {"--ssl-keyfile", "k"},
      {"--enable-lora"},
      {"--is-embedding"},
      {"--tool-call-parser", "qwen25"},
      {"--kv-cache-dtype", "fp8_e5m2"},
      {"--load-format", "pt"},
      {"--device", "cuda"},
      {"--schedule-policy", "routing-key"},
      {"--radix-eviction-policy", "lfu"},
      {"--enable-hierarchical-cache"},
  };
  for (const auto& args : cases) {
    const std::string message = refused(args);
    EXPECT_TRUE(contains(message, "--")) << message;
    EXPECT_TRUE(contains(message, "not available") || contains(message, "not supported"))
        << message;
  }
  // Their defaults, spelled out, are fine.
  good({"--tp", "1", "--dp", "1", "--pp-size", "1", "--ep", "1", "--nnodes", "1", "--node-rank",
        "0", "--disaggregation-mode", "null", "--radix-eviction-policy", "lru", "--device", "cpu"});
}

TEST(ServeOptions, RanksAndNodes) {
  const ParallelOptions alone = good({}).parallel;
  EXPECT_FALSE(alone.split());
  EXPECT_EQ(alone.ranks_per_node(), 1);
  const ServeOptions one = good({"--tp-size", "4", "--enable-ep-moe", "--dist-init-addr", "a:1"});
  EXPECT_EQ(one.parallel.ranks_per_node(), 4);
  EXPECT_EQ(one.parallel.expert_groups, 4);
  EXPECT_TRUE(one.parallel.dist_init_addr.empty());
  EXPECT_EQ(one.notes.size(), 1u);
  const ParallelOptions p =
      good({"--tp", "16", "--nnodes", "2", "--node-rank", "1", "--nccl-init-addr", "[::1]:5000",
            "--expert-parallel-size", "16", "--dist-timeout", "60", "--heartbeat-timeout", "2.5",
            "--comm-transport", "tcp"},
           {{"CAPSTAN_GROUP_TOKEN", "secret"}, {"NCCL_SOCKET_IFNAME", "eth1"}})
          .parallel;
  EXPECT_EQ(good({"--tp", "4", "--dp", "2", "--enable-dp-attention"}).parallel.attention_groups, 2);
  EXPECT_EQ(p.ranks, 16);
  EXPECT_EQ(p.expert_groups, 16);
  EXPECT_EQ(p.nodes, 2);
  EXPECT_EQ(p.node, 1);
  EXPECT_FALSE(p.leader());
  EXPECT_EQ(p.first_rank(), 8);
  EXPECT_EQ(p.dist_init_addr, "[::1]:5000");
  EXPECT_EQ(p.token, "secret");
  EXPECT_EQ(p.interface, "eth1");
  EXPECT_EQ(p.transport, comm::Transport::kTcp);
  EXPECT_EQ(alone.transport, comm::Transport::kAuto);
  EXPECT_EQ(good({"--comm-transport", "ucx"}).parallel.transport, comm::Transport::kUcx);
  EXPECT_EQ(p.dist_timeout.count(), 60);
  EXPECT_EQ(p.heartbeat_timeout.count(), 2500);
  const ServeOptions lws = good(
      {"--tp", "4"},
      {{"LWS_GROUP_SIZE", "4"}, {"LWS_WORKER_INDEX", "2"}, {"LWS_LEADER_ADDRESS", "r1-0.r1.ns"}});
  EXPECT_EQ(lws.parallel.node, 2);
  EXPECT_EQ(lws.parallel.dist_init_addr, "r1-0.r1.ns:20000");
  EXPECT_EQ(lws.notes.size(), 3u);
}

TEST(ServeOptions, ThreadsAreSharedAmongRanks) {
  EXPECT_EQ(threads_per_rank(0, 16, 8), 2);
  EXPECT_EQ(threads_per_rank(6, 16, 4), 1);
  EXPECT_EQ(threads_per_rank(8, 2, 2), 4);
  EXPECT_EQ(threads_per_rank(0, 2, 8), 1);
}

TEST(ServeOptions, ReasoningParser) {
  EXPECT_EQ(good({}).server.reasoning_parser, "");
  for (const char* name : {"auto", "deepseek-r1", "deepseek-v3", "qwen3", "qwen3-thinking"}) {
    EXPECT_EQ(good({"--reasoning-parser", name}).server.reasoning_parser, name);
  }
  // What the flag accepts is what the parser knows.
  const Result<FlagValues> unknown = parse_flags({"--reasoning-parser", "gpt-oss"});
  ASSERT_FALSE(unknown.ok());
  EXPECT_TRUE(contains(unknown.error().message, "gpt-oss")) << unknown.error().message;
  EXPECT_TRUE(contains(unknown.error().message, "auto, " + text::known_reasoning_formats()))
      << unknown.error().message;
}

TEST(ServeOptions, GroupsOfAttention) {
  const ServeOptions o = good({"--tp", "4", "--dp", "2", "--enable-dp-attention",
                               "--load-balance-method", "minimum_tokens"});
  EXPECT_EQ(o.parallel.attention_groups, 2);
  EXPECT_EQ(o.parallel.balance, engine::LoadBalance::kTokens);
  EXPECT_EQ(good({"--tp", "4", "--enable-dp-attention"}).parallel.attention_groups, 1);
}

// §1.5 of the interface: one clear line each.
TEST(ServeOptions, StartupValidation) {
  const std::pair<std::vector<std::string>, std::vector<std::string>> cases[] = {
      {{"--tp", "3", "--nnodes", "2"}, {"divisible", "3", "2"}},
      {{"--nnodes", "2", "--tp", "2", "--node-rank", "2"}, {"node-rank", "2"}},
      {{"--node-rank", "1"}, {"node-rank", "1"}},
      {{"--nnodes", "2", "--tp", "2"}, {"dist-init-addr"}},
      {{"--nnodes", "2", "--tp", "2", "--dp", "2", "--dist-init-addr", "a:1"},
       {"enable-dp-attention"}},
      {{"--tp", "4", "--dp", "3", "--enable-dp-attention"}, {"divisible", "4", "3"}},
      {{"--tp", "4", "--ep", "3"}, {"ep-size", "3", "4"}},
      {{"--tp", "0"}, {"tp-size", "0"}},
      {{"--nnodes", "2", "--tp", "2", "--dist-init-addr", "noport"}, {"dist-init-addr", "noport"}},
      {{"--heartbeat-timeout", "0"}, {"heartbeat-timeout", "0"}},
      {{"--dist-timeout", "0"}, {"dist-timeout", "0"}},
      {{"--chunked-prefill-size", "100"}, {"100", "page-size", "16"}},
      {{"--chunked-prefill-size", "0"}, {"0"}},
      {{"--enable-priority-scheduling", "--schedule-policy", "lpm"}, {"fcfs", "lpm"}},
      {{"--served-model-name", "a:b"}, {"a:b"}},
      {{"--schedule-conservativeness", "-0.5"}, {"-0.5"}},
      {{"--port", "70000"}, {"70000"}},
      {{"--mem-fraction-static", "1"}, {"mem-fraction-static", "1"}},
      {{"--page-size", "0"}, {"page-size"}},
  };
  for (const auto& [args, parts] : cases) {
    const std::string message = refused(args);
    for (const std::string& part : parts) EXPECT_TRUE(contains(message, part)) << message;
    EXPECT_FALSE(contains(message, "\n")) << message;
  }
}

TEST(ServeOptions, Environment) {
  const ServeOptions o = good({}, {{"SGLANG_REQ_WAITING_TIMEOUT", "12.5"},
                                   {"SGLANG_FORWARD_TIMEOUT_MS", "2500"},
                                   {"SGLANG_HEALTH_CHECK_TIMEOUT", "7"},
                                   {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "False"},
                                   {"SGLANG_TIMEOUT_KEEP_ALIVE", "9"},
                                   {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION", "100"},
                                   {"SGLANG_RETURN_ORIGINAL_LOGPROB", "1"},
                                   {"SGLANG_SHUTDOWN_TIMEOUT", "30"},
                                   {"SGL_FORCE_SHUTDOWN", "true"}});
  EXPECT_EQ(o.engine.queue_timeout, 12.5);
  EXPECT_EQ(o.engine.run_timeout, 2.5);
  EXPECT_EQ(o.server.health_timeout, 7);
  EXPECT_FALSE(o.server.health_generation);
  EXPECT_EQ(o.server.keep_alive_timeout, 9);
  EXPECT_EQ(o.engine.scheduler.clip_max_new_tokens, 100);
  EXPECT_TRUE(o.engine.return_original_logprob);
  EXPECT_EQ(o.shutdown_timeout, 30);
  EXPECT_TRUE(o.force_shutdown);
  EXPECT_TRUE(contains(refused({}, {{"SGLANG_SHUTDOWN_TIMEOUT", "soon"}}), "soon"));
}

TEST(ModelSetup, ContextLengthRules) {
  model::ModelConfig config;
  config.max_position_embeddings = 2048;
  ServeOptions o;
  EXPECT_EQ(*decide_context_length(o, config), 2048);
  o.context_length = 100;
  EXPECT_EQ(*decide_context_length(o, config), 100);
  o.context_length = 4096;
  const auto too_long = decide_context_length(o, config);
  ASSERT_FALSE(too_long.ok());
  EXPECT_TRUE(contains(too_long.error().message, "4096"));
  EXPECT_TRUE(contains(too_long.error().message, "2048"));
  EXPECT_TRUE(contains(too_long.error().message, "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"));
  o.allow_longer_context = true;
  EXPECT_EQ(*decide_context_length(o, config), 4096);
}

TEST(ModelSetup, KvDtypeAndQuantization) {
  model::ModelConfig config;
  config.weight_dtype = DType::kF32;
  EXPECT_EQ(*decide_kv_dtype("auto", config), DType::kF32);
  config.weight_dtype = DType::kQ4_K;
  EXPECT_EQ(*decide_kv_dtype("auto", config), DType::kF16);
  EXPECT_EQ(*decide_kv_dtype("bfloat16", config), DType::kBF16);
  EXPECT_EQ(*decide_kv_dtype("f32", config), DType::kF32);
  config.architecture_name = "Qwen3ForCausalLM";
  const auto refused = decide_kv_dtype("fp8_e4m3", config);
  ASSERT_FALSE(refused.ok());
  EXPECT_TRUE(contains(refused.error().message, "Qwen3ForCausalLM")) << refused.error().message;
  config.mla.kv_lora_rank = 512;
  EXPECT_EQ(*decide_kv_dtype("fp8_e4m3", config), DType::kF8E4M3);
  EXPECT_TRUE(check_quantization("", true).ok());
  EXPECT_TRUE(check_quantization("gguf", true).ok());
  EXPECT_FALSE(check_quantization("gguf", false).ok());
  EXPECT_FALSE(check_quantization("awq", true).ok());
}

TEST(ModelSetup, NextnNeedsAPredictionLayer) {
  const ServeOptions nextn = good({"--speculative-algorithm", "NEXTN"});
  const ServeOptions ngram = good({"--speculative-algorithm", "NGRAM"});
  const auto dense = model::Checkpoint::open(model::testdata("tiny-llama3-f32"));
  ASSERT_TRUE(dense.ok()) << dense.error().message;
  EXPECT_TRUE(check_speculation(ngram, **dense).ok());
  const Status none = check_speculation(nextn, **dense);
  ASSERT_FALSE(none.ok());
  EXPECT_TRUE(contains(none.error().message, "LlamaForCausalLM")) << none.error().message;
  EXPECT_TRUE(contains(none.error().message, "--speculative-algorithm NGRAM"));
  EXPECT_EQ(none.error().param, "speculative-algorithm");

  const std::string recipe = model::testdata("deepseek/tiny-v3-groups/recipe.json");
  const model::TempDir whole, bare;
  const auto deepseek = model::Checkpoint::open(model::write_recipe(recipe, whole));
  ASSERT_TRUE(deepseek.ok()) << deepseek.error().message;
  EXPECT_TRUE(check_speculation(nextn, **deepseek).ok());

  // As converters store it that drop the layer but not its number.
  const auto drop = [](boost::json::object& r) {
    boost::json::array kept;
    for (const auto& t : r.at("tensors").as_array()) {
      if (!std::string_view(t.at("name").as_string()).starts_with("model.layers.3.")) {
        kept.push_back(t);
      }
    }
    r.at("tensors") = std::move(kept);
  };
  const auto stripped = model::Checkpoint::open(model::write_recipe(recipe, bare, drop));
  ASSERT_TRUE(stripped.ok()) << stripped.error().message;
  EXPECT_TRUE(check_speculation(ngram, **stripped).ok());
  const Status missing = check_speculation(nextn, **stripped);
  ASSERT_FALSE(missing.ok());
  EXPECT_TRUE(contains(missing.error().message, "model.layers.3.eh_proj.weight"))
      << missing.error().message;
  ServeOptions dummy = nextn;
  dummy.load_format = LoadFormat::kDummy;
  EXPECT_TRUE(check_speculation(dummy, **stripped).ok());
}

class DefaultModel : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::temp_directory_path() /
            ("capstan_default_model_" + std::to_string(::getpid()));
    std::filesystem::create_directories(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::string touch(const std::filesystem::path& relative) {
    std::filesystem::create_directories((root_ / relative).parent_path());
    std::ofstream(root_ / relative) << "x";
    return (root_ / relative).string();
  }
  std::filesystem::path root_;
};

TEST_F(DefaultModel, IsFoundWhereMakeModelPutsIt) {
  const Environment cache = environment({{"XDG_CACHE_HOME", root_.string()}});
  const auto missing = find_default_model(cache);
  ASSERT_FALSE(missing.ok());
  EXPECT_TRUE(contains(missing.error().message, "make model"));
  EXPECT_TRUE(contains(missing.error().message, root_.string()));
  const std::string file = touch("capstan/models/SmolLM2-135M-Instruct/a.gguf");
  EXPECT_EQ(*find_default_model(cache), file);
  const std::string home = touch(".cache/capstan/models/SmolLM2-135M-Instruct/b.gguf");
  EXPECT_EQ(*find_default_model(environment({{"HOME", root_.string()}})), home);
  const std::string chosen = touch("m/SmolLM2-135M-Instruct/c.gguf");
  EXPECT_EQ(*find_default_model(environment({{"CAPSTAN_MODEL_DIR", (root_ / "m").string()}})),
            chosen);
  const std::string direct = touch("d/e.gguf");
  EXPECT_EQ(*find_default_model(environment({{"CAPSTAN_MODEL_DIR", (root_ / "d").string()}})),
            direct);
}

}  // namespace
}  // namespace capstan::app
