// load_model: packs weights job by job, several at a time.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <new>
#include <optional>

#include "model/checkpoint.h"
#include "model/decoder.h"
#include "model/weights.h"
#include "platform/cpu.h"
#include "quant/codecs.h"

namespace capstan::model {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kProgressInterval = std::chrono::milliseconds(100);

/// A weight's view with what keeps it alive: nothing for mapped files, a buffer for dummies.
struct Loaded {
  TensorView view;
  AlignedBuffer storage;
};

/// Hands out weights by name: mapped ones, checked before by check_weights(), or random ones.
class Source {
 public:
  Source(const Checkpoint& checkpoint, const LoadOptions& options)
      : checkpoint_(checkpoint), dummy_(options.dummy_weights), seed_(options.dummy_seed) {}

  /// Bytes that loading this weight reads or makes.
  size_t bytes(const WeightSpec& spec) const {
    if (!dummy_) return checkpoint_.find(spec.name)->bytes();
    return empty_view(spec).bytes();
  }

  Result<Loaded> load(const WeightSpec& spec) const {
    Loaded loaded;
    if (!dummy_) {
      loaded.view = *checkpoint_.find(spec.name);
      return loaded;
    }
    loaded.view = empty_view(spec);
    loaded.storage = AlignedBuffer(loaded.view.bytes());
    loaded.view.data = loaded.storage.data();
    CAPSTAN_RETURN_IF_ERROR(fill_dummy(spec, loaded.view.dtype, seed_, loaded.storage.data()));
    return loaded;
  }

  Result<std::vector<float>> load_vector(const WeightSpec& spec) const {
    CAPSTAN_ASSIGN(const Loaded loaded, load(spec));
    std::vector<float> values(static_cast<size_t>(loaded.view.elems()));
    quant::dequantize_row(loaded.view.dtype, loaded.view.data, values.data(), loaded.view.elems());
    for (const float v : values) {
      if (!std::isfinite(v)) {
        return data_loss(checkpoint_.path() + ": tensor '" + spec.name + "' holds " +
                         std::to_string(v) + "; the file is damaged");
      }
    }
    return values;
  }

  void done_with(const TensorView& view) const {
    if (!dummy_) checkpoint_.drop_pages(view);
  }

 private:
  TensorView empty_view(const WeightSpec& spec) const {
    TensorView view;
    view.dtype = dummy_dtype(checkpoint_.config(), spec);
    view.shape = spec.shape;
    view.name = spec.name;
    return view;
  }

  const Checkpoint& checkpoint_;
  const bool dummy_;
  const uint64_t seed_;
};

/// One call of pack_linear.
struct PackJob {
  std::vector<WeightSpec> parts, biases;
  bool swiglu_pair = false;
  std::unique_ptr<kernels::LinearWeight>* destination = nullptr;
  size_t bytes = 0;
  Status status;
};

/// Counts bytes and reports them, from whichever thread comes by, one at a time.
class Progress {
 public:
  Progress(const LoadOptions& options, size_t total) : options_(options), total_(total) {}

  void add(size_t bytes) {
    done_ += bytes;
    if (!options_.progress) return;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || Clock::now() - last_ < kProgressInterval) return;
    report();
  }
  void finish() {
    const std::lock_guard lock(mutex_);
    if (options_.progress) report();
  }

 private:
  void report() {
    last_ = Clock::now();
    options_.progress({.bytes_done = done_.load(),
                       .bytes_total = total_,
                       .seconds = std::chrono::duration<double>(last_ - start_).count()});
  }

  const LoadOptions& options_;
  const size_t total_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
  std::atomic<size_t> done_{0};
  std::mutex mutex_;
};

Status pack(const Source& source, kernels::Ops& ops, PackJob& job) {
  std::vector<Loaded> loaded;
  std::vector<TensorView> parts, biases;
  for (const WeightSpec& spec : job.parts) {
    CAPSTAN_ASSIGN(Loaded part, source.load(spec));
    parts.push_back(part.view);
    loaded.push_back(std::move(part));
  }
  // Biases become float vectors here, whatever the file holds.
  std::vector<std::vector<float>> bias_values;
  for (const WeightSpec& spec : job.biases) {
    CAPSTAN_ASSIGN(std::vector<float> values, source.load_vector(spec));
    bias_values.push_back(std::move(values));
    TensorView view;
    view.data = reinterpret_cast<const std::byte*>(bias_values.back().data());
    view.dtype = DType::kF32;
    view.shape = spec.shape;
    view.name = spec.name;
    biases.push_back(std::move(view));
  }
  CAPSTAN_ASSIGN(
      *job.destination,
      ops.pack_linear({.parts = parts, .biases = biases, .swiglu_pair = job.swiglu_pair}));
  for (const TensorView& part : parts) source.done_with(part);
  return {};
}

/// Exceptions must not leave a pool thread, and callers expect errors as values.
template <class F>
Status guarded(const std::string& tensor, size_t bytes, F&& load) noexcept {
  try {
    return load();
  } catch (const std::bad_alloc&) {
    return resource_exhausted("not enough memory to load tensor '" + tensor + "' of " +
                              std::to_string(bytes) +
                              " bytes; free memory or choose a smaller or more quantised model");
  } catch (const std::exception& e) {
    return internal_error("loading tensor '" + tensor + "': " + e.what());
  }
}

