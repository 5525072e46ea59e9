#include "app/model_setup.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "app/load_progress.h"
#include "app/memory_plan.h"
#include "base/log.h"
#include "model/describe.h"
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

bool drafts_with_layer(const ServeOptions& options) {
  return options.engine.speculation.source == engine::SpeculationConfig::Source::kNextn;
}

Result<std::unique_ptr<model::Model>> load_weights(const ServeOptions& options,
                                                   const LoadedModel& parts,
                                                   const std::function<bool()>& cancelled) {
  ProgressReporter reporter(::isatty(STDERR_FILENO) == 1);
  model::LoadOptions load;
  load.dummy_weights = options.load_format == LoadFormat::kDummy;
  load.dummy_seed = options.engine.random_seed;
  load.progress = [&reporter](const model::LoadProgress& p) { reporter.update(p); };
  if (options.deterministic) load.mla_form = kernels::MlaForm::kAbsorbed;
  load.draft = drafts_with_layer(options);
  load.cancelled = cancelled;
  auto model = model::load_model(parts.checkpoint, parts.ops, *parts.pool, load);
  reporter.abandon();
  return model;
}

Status size_kv_pool(ServeOptions& options, const model::ModelConfig& config, size_t weight_bytes,
                    uint64_t available_before) {
  engine::EngineConfig& e = options.engine;
  MemoryPlanInput in;
  in.available_bytes = available_before;
  in.available_now_bytes = platform::memory_info().available_bytes;
  in.weight_bytes = weight_bytes;
  in.bytes_per_token =
      model::KvStore::bytes_per_token(config, e.kv_dtype, drafts_with_layer(options) ? 1 : 0);
  in.context_length = e.scheduler.context_length;
  in.page_size = e.scheduler.page_size;
  in.mem_fraction_static = options.mem_fraction_static;
  in.max_total_tokens = options.max_total_tokens;
  CAPSTAN_ASSIGN(const MemoryPlan plan, plan_memory(in));
  e.scheduler.num_pages = plan.num_pages;
  LOG_INFO("KV cache: {} tokens in {} pages, {}, {} bytes per token, {:.2f} GB at most",
           static_cast<int64_t>(plan.num_pages) * in.page_size, plan.num_pages,
           dtype_info(e.kv_dtype).name, in.bytes_per_token,
           static_cast<double>(plan.kv_bytes) / 1e9);
  if (!plan.warning.empty()) LOG_WARN("{}", plan.warning);
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

Result<LoadedModel> load(ServeOptions& options, const std::string& model_path,
                         const std::function<bool()>& cancelled) {
  std::error_code error;
  if (!fs::exists(model_path, error)) {
    return not_found("--model-path: '" + model_path +
                     "' does not exist; give a directory with config.json and *.safetensors, or a "
                     ".gguf file (models are not fetched by name)");
  }
  LoadedModel out;
  CAPSTAN_ASSIGN(out.checkpoint, model::Checkpoint::open(model_path, options.model_overrides_json));
  const model::ModelConfig& config = out.checkpoint->config();
  const bool is_gguf = out.checkpoint->gguf_vocabulary() != nullptr;
  CAPSTAN_RETURN_IF_ERROR(check_load_format(options.load_format, is_gguf, model_path));
  CAPSTAN_RETURN_IF_ERROR(check_quantization(options.quantization, is_gguf));
  CAPSTAN_RETURN_IF_ERROR(check_speculation(options, *out.checkpoint));
  engine::EngineConfig& e = options.engine;
  CAPSTAN_ASSIGN(e.scheduler.context_length, decide_context_length(options, config));
  CAPSTAN_ASSIGN(e.kv_dtype, decide_kv_dtype(options.kv_cache_dtype, config));
  LOG_INFO("Model {}: {}", model_path, model::describe(*out.checkpoint));

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
  e.token_limit = out.tokenizer->vocab_size();
  if (options.server.reasoning_parser.empty() && out.chat_template != nullptr &&
      out.tokenizer->id_of("</think>")) {
    LOG_INFO(
        "This model may think aloud; --reasoning-parser auto moves its thinking from content to "
        "reasoning_content");
  }
  if (options.sampling_defaults_from_model) {
    if (is_gguf) {
      const model::GenerationDefaults& d = out.checkpoint->generation_defaults();
      out.sampling_defaults = {d.temperature, d.top_p, d.min_p, d.repetition_penalty, d.top_k};
    } else {
      CAPSTAN_ASSIGN(out.sampling_defaults, server::read_generation_config(model_path));
    }
  }
  if (cancelled()) return Error{ErrorCode::kAborted, "stopped while loading"};

  out.pool = std::make_unique<platform::ThreadPool>(options.threads);
  kernels::CpuOpsOptions ops;
  ops.isa = options.isa;
  ops.quantise_activations = !options.exact_activations;
  ops.fp8_as_int8 = options.fp8_as_int8;
  CAPSTAN_ASSIGN(out.ops, kernels::make_cpu_ops(ops, *out.pool));
  LOG_INFO("{} compute threads on {}, kernels {}", out.pool->size(), platform::cpu_model_name(),
           out.ops->name());
  const uint64_t available_before = platform::memory_info().available_bytes;
  CAPSTAN_ASSIGN(auto model, load_weights(options, out, cancelled));
  CAPSTAN_RETURN_IF_ERROR(size_kv_pool(options, config, model->weight_bytes(), available_before));
  e.pool = out.pool.get();
  CAPSTAN_ASSIGN(auto engine, engine::Engine::create(std::move(model), e));
  out.engine = std::move(engine);
  options.server.context_length = e.scheduler.context_length;
  options.server.sampling_defaults = out.sampling_defaults;
  return out;
}

}  // namespace capstan::app
