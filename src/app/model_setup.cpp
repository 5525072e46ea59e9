#include "app/model_setup.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "app/rank_setup.h"
#include "base/log.h"
#include "engine/group_model.h"
#include "model/describe.h"
#include "model/shard.h"
#include "model/weights.h"
#include "platform/cpu.h"

namespace capstan::app {
namespace {

namespace fs = std::filesystem;

Result<std::shared_ptr<const text::Tokenizer>> open_tokenizer(const ServeOptions& options,
                                                              const model::Checkpoint& checkpoint) {
  const std::string& path = options.tokenizer_path;
  if (path.empty()) {
    if (checkpoint.gguf_vocabulary() != nullptr) {
      return text::Tokenizer::from_gguf(*checkpoint.gguf_vocabulary());
    }
    return text::Tokenizer::from_directory(checkpoint.path());
  }
  std::error_code error;
  if (!fs::exists(path, error)) {
    return invalid_argument("--tokenizer-path: '" + path + "' does not exist", "tokenizer-path");
  }
  if (fs::path(path).extension() == ".gguf") {
    CAPSTAN_ASSIGN(const auto file, model::Checkpoint::open(path));
    return text::Tokenizer::from_gguf(*file->gguf_vocabulary());
  }
  return text::Tokenizer::from_directory(path);
}

Result<std::shared_ptr<const text::ChatTemplate>> open_chat_template(
    const ServeOptions& options, const text::Tokenizer& tokenizer) {
  std::string source = tokenizer.chat_template();
  if (!options.chat_template_path.empty()) {
    const std::string& path = options.chat_template_path;
    std::ifstream file(path, std::ios::binary);
    std::stringstream content;
    if (!file || !(content << file.rdbuf())) {
      return invalid_argument("--chat-template: cannot read '" + path +
                                  "'; give the path of a Jinja file (there are no built-in names)",
                              "chat-template");
    }
    source = content.str();
  }
  if (source.empty()) return std::shared_ptr<const text::ChatTemplate>();
  auto compiled =
      text::ChatTemplate::compile(source, {tokenizer.bos_token(), tokenizer.eos_token()});
  if (!compiled.ok()) {
    return Error{
        compiled.error().code,
        (options.chat_template_path.empty() ? "the model's chat template"
                                            : "--chat-template " + options.chat_template_path) +
            " does not compile: " + compiled.error().message,
        "chat-template"};
  }
  return std::shared_ptr<const text::ChatTemplate>(std::move(compiled).value());
}

Status check_load_format(LoadFormat format, bool is_gguf, const std::string& path) {
  if (format == LoadFormat::kGguf && !is_gguf) {
    return invalid_argument("--load-format gguf: " + path + " holds no GGUF file", "load-format");
  }
  if (format == LoadFormat::kSafetensors && is_gguf) {
    return invalid_argument("--load-format safetensors: " + path + " is a GGUF file",
                            "load-format");
  }
  return {};
}

}  // namespace

Result<int> decide_context_length(const ServeOptions& options, const model::ModelConfig& config) {
  const int64_t own = config.max_position_embeddings;
  const int64_t wanted = options.context_length.value_or(own);
  if (wanted > own && !options.allow_longer_context) {
    return invalid_argument(
        "--context-length " + std::to_string(wanted) + " is larger than the model's own " +
            std::to_string(own) +
            "; beyond it the output degrades. Set SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 if "
            "you want it all the same",
        "context-length");
  }
  return static_cast<int>(std::min<int64_t>(wanted, INT32_MAX));
}

Result<DType> decide_kv_dtype(const std::string& flag, const model::ModelConfig& config) {
  if (flag == "auto") return config.weight_dtype == DType::kF32 ? DType::kF32 : DType::kF16;
  if (flag == "f32" || flag == "float32") return DType::kF32;
  if (flag == "f16" || flag == "float16") return DType::kF16;
  if (flag == "bf16" || flag == "bfloat16") return DType::kBF16;
  if (flag == "fp8_e4m3") {
    if (config.has_mla()) return DType::kF8E4M3;
    return invalid_argument(
        "--kv-cache-dtype fp8_e4m3 is for models with latent attention "
        "(DeepSeek), and this one is a " +
            config.architecture_name + "; use auto, f16, bf16 or f32",
        "kv-cache-dtype");
  }
  return invalid_argument("--kv-cache-dtype " + flag + " is not available", "kv-cache-dtype");
}

Status check_quantization(const std::string& flag, bool is_gguf) {
  if (flag.empty() || (flag == "gguf" && is_gguf)) return {};
  return invalid_argument("--quantization " + flag + " contradicts the checkpoint, which is " +
                              (is_gguf ? "a GGUF file" : "not quantised that way") +
                              "; weights are served as they are stored: leave the flag out",
                          "quantization");
}

Status check_speculation(const ServeOptions& options, const model::Checkpoint& checkpoint) {
  if (!drafts_with_layer(options)) return {};
  const model::ModelConfig& config = checkpoint.config();
  constexpr char kRemedy[] =
      "; use --speculative-algorithm NGRAM, which drafts from the text, or leave the flag out";
  if (config.num_nextn_predict_layers == 0) {
    return invalid_argument("--speculative-algorithm NEXTN: this " + config.architecture_name +
                                " has no multi-token prediction layer "
                                "(num_nextn_predict_layers is 0)" +
                                kRemedy,
                            "speculative-algorithm");
  }
  const std::string projection = model::draft_spec(config).projection.name;
  if (options.load_format != LoadFormat::kDummy && checkpoint.find(projection) == nullptr) {
    return invalid_argument(
        "--speculative-algorithm NEXTN: the checkpoint was stored without its "
        "multi-token prediction layer ('" +
            projection + "' is missing)" + kRemedy,
        "speculative-algorithm");
  }
  return {};
}

namespace {

/// Opens and checks what every node does before it joins the others.
Status open_checkpoint(ServeOptions& options, const std::string& model_path, LoadedModel& out) {
  std::error_code error;
  if (!fs::exists(model_path, error)) {
    return not_found("--model-path: '" + model_path +
                     "' does not exist; give a directory with config.json and *.safetensors, or a "
                     ".gguf file (models are not fetched by name)");
  }
  CAPSTAN_ASSIGN(out.checkpoint, model::Checkpoint::open(model_path, options.model_overrides_json));
  const model::ModelConfig& config = out.checkpoint->config();
  const bool is_gguf = out.checkpoint->gguf_vocabulary() != nullptr;
  CAPSTAN_RETURN_IF_ERROR(check_load_format(options.load_format, is_gguf, model_path));
  CAPSTAN_RETURN_IF_ERROR(check_quantization(options.quantization, is_gguf));
  CAPSTAN_RETURN_IF_ERROR(check_speculation(options, *out.checkpoint));
  const ParallelOptions& p = options.parallel;
  CAPSTAN_RETURN_IF_ERROR(
      model::check_shard(config, {p.first_rank(), p.ranks, p.expert_groups, p.attention_groups}));
  engine::EngineConfig& e = options.engine;
  CAPSTAN_ASSIGN(e.scheduler.context_length, decide_context_length(options, config));
  CAPSTAN_ASSIGN(e.kv_dtype, decide_kv_dtype(options.kv_cache_dtype, config));
  options.server.context_length = e.scheduler.context_length;
  LOG_INFO("Model {}: {}", model_path, model::describe(*out.checkpoint));
  return {};
}

/// What the API needs beside the model.
Status open_text(ServeOptions& options, const std::string& model_path, LoadedModel& out) {
  const model::ModelConfig& config = out.checkpoint->config();
  const bool is_gguf = out.checkpoint->gguf_vocabulary() != nullptr;
  CAPSTAN_ASSIGN(out.tokenizer, open_tokenizer(options, *out.checkpoint));
  CAPSTAN_ASSIGN(out.chat_template, open_chat_template(options, *out.tokenizer));
  if (out.chat_template == nullptr) {
    LOG_WARN("The model has no chat template: chat requests get 400, completions work");
  }
  if (out.tokenizer->vocab_size() > config.vocab_size) {
    return data_loss("the tokenizer has " + std::to_string(out.tokenizer->vocab_size()) +
                     " tokens, the model only " + std::to_string(config.vocab_size) +
                     "; they do not belong together");
  }
  options.engine.token_limit = out.tokenizer->vocab_size();
  if (options.server.reasoning_parser.empty() && out.chat_template != nullptr &&
      out.tokenizer->id_of("</think>")) {
    LOG_INFO(
        "This model may think aloud; --reasoning-parser auto moves its thinking from content to "
        "reasoning_content");
  }
  if (options.sampling_defaults_from_model) {
    if (is_gguf) {
      const model::GenerationDefaults& d = out.checkpoint->generation_defaults();
      options.server.sampling_defaults = {d.temperature, d.top_p, d.min_p, d.repetition_penalty,
                                          d.top_k};
    } else {
      CAPSTAN_ASSIGN(options.server.sampling_defaults, server::read_generation_config(model_path));
    }
  }
  return {};
}

/// What the ranks must agree on to compute one model.
std::vector<std::pair<std::string, std::string>> facts(const ServeOptions& o,
                                                       const model::Checkpoint& checkpoint) {
  const auto yes_no = [](bool b) { return std::string(b ? "yes" : "no"); };
  const engine::EngineConfig& e = o.engine;
  const bool dummy = o.load_format == LoadFormat::kDummy;
  constexpr size_t kShownDigits = 16;  // of 64, to be read in a log line
  return {
      {"capstan version", CAPSTAN_VERSION},
      {"model", checkpoint.config().architecture_name},
      {"weights", dummy ? "dummy, seed " + std::to_string(o.dummy_seed)
                        : "digest " + checkpoint.digest().substr(0, kShownDigits)},
      {"--tp-size", std::to_string(o.parallel.ranks)},
      {"--ep-size", std::to_string(o.parallel.expert_groups)},
      {"--dp-size", std::to_string(o.parallel.attention_groups)},
      {"--nnodes", std::to_string(o.parallel.nodes)},
      {"--context-length", std::to_string(e.scheduler.context_length)},
      {"--kv-cache-dtype", std::string(dtype_info(e.kv_dtype).name)},
      {"--page-size", std::to_string(e.scheduler.page_size)},
      {"--speculative-algorithm NEXTN", yes_no(drafts_with_layer(o))},
      {"--exact-activations", yes_no(o.exact_activations)},
      {"--fp8-as-int8", yes_no(o.fp8_as_int8)},
      {"--enable-deterministic-inference", yes_no(o.deterministic)},
  };
}

/// A step that hangs cannot be interrupted, only left; the group gets to know who hung.
std::function<void(const std::string&)> end_stuck_process(RankGroup* group, int rank) {
  constexpr int kStuck = 70;  // EX_SOFTWARE
  if (group == nullptr) return {};
  return [group, rank](const std::string& what) {
    group->fail(rank, internal_error(what + group->who_is_behind()));
    group->wait_end(std::chrono::seconds(3));
    std::_Exit(kStuck);
  };
}

/// Ranks of this node that wait for rank 0's messages.
void start_ranks(const ServeOptions& options, std::vector<LoadedRank>& ranks,
                 std::vector<std::unique_ptr<model::KvStore>>& stores, LoadedModel& out) {
  RankGroup* group = out.group.get();
  const ParallelOptions& p = options.parallel;
  for (size_t i = p.leader() ? 1 : 0; i < ranks.size(); ++i) {
    const int rank = p.first_rank() + static_cast<int>(i);
    engine::RankOptions run;
    run.page_size = options.engine.scheduler.page_size;
    if (!p.leader() && i == 0) run.on_step = [group](uint64_t step) { group->set_step(step); };
    run.on_failure = [group](int r, const Error& why) { group->fail(r, why); };
    run.watchdog.timeout = options.engine.watchdog_timeout;
    run.watchdog.soft_timeout = options.engine.soft_watchdog_timeout;
    run.watchdog.on_fatal = end_stuck_process(group, rank);
    run.watchdog.waiting = [comm = ranks[i].comm] { return comm->clock().inside.load(); };
    engine::RankParts parts;
    parts.comm = ranks[i].comm;
    parts.pool = std::move(ranks[i].pool);
    parts.shard = std::move(ranks[i].model);
    parts.kv = std::move(stores[i]);
    out.ranks.push_back(std::make_unique<engine::RankThread>(std::move(parts), std::move(run)));
  }
}

/// Rank 0's model as the engine takes it: the group behind one interface.
std::unique_ptr<model::Model> group_model(ServeOptions& options,
                                          std::unique_ptr<model::Model> shard, RankGroup* group) {
  engine::TimedCommunicator& comm = group->communicator(0);
  engine::GroupModelOptions run;
  run.page_size = options.engine.scheduler.page_size;
  run.groups = options.parallel.attention_groups;
  run.on_step = [group](uint64_t step) { group->set_step(step); };
  run.on_timings = [group](const std::vector<double>& seconds) { group->note_timings(seconds); };
  run.on_failure = [group](const Error& why) { return group->fail_and_explain(0, why); };
  options.engine.on_fatal = end_stuck_process(group, 0);
  options.engine.waits_for_ranks = [&comm] { return comm.clock().inside.load(); };
  return std::make_unique<engine::GroupModel>(std::move(shard), comm, std::move(run));
}

/// From weights to running ranks, and on the leader the engine.
Status load_and_start(ServeOptions& options, LoadedModel& out,
                      const std::function<bool()>& cancelled) {
  engine::EngineConfig& e = options.engine;
  RankGroup* group = out.group.get();
  const uint64_t available_before = platform::memory_info().available_bytes;
  CAPSTAN_ASSIGN(std::vector<LoadedRank> ranks,
                 load_ranks(options, out.checkpoint, group, cancelled));
  CAPSTAN_RETURN_IF_ERROR(size_kv_pool(options, ranks, available_before, group));
  const bool leader = options.parallel.leader();
  std::vector<std::unique_ptr<model::KvStore>> stores(ranks.size());
  for (size_t i = leader ? 1 : 0; i < ranks.size(); ++i) {
    CAPSTAN_ASSIGN(stores[i], make_kv_store(options, *ranks[i].model));
  }
  if (group != nullptr) CAPSTAN_RETURN_IF_ERROR(check_ranks(ranks, *group));
  if (leader) {
    out.pool = std::move(ranks[0].pool);
    out.ops = ranks[0].ops;
    e.pool = out.pool.get();
  }
  std::unique_ptr<model::Model> first = leader ? std::move(ranks[0].model) : nullptr;
  if (group != nullptr) start_ranks(options, ranks, stores, out);
  if (!leader) return {};
  if (group != nullptr) first = group_model(options, std::move(first), group);
  const ParallelOptions& p = options.parallel;
  if (p.attention_groups > 1) {
    CAPSTAN_ASSIGN(auto kv, make_kv_store(options, *first));
    CAPSTAN_ASSIGN(auto engine, engine::create_dp_engine(std::move(first), std::move(kv),
                                                         p.attention_groups, p.balance, e));
    LOG_INFO("Attention in {} groups of {} ranks, with {} tokens of KV each", p.attention_groups,
             p.ranks / p.attention_groups, int64_t{e.scheduler.num_pages} * e.scheduler.page_size);
    out.engine = std::move(engine);
    return {};
  }
  CAPSTAN_ASSIGN(auto engine, engine::Engine::create(std::move(first), e));
  out.engine = std::move(engine);
  return {};
}

}  // namespace

Status load(ServeOptions& options, const std::string& model_path,
            const std::function<bool()>& cancelled, const std::function<void(RankGroup&)>& joined,
            LoadedModel& out) {
  CAPSTAN_RETURN_IF_ERROR(open_checkpoint(options, model_path, out));
  if (options.parallel.leader()) CAPSTAN_RETURN_IF_ERROR(open_text(options, model_path, out));
  if (cancelled()) return Error{ErrorCode::kAborted, "stopped while loading"};
  if (!options.parallel.split()) return load_and_start(options, out, cancelled);
  CAPSTAN_ASSIGN(out.group,
                 RankGroup::create(options.parallel, facts(options, *out.checkpoint), cancelled));
  RankGroup& group = *out.group;
  if (joined) joined(group);
  const Status status = load_and_start(options, out, [&] { return cancelled() || group.ended(); });
  if (status.ok()) return {};
  if (cancelled()) return Error{ErrorCode::kAborted, "stopped while loading"};
  // Whoever failed says so to the others; those who only heard of it name the culprit.
  return group.fail_and_explain(options.parallel.first_rank(), status.error());
}

}  // namespace capstan::app