/// Norms and the embedding, read by the calling thread; they are small or stay mapped.
Status load_small_weights(const ModelConfig& config, const Source& source,
                          DecoderWeights& weights) {
  CAPSTAN_ASSIGN(Loaded embedding, source.load(embedding_spec(config)));
  weights.embedding = embedding.view;
  weights.embedding_storage = std::move(embedding.storage);
  CAPSTAN_ASSIGN(weights.final_norm, source.load_vector(final_norm_spec(config)));
  weights.layers.resize(static_cast<size_t>(config.num_layers));
  for (int l = 0; l < config.num_layers; ++l) {
    const LayerSpec spec = layer_spec(config, l);
    LayerWeights& layer = weights.layers[static_cast<size_t>(l)];
    CAPSTAN_ASSIGN(layer.input_norm, source.load_vector(spec.input_norm));
    CAPSTAN_ASSIGN(layer.post_attention_norm, source.load_vector(spec.post_attention_norm));
    if (!spec.qk_norm.empty()) {
      CAPSTAN_ASSIGN(layer.q_norm, source.load_vector(spec.qk_norm[0]));
      CAPSTAN_ASSIGN(layer.k_norm, source.load_vector(spec.qk_norm[1]));
    }
  }
  return {};
}

std::vector<PackJob> make_jobs(const ModelConfig& config, const Source& source,
                               DecoderWeights& weights) {
  std::vector<PackJob> jobs;
  jobs.push_back({.parts = {lm_head_spec(config)}, .destination = &weights.lm_head});
  for (int l = 0; l < config.num_layers; ++l) {
    LayerSpec spec = layer_spec(config, l);
    LayerWeights& layer = weights.layers[static_cast<size_t>(l)];
    jobs.push_back({.parts = std::move(spec.qkv),
                    .biases = std::move(spec.qkv_bias),
                    .destination = &layer.qkv});
    jobs.push_back({.parts = {std::move(spec.o)}, .destination = &layer.o});
    jobs.push_back(
        {.parts = std::move(spec.gate_up), .swiglu_pair = true, .destination = &layer.gate_up});
    jobs.push_back({.parts = {std::move(spec.down)}, .destination = &layer.down});
  }
  for (PackJob& job : jobs) {
    for (const WeightSpec& part : job.parts) job.bytes += source.bytes(part);
  }
  // Largest first, so that no thread is left alone with the output matrix at the end.
  std::stable_sort(jobs.begin(), jobs.end(),
                   [](const PackJob& a, const PackJob& b) { return a.bytes > b.bytes; });
  return jobs;
}

/// Weights that cannot fit are refused before the system kills the process for trying.
Status check_memory(const ModelConfig& config, const Source& source, bool dummy) {
  const uint64_t memory = platform::memory_info().total_bytes;
  if (memory == 0) return {};  // unknown
  std::vector<WeightSpec> needed = required_weights(config);
  // A tied table is held twice: packed, and in rows (mapped, unless it is made up).
  if (config.tie_word_embeddings && dummy) needed.push_back(embedding_spec(config));
  uint64_t bytes = 0;
  for (const WeightSpec& w : needed) {
    bytes += source.bytes(w);
    if (bytes > memory) {  // and not one more, as a hostile config's sum would overflow
      return resource_exhausted("the weights take " + std::to_string(bytes) +
                                " bytes or more, but this machine (or its cgroup) has " +
                                std::to_string(memory) +
                                " bytes of memory; choose a smaller or more quantised model");
    }
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Model>> load_model(std::shared_ptr<const Checkpoint> checkpoint,
                                          std::shared_ptr<kernels::Ops> ops,
                                          platform::ThreadPool& pool, const LoadOptions& options) {
  if (!options.dummy_weights) {
    CAPSTAN_RETURN_IF_ERROR(check_weights(*checkpoint));
  }
  const ModelConfig& config = checkpoint->config();
  const Source source(*checkpoint, options);
  CAPSTAN_RETURN_IF_ERROR(check_memory(config, source, options.dummy_weights));
  DecoderWeights weights;
  const WeightSpec embedding = embedding_spec(config);
  CAPSTAN_RETURN_IF_ERROR(guarded(embedding.name, source.bytes(embedding),
                                  [&] { return load_small_weights(config, source, weights); }));
  std::vector<PackJob> jobs = make_jobs(config, source, weights);

  size_t total = 0;
  for (const PackJob& job : jobs) total += job.bytes;
  Progress progress(options, total);
  std::atomic<bool> stop{false}, cancelled{false};
  std::mutex cancel_mutex;  // the callback is called by one thread at a time
  pool.for_each(static_cast<int64_t>(jobs.size()), [&](int64_t i) {
    if (stop) return;
    PackJob& job = jobs[static_cast<size_t>(i)];
    if (options.cancelled) {
      const std::lock_guard lock(cancel_mutex);
      if (options.cancelled()) {
        cancelled = true;
        stop = true;
        return;
      }
    }
    job.status = guarded(job.parts[0].name, job.bytes, [&] { return pack(source, *ops, job); });
    if (!job.status.ok()) stop = true;
    progress.add(job.bytes);
  });
  for (const PackJob& job : jobs) {
    CAPSTAN_RETURN_IF_ERROR(job.status);
  }
  if (cancelled) return Error{ErrorCode::kAborted, "loading was cancelled"};
  progress.finish();

  // A fault maps its neighbours too, also those that were given back before. The embedding is
  // read again row by row as tokens need it.
  checkpoint->drop_all_pages();
  weights.checkpoint = std::move(checkpoint);
  const ModelConfig config_copy = weights.checkpoint->config();
  return std::unique_ptr<Model>(
      std::make_unique<Decoder>(config_copy, std::move(weights), std::move(ops)));
}

}  // namespace capstan::model
