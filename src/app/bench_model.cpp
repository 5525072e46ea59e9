#include "app/bench_model.h"

#include <algorithm>
#include <chrono>
#include <random>

#include "model/kv_store.h"
#include "model/weights.h"

namespace capstan::app {

using Clock = std::chrono::steady_clock;

static double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

Result<BenchModel> load_bench_model(const BenchOptions& options) {
  BenchModel loaded;
  const auto start = Clock::now();
  CAPSTAN_ASSIGN(auto opened, model::Checkpoint::open(options.model_path, options.overrides));
  std::shared_ptr<const model::Checkpoint> checkpoint = std::move(opened);
  loaded.pool = std::make_unique<platform::ThreadPool>(options.threads);
  kernels::CpuOpsOptions ops_options;
  ops_options.quantise_activations = !options.exact_activations;
  ops_options.fp8_as_int8 = options.fp8_as_int8;
  if (options.isa != "auto") {
    for (const kernels::Isa isa : kernels::supported_isas()) {
      if (kernels::isa_name(isa) == options.isa) ops_options.isa = isa;
    }
    if (!ops_options.isa) {
      return invalid_argument("--isa " + options.isa + ": this CPU does not support it", "isa");
    }
  }
  CAPSTAN_ASSIGN(loaded.ops, kernels::make_cpu_ops(ops_options, *loaded.pool));
  model::LoadOptions load_options;
  load_options.dummy_weights = options.dummy_weights;
  load_options.dummy_seed = options.seed;
  CAPSTAN_ASSIGN(loaded.model,
                 model::load_model(checkpoint, loaded.ops, *loaded.pool, load_options));
  loaded.load_seconds = seconds_since(start);
  if (options.kv_cache_dtype == "float32") loaded.kv_dtype = DType::kF32;
  if (options.kv_cache_dtype == "bfloat16") loaded.kv_dtype = DType::kBF16;
  return loaded;
}

double body_ops_per_token(const model::ModelConfig& config) {
  return 2.0 * static_cast<double>(model::active_matrix_elements(config));
}

double head_ops_per_token(const model::ModelConfig& config) {
  return 2.0 * static_cast<double>(config.hidden_size) * static_cast<double>(config.vocab_size);
}

namespace {

/// Sequences with pages of their own and no cache in common, advanced step by step.
class Sequences {
 public:
  static Result<Sequences> create(model::Model& model, DType kv_dtype, int page_size, int count,
                                  int length) {
    Sequences s(model, page_size, count, length);
    CAPSTAN_ASSIGN(auto store, model::KvStore::create(model.config(), s.pages_each_ * count,
                                                      page_size, kv_dtype));
    s.store_ = std::make_unique<model::KvStore>(std::move(store));
    return s;
  }

  /// One step with `rows` further tokens of every sequence from `first` to `first + count`; the
  /// last token of each is asked for logits.
  Status step(int first, int count, int rows, std::mt19937_64& rng) {
    const auto total = static_cast<size_t>(count) * static_cast<size_t>(rows);
    tokens_.resize(total);
    positions_.resize(total);
    slots_.resize(total);
    slices_.resize(static_cast<size_t>(count));
    logit_rows_.resize(static_cast<size_t>(count));
    std::uniform_int_distribution<int32_t> any_token(
        0, static_cast<int32_t>(model_->config().vocab_size) - 1);
    size_t row = 0;
    for (int s = 0; s < count; ++s) {
      const int sequence = first + s;
      int& length = lengths_[static_cast<size_t>(sequence)];
      const int32_t* pages = pages_.data() + static_cast<size_t>(sequence) * pages_each_;
      kernels::SequenceSlice& slice = slices_[static_cast<size_t>(s)];
      slice.q_begin = static_cast<int32_t>(row);
      slice.q_len = rows;
      slice.pages = pages;
      for (int r = 0; r < rows; ++r, ++row, ++length) {
        tokens_[row] = any_token(rng);
        positions_[row] = length;
        slots_[row] =
            static_cast<int64_t>(pages[length / page_size_]) * page_size_ + length % page_size_;
      }
      slice.kv_len = length;
      logit_rows_[static_cast<size_t>(s)] = static_cast<int32_t>(row) - 1;
    }
    const int64_t vocab = model_->config().vocab_size;
    logits_.resize(static_cast<size_t>(count) * static_cast<size_t>(vocab));
    const model::ForwardBatch batch{tokens_, positions_, slots_, slices_, logit_rows_};
    return model_->forward(batch, *store_, MatrixView{logits_.data(), count, vocab, vocab});
  }

  void forget(int sequence) { lengths_[static_cast<size_t>(sequence)] = 0; }

 private:
  Sequences(model::Model& model, int page_size, int count, int length)
      : model_(&model), page_size_(page_size), pages_each_((length + page_size - 1) / page_size) {
    lengths_.resize(static_cast<size_t>(count));
    pages_.resize(static_cast<size_t>(count) * static_cast<size_t>(pages_each_));
    for (size_t i = 0; i < pages_.size(); ++i) pages_[i] = static_cast<int32_t>(i);
  }

