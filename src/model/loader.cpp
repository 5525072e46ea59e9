// load_model: packs weights job by job, several at a time.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <optional>

#include "model/checkpoint.h"
#include "model/decoder.h"
#include "model/sharded_weights.h"
#include "model/weight_source.h"
#include "model/weights.h"
#include "platform/cpu.h"

namespace capstan::model {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kProgressInterval = std::chrono::milliseconds(100);

/// One call of a packing op.
struct PackJob {
  std::vector<WeightSpec> parts, biases;
  bool swiglu_pair = false;
  bool widen = false;  // quantised parts become float32 first
  std::unique_ptr<kernels::LinearWeight>* destination = nullptr;
  std::unique_ptr<kernels::MlaProjection>* projection = nullptr;  // instead of `destination`
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

TensorView float_view(const std::vector<float>& values, const WeightSpec& spec) {
  TensorView view;
  view.data = reinterpret_cast<const std::byte*>(values.data());
  view.dtype = DType::kF32;
  view.shape = slice_shape(spec.slice, spec.shape);
  view.name = spec.name;
  return view;
}

kernels::MlaShape mla_shape(const ModelConfig& c) {
  return {.heads = c.num_heads,
          .nope_dim = c.mla.qk_nope_head_dim,
          .rope_dim = c.mla.qk_rope_head_dim,
          .value_dim = c.mla.v_head_dim,
          .rank = c.mla.kv_lora_rank};
}

Status pack_projection(const ModelConfig& config, const std::vector<LoadedWeight>& loaded,
                       kernels::Ops& ops, PackJob& job) {
  kernels::MlaProjectionSpec spec;
  spec.shape = mla_shape(config);
  if (loaded.size() == 2) {
    spec.k_b = loaded[0].view;
    spec.v_b = loaded[1].view;
  } else {
    spec.kv_b = loaded[0].view;
    spec.kv_b_scale = loaded[0].scales;
  }
  CAPSTAN_ASSIGN(*job.projection, ops.pack_mla(spec));
  return {};
}

Status pack(const ModelConfig& config, const WeightSource& source, kernels::Ops& ops,
            PackJob& job) {
  std::vector<LoadedWeight> loaded;
  std::vector<TensorView> parts, scales, biases;
  // Vectors, and what must not stay quantised, become floats here, whatever the file holds.
  std::vector<std::vector<float>> floats;
  for (const WeightSpec& spec : job.parts) {
    CAPSTAN_ASSIGN(LoadedWeight part, source.load(spec));
    if (job.widen && is_block_quantised(part.view.dtype)) {
      CAPSTAN_ASSIGN(std::vector<float> values, source.load_vector(spec));
      floats.push_back(std::move(values));
      part.view = float_view(floats.back(), spec);
    }
    parts.push_back(part.view);
    scales.push_back(part.scales);
    loaded.push_back(std::move(part));
  }
  for (const WeightSpec& spec : job.biases) {
    CAPSTAN_ASSIGN(std::vector<float> values, source.load_vector(spec));
    floats.push_back(std::move(values));
    biases.push_back(float_view(floats.back(), spec));
  }
  if (job.projection != nullptr) {
    CAPSTAN_RETURN_IF_ERROR(pack_projection(config, loaded, ops, job));
  } else {
    CAPSTAN_ASSIGN(
        *job.destination,
        ops.pack_linear(
            {.parts = parts, .biases = biases, .swiglu_pair = job.swiglu_pair, .scales = scales}));
  }
  for (const LoadedWeight& part : loaded) source.done_with(part);
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

/// Vectors of one layer, and the shape of what the jobs will fill.
Status load_layer_vectors(const LayerSpec& spec, const WeightSource& source, LayerWeights& layer) {
  CAPSTAN_ASSIGN(layer.input_norm, source.load_vector(spec.input_norm));
  CAPSTAN_ASSIGN(layer.post_attention_norm, source.load_vector(spec.post_attention_norm));
  if (spec.gqa) {
    layer.gqa.emplace();
    if (!spec.gqa->qk_norm.empty()) {
      CAPSTAN_ASSIGN(layer.gqa->q_norm, source.load_vector(spec.gqa->qk_norm[0]));
      CAPSTAN_ASSIGN(layer.gqa->k_norm, source.load_vector(spec.gqa->qk_norm[1]));
    }
  }
  if (spec.mla) {
    layer.mla.emplace();
    if (spec.mla->q_a_norm) {
      CAPSTAN_ASSIGN(layer.mla->q_a_norm, source.load_vector(*spec.mla->q_a_norm));
    }
    CAPSTAN_ASSIGN(layer.mla->kv_a_norm, source.load_vector(spec.mla->kv_a_norm));
  }
  if (spec.moe) {
    layer.moe.emplace();
    layer.moe->experts.resize(spec.moe->experts.size());
    if (spec.moe->bias) {
      CAPSTAN_ASSIGN(layer.moe->bias, source.load_vector(*spec.moe->bias));
    }
  }
  return {};
}

/// Norms and the embedding, read by the calling thread; they are small or stay mapped.
Status load_small_weights(const ModelConfig& config, const WeightSource& source,
                          const LoadOptions& options, DecoderWeights& weights) {
  CAPSTAN_ASSIGN(LoadedWeight embedding, source.load(embedding_spec(config)));
  weights.embedding = embedding.view;
  weights.embedding_storage = std::move(embedding.storage);
  CAPSTAN_ASSIGN(weights.final_norm, source.load_vector(final_norm_spec(config)));
  weights.layers.resize(static_cast<size_t>(config.num_layers));
  for (int l = 0; l < config.num_layers; ++l) {
    CAPSTAN_RETURN_IF_ERROR(
        load_layer_vectors(layer_spec(config, l), source, weights.layers[static_cast<size_t>(l)]));
  }
  if (!options.draft) return {};
  DraftWeights& draft = weights.draft.emplace();
  const DraftSpec spec = draft_spec(config);
  CAPSTAN_ASSIGN(draft.embedding_norm, source.load_vector(spec.embedding_norm));
  CAPSTAN_ASSIGN(draft.hidden_norm, source.load_vector(spec.hidden_norm));
  CAPSTAN_ASSIGN(draft.final_norm, source.load_vector(spec.final_norm));
  return load_layer_vectors(layer_spec(config, config.num_layers), source, draft.layer);
}

void add_ffn(FfnSpec&& spec, FfnWeights& ffn, std::vector<PackJob>& jobs) {
  if (spec.gate_up.empty()) return;  // the other ranks'
  jobs.push_back(
      {.parts = std::move(spec.gate_up), .swiglu_pair = true, .destination = &ffn.gate_up});
  jobs.push_back({.parts = {std::move(spec.down)}, .destination = &ffn.down});
}

void add_layer(LayerSpec&& spec, LayerWeights& layer, std::vector<PackJob>& jobs) {
  if (spec.gqa) {
    jobs.push_back({.parts = std::move(spec.gqa->qkv),
                    .biases = std::move(spec.gqa->qkv_bias),
                    .destination = &layer.gqa->qkv});
  }
  if (spec.mla) {
    jobs.push_back({.parts = std::move(spec.mla->qkv_a), .destination = &layer.mla->qkv_a});
    if (spec.mla->q_b) {
      jobs.push_back({.parts = {std::move(*spec.mla->q_b)}, .destination = &layer.mla->q_b});
    }
    jobs.push_back({.parts = std::move(spec.mla->kv_b), .projection = &layer.mla->kv_b});
  }
  jobs.push_back({.parts = {std::move(spec.o)}, .destination = &layer.o});
  layer.attention_offset = spec.attention_offset;
  if (spec.dense) add_ffn(std::move(*spec.dense), layer.dense, jobs);
  if (!spec.moe) return;
  // A small error in a router's product chooses another expert: its input is never quantised.
  jobs.push_back(
      {.parts = {std::move(spec.moe->router)}, .widen = true, .destination = &layer.moe->router});
  for (size_t e = 0; e < spec.moe->experts.size(); ++e) {
    add_ffn(std::move(spec.moe->experts[e]), layer.moe->experts[e], jobs);
  }
  if (spec.moe->shared) add_ffn(std::move(*spec.moe->shared), layer.moe->shared, jobs);
}

Result<std::vector<PackJob>> make_jobs(const ModelConfig& config, const ShardedWeights& specs,
                                       const WeightSource& source, DecoderWeights& weights) {
  std::vector<PackJob> jobs;
  jobs.push_back({.parts = {specs.lm_head()}, .destination = &weights.lm_head});
  for (int l = 0; l < config.num_layers; ++l) {
    CAPSTAN_ASSIGN(LayerSpec spec, specs.layer(l));
    add_layer(std::move(spec), weights.layers[static_cast<size_t>(l)], jobs);
  }
  if (weights.draft) {
    jobs.push_back(
        {.parts = {draft_spec(config).projection}, .destination = &weights.draft->projection});
    CAPSTAN_ASSIGN(LayerSpec spec, specs.layer(config.num_layers));
    add_layer(std::move(spec), weights.draft->layer, jobs);
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
Status check_memory(const ModelConfig& config, const ShardedWeights& specs,
                    const WeightSource& source, const LoadOptions& options) {
  const uint64_t memory =
      platform::memory_info().total_bytes / static_cast<uint64_t>(options.ranks_on_machine);
  if (memory == 0) return {};  // unknown
  CAPSTAN_ASSIGN(const std::vector<WeightSpec> needed, specs.all(options.draft));
  uint64_t bytes = 0;
  for (const WeightSpec& w : needed) {
    // A tied table is held twice: packed, and in rows, which stay mapped unless they are made up.
    if (&w == &needed[0] && config.tie_word_embeddings && !options.dummy_weights) continue;
    bytes += source.bytes(w);
    if (bytes > memory) {  // and not one more, as a hostile config's sum would overflow
      const std::string ranks =
          options.ranks_on_machine > 1
              ? " for each of the " + std::to_string(options.ranks_on_machine) + " ranks on it"
              : "";
      return resource_exhausted("the weights take " + std::to_string(bytes) +
                                " bytes or more, but this machine (or its cgroup) has " +
                                std::to_string(memory) + " bytes of memory" + ranks +
                                "; choose a smaller or more quantised model");
    }
  }
  return {};
}

Status check_options(const ModelConfig& config, const LoadOptions& options,
                     const std::string& path) {
  if (options.draft && config.num_nextn_predict_layers == 0) {
    return invalid_argument(path +
                            ": num_nextn_predict_layers is 0: the model has no multi-token "
                            "prediction layer to draft with");
  }
  CAPSTAN_RETURN_IF_ERROR(check_shard(config, options.shard));
  const comm::Communicator* ranks = options.communicator;
  if (ranks != nullptr ? ranks->size() != options.shard.size || ranks->rank() != options.shard.rank
                       : options.shard.size != 1) {
    return internal_error("load_model: rank " + std::to_string(options.shard.rank) + " of " +
                          std::to_string(options.shard.size) +
                          (ranks == nullptr
                               ? " without a communicator"
                               : " with a communicator of rank " + std::to_string(ranks->rank()) +
                                     " of " + std::to_string(ranks->size())));
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Model>> load_model(std::shared_ptr<const Checkpoint> checkpoint,
                                          std::shared_ptr<kernels::Ops> ops,
                                          platform::ThreadPool& pool, const LoadOptions& options) {
  const ModelConfig& config = checkpoint->config();
  CAPSTAN_RETURN_IF_ERROR(check_options(config, options, checkpoint->path()));
  if (!options.dummy_weights) {
    CAPSTAN_RETURN_IF_ERROR(check_weights(*checkpoint, options.draft));
  }
  const WeightSource source(*checkpoint, options);
  const ShardedWeights specs(config, options.shard,
                             [&source](const WeightSpec& w) { return source.dtype(w); });
  CAPSTAN_RETURN_IF_ERROR(check_memory(config, specs, source, options));
  DecoderWeights weights;
  const WeightSpec embedding = embedding_spec(config);
  CAPSTAN_RETURN_IF_ERROR(guarded(embedding.name, source.bytes(embedding), [&] {
    return load_small_weights(config, source, options, weights);
  }));
  CAPSTAN_ASSIGN(std::vector<PackJob> jobs, make_jobs(config, specs, source, weights));

  size_t total = 0;
  for (const PackJob& job : jobs) total += job.bytes;
  Progress progress(options, total);
  const ModelConfig local = local_config(config, options.shard);
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
    job.status =
        guarded(job.parts[0].name, job.bytes, [&] { return pack(local, source, *ops, job); });
    if (!job.status.ok()) stop = true;
    progress.add(job.bytes);
  });
  for (const PackJob& job : jobs) {
    CAPSTAN_RETURN_IF_ERROR(job.status);
  }
  if (cancelled) return Error{ErrorCode::kAborted, "loading was cancelled"};
  progress.finish();
  for (LayerWeights& layer : weights.layers) {
    if (layer.moe) layer.moe->index_experts();
  }
  if (weights.draft && weights.draft->layer.moe) weights.draft->layer.moe->index_experts();

  // A fault maps its neighbours too, also those that were given back before. The embedding is
  // read again row by row as tokens need it.
  checkpoint->drop_all_pages();
  weights.checkpoint = std::move(checkpoint);
  const ModelConfig config_copy = weights.checkpoint->config();
  return std::unique_ptr<Model>(
      std::make_unique<Decoder>(config_copy, std::move(weights), std::move(ops), options));
}

}  // namespace capstan::model
