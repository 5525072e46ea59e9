#include "app/flag_table.h"

#include "app/foreign_flags.h"

namespace capstan::app {
namespace {

constexpr auto kBool = FlagType::kBool;
constexpr auto kInt = FlagType::kInt;
constexpr auto kSize = FlagType::kSize;
constexpr auto kFloat = FlagType::kFloat;
constexpr auto kString = FlagType::kString;
constexpr auto kJson = FlagType::kJson;
constexpr auto kList = FlagType::kList;
constexpr auto kFloats = FlagType::kFloats;
constexpr auto kEffective = FlagEffect::kEffective;
constexpr auto kNoEffect = FlagEffect::kNoEffect;
constexpr auto kRefused = FlagEffect::kRefused;

// clang-format off
constexpr Flag kFlags[] = {
// Model
{"model-path", "model", kString, "", "", 0, kEffective, "Model",
 "Directory with config.json, tokenizer.json and *.safetensors, or a .gguf file. Default: the model that `make model` fetches"},
{"served-model-name", "", kString, "", "", 0, kEffective, "Model", "The id in /v1/models and the model_name label of metrics; default: the value of --model-path. No ':'"},
{"tokenizer-path", "", kString, "", "", 1, kEffective, "Model", "Directory or .gguf file to take the tokenizer from; default: the model"},
{"tokenizer-mode", "", kString, "auto", "auto slow", 1, kNoEffect, "Model", "There is one tokenizer implementation"},
{"skip-tokenizer-init", "", kBool, "", "", 1, kRefused, "Model", "Serve token ids only"},
{"chat-template", "", kString, "", "", 1, kEffective, "Model", "Path of a Jinja file; default: the tokenizer's own"},
{"context-length", "", kSize, "", "", 0, kEffective, "Model", "Upper bound of prompt plus output; more than the model's own needs SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"},
{"json-model-override-args", "", kJson, "{}", "", 1, kEffective, "Model", "JSON merged over the model's config.json"},
{"trust-remote-code", "", kBool, "", "", 0, kNoEffect, "Model", "Nothing remote is ever executed here, and no model needs it"},
{"load-format", "", kString, "auto", "auto safetensors gguf dummy pt npcache sharded_state bitsandbytes layered mistral flash_rl remote remote_instance fastsafetensors private runai_streamer", 1, kEffective, "Model", "auto, safetensors, gguf, or dummy: random weights, only config and tokenizer are read. Others are refused"},
{"quantization", "", kString, "", "awq fp8 mxfp8 gptq marlin gptq_marlin awq_marlin bitsandbytes gguf modelopt modelopt_fp8 modelopt_fp4 modelopt_mixed petit_nvfp4 w8a8_int8 w8a8_fp8 moe_wna16 qoq w4afp8 mxfp4 auto-round compressed-tensors unquant quark", 1, kEffective, "Model", "Taken from the checkpoint; a value that contradicts it is an error"},
{"dtype", "", kString, "auto", "auto half float16 bfloat16 float float32", 1, kNoEffect, "Model", "Activations are float32 always; weights keep the checkpoint's type"},
{"kv-cache-dtype", "", kString, "auto", "auto f32 float32 f16 float16 bf16 bfloat16 fp8_e5m2 fp8_e4m3 fp4_e2m1", 1, kEffective, "Model", "auto: f32 for F32 checkpoints, else f16; fp8_e4m3 for latent attention (DeepSeek) only; fp8_e5m2 and fp4 are refused"},
{"revision", "", kString, "", "", 1, kNoEffect, "Model", "The model is a local path"},
{"download-dir", "", kString, "", "", 1, kNoEffect, "Model", "The model is a local path"},
{"weight-version", "", kString, "default", "", 1, kEffective, "Model", "Echoed in response metadata and model info"},
// HTTP
{"host", "", kString, "127.0.0.1", "", 0, kEffective, "HTTP server", "Address to bind: 127.0.0.1, 0.0.0.0, ::"},
{"port", "", kInt, "30000", "", 0, kEffective, "HTTP server", "Port shared by API, health, metrics and chat page"},
{"api-key", "", kString, "", "", 1, kEffective, "HTTP server", "Requests need Authorization: Bearer KEY", false, true},
{"admin-api-key", "", kString, "", "", 1, kEffective, "HTTP server", "Control endpoints need this key", false, true},
{"fastapi-root-path", "", kString, "", "", 1, kNoEffect, "HTTP server", "Routes do not depend on it; let the proxy strip the prefix"},
{"ssl-keyfile", "", kString, "", "", 1, kRefused, "HTTP server", "HTTPS on the same port"},
{"ssl-certfile", "", kString, "", "", 1, kRefused, "HTTP server", "HTTPS on the same port"},
{"ssl-ca-certs", "", kString, "", "", 1, kRefused, "HTTP server", "Client certificates"},
{"ssl-keyfile-password", "", kString, "", "", 1, kRefused, "HTTP server", "Password of the key file", false, true},
{"skip-server-warmup", "", kBool, "", "", 1, kEffective, "HTTP server", "No warm-up request before the ready line"},
{"warmups", "", kString, "", "", 1, kNoEffect, "HTTP server", "There is one warm-up request"},
{"io-threads", "", kInt, "1", "", 1, kEffective, "HTTP server", "Threads that own connections", true},
{"worker-threads", "", kInt, "1", "", 1, kEffective, "HTTP server", "Threads that parse, render templates and tokenise large requests", true},
{"max-connections", "", kInt, "16384", "", 1, kEffective, "HTTP server", "Further connections are closed at once", true},
{"strict-model-name", "", kBool, "", "", 1, kEffective, "HTTP server", "404 for requests that name another model", true},
// Memory and scheduling
{"threads", "", kInt, "0", "", 1, kEffective, "Memory and scheduling", "Compute threads; 0: one per usable CPU", true},
{"isa", "", kString, "auto", "auto ref avx2 avx512", 1, kEffective, "Memory and scheduling", "Kernels to use; auto times the supported ones", true},
{"exact-activations", "", kBool, "", "", 1, kEffective, "Memory and scheduling", "Multiply with float32 activations rather than rounding these to 8 bits (GGUF-quantised weights) or BF16 (block FP8, where the CPU gains by it): slower, the reference's numbers", true},
{"fp8-as-int8", "", kBool, "", "", 1, kEffective, "Memory and scheduling", "Compute block-FP8 weights (DeepSeek) as int8 by int8: quicker prefill, both sides rounded; no effect with --exact-activations", true},
{"mem-fraction-static", "", kFloat, "", "", 1, kEffective, "Memory and scheduling", "Fraction of the usable memory for weights plus KV pool. Default: what 8 full contexts need, and at most half of what is left after loading"},
{"max-total-tokens", "", kSize, "", "", 1, kEffective, "Memory and scheduling", "KV pool size in tokens; default: see --mem-fraction-static"},
{"max-running-requests", "", kInt, "256", "", 1, kEffective, "Memory and scheduling", "Requests that decode at a time; others wait. 48 with speculation unless given"},
{"max-queued-requests", "", kInt, "", "", 1, kEffective, "Memory and scheduling", "Waiting requests; more get 503"},
{"chunked-prefill-size", "", kInt, "", "", 1, kEffective, "Memory and scheduling", "Prompt tokens per step; -1: whole prompts. Default 512"},
{"max-prefill-tokens", "", kSize, "16384", "", 1, kEffective, "Memory and scheduling", "Prompt tokens of one prefill batch; at least the context length is allowed"},
{"page-size", "", kInt, "16", "", 1, kEffective, "Memory and scheduling", "KV tokens per page; prefix hits are whole pages"},
{"schedule-policy", "", kString, "fcfs", "lpm random fcfs dfs-weight lof priority routing-key", 1, kEffective, "Memory and scheduling", "Order of the queue: fcfs first come, lpm longest cached prefix, dfs-weight prefix tree, lof longest output, random. priority and routing-key are refused; see --enable-priority-scheduling"},
{"schedule-conservativeness", "", kFloat, "1.0", "", 1, kEffective, "Memory and scheduling", "At least 0; larger: assume longer outputs, retract less"},
{"enable-priority-scheduling", "", kBool, "", "", 1, kEffective, "Memory and scheduling", "Honour the requests' priority; needs policy fcfs or lof"},
{"schedule-low-priority-values-first", "", kBool, "", "", 1, kEffective, "Memory and scheduling", "Smaller priority values first"},
{"priority-scheduling-preemption-threshold", "", kInt, "10", "", 1, kEffective, "Memory and scheduling", "Priority difference from which a running request is pushed back"},
{"disable-priority-preemption", "", kBool, "", "", 1, kEffective, "Memory and scheduling", "Priorities order the queue only"},
{"default-priority-value", "", kInt, "0", "", 1, kRefused, "Memory and scheduling", "Priority of requests that name none"},
{"abort-on-priority-when-disabled", "", kBool, "", "", 1, kRefused, "Memory and scheduling", "Refuse requests with a priority while priorities are off"},
{"retraction-policy", "", kString, "length", "length priority", 1, kEffective, "Memory and scheduling", "Who is pushed back when the KV pool is full"},
{"disable-radix-cache", "", kBool, "", "", 1, kEffective, "Memory and scheduling", "No prefix reuse"},
{"radix-eviction-policy", "", kString, "lru", "lru lfu slru priority fifo mru filo", 1, kRefused, "Memory and scheduling", "Which prefixes leave the cache first"},
{"disable-chunked-prefix-cache", "", kBool, "", "", 1, kNoEffect, "Memory and scheduling", "Chunks and prefixes share one path"},
{"disable-overlap-schedule", "", kBool, "", "", 1, kNoEffect, "Memory and scheduling", "Host work between steps takes microseconds"},
{"enable-mixed-chunk", "", kBool, "", "", 1, kNoEffect, "Memory and scheduling", "Prefill and decode always share a step"},
{"num-continuous-decode-steps", "", kInt, "1", "", 1, kNoEffect, "Memory and scheduling", "Every step is scheduled"},
{"random-seed", "", kInt, "", "", 1, kEffective, "Memory and scheduling", "Seed of requests that name none; default: random"},
{"enable-deterministic-inference", "", kBool, "", "", 1, kEffective, "Memory and scheduling", "One form of latent attention (DeepSeek) for prompts of any length, so that no bit of an output depends on chunks or cache; other families need no flag for it"},
{"watchdog-timeout", "", kFloat, "300", "", 1, kEffective, "Memory and scheduling", "Seconds after which a step that does not end ends the process; 0: off"},
{"soft-watchdog-timeout", "", kFloat, "", "", 1, kEffective, "Memory and scheduling", "Seconds after which a slow step is reported"},
{"device", "", kString, "auto", "auto cpu cuda hip xpu hpu npu musa mps", 1, kEffective, "Memory and scheduling", "auto or cpu; others are refused"},
{"base-gpu-id", "", kInt, "0", "", 1, kNoEffect, "Memory and scheduling", "No GPU is used"},
{"gpu-id-step", "", kInt, "1", "", 1, kNoEffect, "Memory and scheduling", "No GPU is used"},
{"numa-node", "", kList, "", "", 1, kNoEffect, "Memory and scheduling", "Use numactl to bind the process"},
{"delete-ckpt-after-loading", "", kBool, "", "", 1, kNoEffect, "Memory and scheduling", "Checkpoints are never deleted"},
{"weight-loader-disable-mmap", "", kBool, "", "", 1, kNoEffect, "Memory and scheduling", "Weights are read through mmap"},
{"weight-loader-prefetch-checkpoints", "", kBool, "", "", 1, kNoEffect, "Memory and scheduling", "Files are read ahead always"},
{"weight-loader-prefetch-num-threads", "", kInt, "4", "", 1, kNoEffect, "Memory and scheduling", "Loading uses --threads"},
// API behaviour
{"sampling-defaults", "", kString, "model", "model openai", 1, kEffective, "API behaviour", "Values where a request is silent: the model's generation_config.json, or OpenAI's"},
{"preferred-sampling-params", "", kJson, "", "", 1, kEffective, "API behaviour", "JSON object beneath the request's sampling values"},
{"default-chat-template-kwargs", "", kJson, "", "", 1, kEffective, "API behaviour", "JSON object beneath the request's chat_template_kwargs"},
{"allow-auto-truncate", "", kBool, "", "", 1, kEffective, "API behaviour", "Clip too long inputs and outputs rather than refuse them"},
{"enable-cache-report", "", kBool, "", "", 1, kEffective, "API behaviour", "Fill usage.prompt_tokens_details.cached_tokens"},
{"stream-interval", "", kInt, "1", "", 1, kEffective, "API behaviour", "First token at once, then every n"},
{"incremental-streaming-output", "stream-output", kBool, "", "", 1, kEffective, "API behaviour", "/generate streams deltas rather than cumulative text"},
{"stream-response-default-include-usage", "", kBool, "", "", 1, kEffective, "API behaviour", "A usage chunk even without stream_options"},
{"tool-call-parser", "", kString, "", "auto deepseekv3 deepseekv31 deepseekv32 deepseekv4 qwen qwen25 qwen3_coder llama3 mistral pythonic hermes kimi_k2 glm glm45 glm47 gpt-oss step3 minimax-m2 mimo interns1", 1, kRefused, "API behaviour", "Parses tool calls out of the text"},
{"reasoning-parser", "", kString, "", "auto deepseek-r1 deepseek-v3 qwen3 qwen3-thinking glm45 interns1 kimi minimax nemotron_3 step3", 1, kEffective, "API behaviour", "Separates reasoning_content from content in chat answers; auto: deepseek-r1 if the tokenizer has its closing tag. Default: thinking stays in the content"},
{"grammar-backend", "", kString, "xgrammar", "xgrammar outlines llguidance none", 1, kNoEffect, "API behaviour", "Constrained requests get 400 in this version"},
{"constrained-json-whitespace-pattern", "", kString, "", "", 1, kNoEffect, "API behaviour", "Constrained requests get 400 in this version"},
{"constrained-json-disable-any-whitespace", "", kBool, "", "", 1, kNoEffect, "API behaviour", "Constrained requests get 400 in this version"},
{"enable-custom-logit-processor", "", kBool, "", "", 1, kRefused, "API behaviour", "Python code in requests is never executed"},
{"enable-return-hidden-states", "", kBool, "", "", 1, kRefused, "API behaviour", "Return hidden states"},
{"is-embedding", "", kBool, "", "", 1, kRefused, "API behaviour", "Serve embeddings"},
{"compat", "", kString, "", "0.4", 1, kRefused, "API behaviour", "Defaults of an older SGLang release", true},
{"ollama-port", "", kInt, "", "", 1, kRefused, "API behaviour", "A second port for Ollama clients", true},
// Observability
{"log-level", "", kString, "info", "debug info warning error critical", 1, kEffective, "Logs and metrics", "Least severe level that is logged"},
{"log-level-http", "", kString, "", "debug info warning error critical", 1, kEffective, "Logs and metrics", "The same for the line per HTTP request; default: --log-level"},
{"log-requests", "", kBool, "", "", 1, kEffective, "Logs and metrics", "Log requests"},
{"log-requests-level", "", kInt, "2", "0 1 2 3", 1, kEffective, "Logs and metrics", "0 metadata, 1 and sampling parameters, 2 and truncated text, 3 and full text"},
{"log-requests-format", "", kString, "text", "text json", 1, kEffective, "Logs and metrics", "Lines, or one JSON object per line"},
{"log-requests-target", "", kList, "stdout", "", 1, kNoEffect, "Logs and metrics", "Request logs go where the log goes"},
{"decode-log-interval", "", kInt, "40", "", 1, kEffective, "Logs and metrics", "Decode steps between \"Decode batch\" lines"},
{"crash-dump-folder", "", kString, "", "", 1, kRefused, "Logs and metrics", "Keep the last requests for a crash dump"},
{"enable-metrics", "", kBool, "", "", 0, kEffective, "Logs and metrics", "Serve /metrics"},
{"metrics-prefix-style", "", kString, "colon", "colon underscore both", 1, kEffective, "Logs and metrics", "sglang:name, sglang_name, or both", true},
{"bucket-time-to-first-token", "", kFloats, "", "", 1, kEffective, "Logs and metrics", "Ascending bucket edges in seconds"},
{"bucket-inter-token-latency", "", kFloats, "", "", 1, kEffective, "Logs and metrics", "Ascending bucket edges in seconds"},
{"bucket-e2e-request-latency", "", kFloats, "", "", 1, kEffective, "Logs and metrics", "Ascending bucket edges in seconds"},
{"prompt-tokens-buckets", "", kList, "", "", 1, kNoEffect, "Logs and metrics", "The standard edges are used"},
{"generation-tokens-buckets", "", kList, "", "", 1, kNoEffect, "Logs and metrics", "The standard edges are used"},
{"tokenizer-metrics-custom-labels-header", "", kString, "x-custom-labels", "", 1, kNoEffect, "Logs and metrics", "Metrics carry the standard labels"},
{"tokenizer-metrics-allowed-custom-labels", "", kList, "", "", 1, kNoEffect, "Logs and metrics", "Metrics carry the standard labels"},
{"extra-metric-labels", "", kString, "", "", 1, kNoEffect, "Logs and metrics", "Metrics carry the standard labels"},
{"enable-trace", "", kBool, "", "", 1, kNoEffect, "Logs and metrics", "No spans are exported"},
{"otlp-traces-endpoint", "oltp-traces-endpoint", kString, "localhost:4317", "", 1, kNoEffect, "Logs and metrics", "No spans are exported"},
// Several devices or nodes
{"tp-size", "tensor-parallel-size tp", kInt, "1", "", 0, kEffective, "Parallelism", "Ranks over all nodes, each with its part of every layer; a multiple of --nnodes. Ranks of one node are threads of one process and share --threads"},
{"dp-size", "data-parallel-size dp", kInt, "1", "", 1, kEffective, "Parallelism", "With --enable-dp-attention: groups of ranks that attend, and keep KV pages, for different requests; divides --tp-size. Replicas without it are not available: start several servers"},
{"pp-size", "pipeline-parallel-size", kInt, "1", "", 1, kEffective, "Parallelism", "Pipeline stages; only 1 is available"},
{"ep-size", "expert-parallel-size ep", kInt, "1", "", 1, kEffective, "Parallelism", "Groups of ranks that hold different experts; a divisor of --tp-size"},
{"enable-ep-moe", "enable-deepep-moe", kBool, "", "", 1, kEffective, "Parallelism", "The same as --ep-size with the value of --tp-size"},
{"nnodes", "", kInt, "1", "", 0, kEffective, "Parallelism", "Number of nodes, one process on each; default: LWS_GROUP_SIZE, else 1"},
{"node-rank", "", kInt, "0", "", 0, kEffective, "Parallelism", "This node's index, from 0; node 0 serves the API. Default: LWS_WORKER_INDEX, the index in the pod's name, POD_INDEX, else 0"},
{"dist-init-addr", "nccl-init-addr", kString, "", "", 0, kEffective, "Parallelism", "HOST:PORT where node 0 waits for the others; needed with several nodes. Default: LWS_LEADER_ADDRESS, port 20000. Set CAPSTAN_GROUP_TOKEN to a secret that all nodes share"},
{"dist-timeout", "", kInt, "", "", 1, kEffective, "Parallelism", "Seconds until nodes that have not found each other give up; default: never"},
{"heartbeat-timeout", "", kFloat, "15", "", 1, kEffective, "Parallelism", "Seconds without a sign of life after which a node ends the group", true},
{"comm-transport", "", kString, "auto", "auto shm tcp ucx", 1, kEffective, "Parallelism", "Between nodes: shm, for processes of one machine; tcp; ucx, for RDMA; or auto: shm where possible, else tcp, and a line in the log where every node has RDMA devices that ucx could use. GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME choose the network interface", true},
{"enable-dp-attention", "", kBool, "", "", 1, kEffective, "Parallelism", "Attention in --dp-size groups of ranks, each for its own requests: room for as many more tokens where ranks would keep the same (DeepSeek), for more attention weights on each; all else is computed together"},
{"enable-dp-lm-head", "", kBool, "", "", 1, kNoEffect, "Parallelism", "There is one replica"},
{"load-balance-method", "", kString, "auto", "auto round_robin follow_bootstrap_room total_requests total_tokens shortest_queue minimum_tokens decode_round_robin", 1, kEffective, "Parallelism", "Which group of --dp-size gets a request; auto: the one with the fewest. decode_round_robin and follow_bootstrap_room are round_robin"},
{"disaggregation-mode", "", kString, "null", "null prefill decode", 2, kRefused, "Parallelism", "Separate prefill and decode servers"},
// Speculation
{"speculative-algorithm", "", kString, "", "EAGLE EAGLE3 NEXTN STANDALONE NGRAM LOOKAHEAD DFLASH FROZEN_KV_MTP", 1, kEffective, "Speculative decoding", "Guesses what follows and verifies several tokens in a step; the output stays the same. NEXTN (or EAGLE): by the checkpoint's multi-token prediction layer (DeepSeek-V3, R1); NGRAM: from the request's own text. The others are not available yet"},
{"speculative-num-draft-tokens", "", kInt, "", "", 1, kEffective, "Speculative decoding", "Most tokens of a request that a step verifies, the last known one included; fewer where more would make steps slower than they gain. Default: 12 with NGRAM; with NEXTN always --speculative-num-steps plus 1"},
{"speculative-draft-model-path", "speculative-draft-model", kString, "", "", 1, kRefused, "Speculative decoding", "Draft weights"},
{"speculative-num-steps", "", kInt, "", "", 1, kEffective, "Speculative decoding", "Most tokens that NEXTN drafts for a request, one after the other; default: 3"},
{"speculative-eagle-topk", "", kInt, "", "", 1, kEffective, "Speculative decoding", "Branches of NEXTN's drafts; only 1, a chain"},
{"speculative-accept-threshold-single", "", kFloat, "1.0", "", 1, kNoEffect, "Speculative decoding", "Drafts are accepted only where the model writes them anyway"},
{"speculative-accept-threshold-acc", "", kFloat, "1.0", "", 1, kNoEffect, "Speculative decoding", "Drafts are accepted only where the model writes them anyway"},
{"speculative-token-map", "", kString, "", "", 1, kNoEffect, "Speculative decoding", "Vocabulary of a draft model, and there is none"},
// Adapters, cache tiers
{"enable-hierarchical-cache", "enable-hicache", kBool, "", "", 1, kRefused, "Not available yet", "Host and disk tier of the KV cache"},
{"hicache-ratio", "", kFloat, "2.0", "", 1, kNoEffect, "Not available yet", "No second cache tier"},
{"hicache-size", "", kInt, "0", "", 1, kNoEffect, "Not available yet", "No second cache tier"},
{"hicache-write-policy", "", kString, "write_through", "write_back write_through write_through_selective", 1, kNoEffect, "Not available yet", "No second cache tier"},
{"hicache-io-backend", "", kString, "kernel", "", 1, kNoEffect, "Not available yet", "No second cache tier"},
{"hicache-mem-layout", "", kString, "page_first", "", 1, kNoEffect, "Not available yet", "No second cache tier"},
{"hicache-storage-backend", "", kString, "", "", 1, kRefused, "Not available yet", "Third cache tier"},
{"hicache-storage-prefetch-policy", "", kString, "timeout", "", 1, kNoEffect, "Not available yet", "No second cache tier"},
{"enable-lora", "", kBool, "", "", 1, kRefused, "Not available yet", "LoRA adapters"},
{"lora-paths", "", kList, "", "", 1, kRefused, "Not available yet", "LoRA adapters"},
{"max-loras-per-batch", "", kInt, "8", "", 1, kNoEffect, "Not available yet", "No adapters"},
{"max-lora-rank", "", kInt, "", "", 1, kNoEffect, "Not available yet", "No adapters"},
{"lora-target-modules", "", kList, "", "", 1, kNoEffect, "Not available yet", "No adapters"},
// Files
{"config", "", kString, "", "", 1, kEffective, "Configuration", "YAML mapping of flag names to values, as if placed before the command line"},
};
// clang-format on

std::vector<Flag> join_tables() {
  std::vector<Flag> all(std::begin(kFlags), std::end(kFlags));
  for (const Flag& flag : foreign_flags()) all.push_back(flag);
  return all;
}

}  // namespace

std::span<const Flag> documented_flags() { return kFlags; }

std::span<const Flag> all_flags() {
  static const std::vector<Flag> all = join_tables();
  return all;
}

std::vector<std::string_view> split_words(std::string_view words) {
  std::vector<std::string_view> out;
  while (!words.empty()) {
    const size_t space = words.find(' ');
    if (space != 0) out.push_back(words.substr(0, space));
    if (space == std::string_view::npos) break;
    words.remove_prefix(space + 1);
  }
  return out;
}

}  // namespace capstan::app