  model::Model* model_;
  int page_size_;
  int pages_each_;
  std::unique_ptr<model::KvStore> store_;
  std::vector<int> lengths_;    // tokens each sequence holds
  std::vector<int32_t> pages_;  // pages_each_ per sequence
  std::vector<int32_t> tokens_, positions_, logit_rows_;
  std::vector<int64_t> slots_;
  std::vector<kernels::SequenceSlice> slices_;
  std::vector<float> logits_;
};

std::string share(double value, double roof) {
  return roof > 0 ? format("%.0f%%", 100.0 * value / roof) : std::string("-");
}

std::string shares_of_peaks(double ops, const MachineRoofs& roofs) {
  std::string out = share(ops, roofs.int8_ops_per_s) + " of INT8, ";
  if (roofs.bf16_ops_per_s > 0) out += share(ops, roofs.bf16_ops_per_s) + " of BF16, ";
  return out + share(ops, roofs.fp32_ops_per_s) + " of FP32";
}

Status fits(const model::ModelConfig& config, int tokens) {
  if (config.max_position_embeddings > 0 && tokens > config.max_position_embeddings) {
    return invalid_argument(
        format("prompt and output are %d tokens, the model's context length is %lld; choose a "
               "smaller --prompt-len or --output-len",
               tokens, static_cast<long long>(config.max_position_embeddings)),
        "prompt-len");
  }
  return {};
}

}  // namespace

Result<std::vector<BenchRow>> bench_decode(BenchModel& loaded, const BenchOptions& options,
                                           const MachineRoofs& roofs) {
  model::Model& model = *loaded.model;
  const int prompt = options.prompt_length(BenchOptions::Kind::kDecode);
  const int output = options.output_length(BenchOptions::Kind::kDecode);
  CAPSTAN_RETURN_IF_ERROR(fits(model.config(), prompt + output + 1));
  std::vector<BenchRow> rows;
  for (const int batch : options.batches) {
    std::mt19937_64 rng(options.seed);
    CAPSTAN_ASSIGN(auto sequences, Sequences::create(model, loaded.kv_dtype, options.page_size,
                                                     batch, prompt + output + 1));
    for (int s = 0; s < batch; ++s) CAPSTAN_RETURN_IF_ERROR(sequences.step(s, 1, prompt, rng));
    CAPSTAN_RETURN_IF_ERROR(sequences.step(0, batch, 1, rng));  // warm: buffers of this shape
    std::vector<double> steps;
    const auto start = Clock::now();
    for (int i = 0; i < output; ++i) {
      const auto begin = Clock::now();
      CAPSTAN_RETURN_IF_ERROR(sequences.step(0, batch, 1, rng));
      steps.push_back(seconds_since(begin));
    }
    const double seconds = seconds_since(start);
    const double rate = batch * output / seconds;
    const double bytes = static_cast<double>(model.weight_bytes_per_token()) * output / seconds;
    const double ops =
        (body_ops_per_token(model.config()) + head_ops_per_token(model.config())) * rate;
    BenchRow row;
    row.name = format("decode, batch %d", batch);
    row.values = {{"tok_per_s", rate},
                  {"step_p50_ms", 1e3 * percentile(steps, 50)},
                  {"step_p99_ms", 1e3 * percentile(steps, 99)},
                  {"weight_bytes_per_s", bytes},
                  {"ops_per_s", ops}};
    row.text = format(
        "%8.1f tok/s  step %.2f ms (p99 %.2f)  weights %.1f GB/s, %s of DRAM  "
        "%.0f GOP/s, %s",
        rate, 1e3 * percentile(steps, 50), 1e3 * percentile(steps, 99), bytes / 1e9,
        share(bytes, roofs.read_bytes_per_s).c_str(), ops / 1e9,
        shares_of_peaks(ops, roofs).c_str());
    rows.push_back(std::move(row));
  }
  return rows;
}

Result<std::vector<BenchRow>> bench_prefill(BenchModel& loaded, const BenchOptions& options,
                                            const MachineRoofs& roofs) {
  model::Model& model = *loaded.model;
  const int prompt = options.prompt_length(BenchOptions::Kind::kPrefill);
  CAPSTAN_RETURN_IF_ERROR(fits(model.config(), prompt));
  CAPSTAN_ASSIGN(auto sequences,
                 Sequences::create(model, loaded.kv_dtype, options.page_size, 1, prompt));
  std::mt19937_64 rng(options.seed);
  std::vector<double> runs;
  for (int i = 0; i < options.repeats + 1; ++i) {  // the first one warms up
    sequences.forget(0);
    const auto start = Clock::now();
    for (int done = 0; done < prompt;) {
      const int part = std::min(options.chunk, prompt - done);
      CAPSTAN_RETURN_IF_ERROR(sequences.step(0, 1, part, rng));
      done += part;
    }
    if (i > 0) runs.push_back(seconds_since(start));
  }
  const double seconds = percentile(runs, 50);
  const double rate = prompt / seconds;
  const double ops = body_ops_per_token(model.config()) * rate;
  BenchRow row;
  row.name = format("prefill, %d tokens", prompt);
  row.values = {{"tok_per_s", rate}, {"seconds", seconds}, {"ops_per_s", ops}};
  row.text = format("%8.1f tok/s  %.1f ms  %.0f GOP/s, %s", rate, 1e3 * seconds, ops / 1e9,
                    shares_of_peaks(ops, roofs).c_str());
  return std::vector<BenchRow>{std::move(row)};
}

}  // namespace capstan::app
