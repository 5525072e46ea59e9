// A checkpoint on disk, opened and validated but not copied: a Hugging Face directory or a GGUF
// file.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "comm/communicator.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/model.h"
#include "model/shard.h"
#include "platform/thread_pool.h"
#include "text/tokenizer.h"

namespace capstan::model {

/// Defaults from generation_config.json (or GGUF); absent fields are not set.
struct GenerationDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int32_t> top_k;
};

class Checkpoint {
 public:
  /// `path`: a directory with config.json and *.safetensors, a directory with one .gguf, or a .gguf
  /// file. `overrides_json` is merged over config.json (--json-model-override-args), key by key at
  /// the top level; for GGUF, over the config.json that its metadata amounts to. Every tensor's
  /// extent is checked against its file; errors name file and tensor. A directory with config.json
  /// alone opens without tensors, which serves dummy weights only.
  static Result<std::unique_ptr<Checkpoint>> open(const std::string& path,
                                                  const std::string& overrides_json = "{}");
  virtual ~Checkpoint() = default;

  virtual const std::string& path() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual const GenerationDefaults& generation_defaults() const = 0;
  /// By Hugging Face name (model.layers.0.self_attn.q_proj.weight), GGUF names are mapped.
  virtual const TensorView* find(const std::string& hf_name) const = 0;
  virtual std::vector<std::string> tensor_names() const = 0;
  virtual size_t total_bytes() const = 0;
  /// The same on every host that has this model with these overrides; see digest.h for what it
  /// sees. Reads a few pages of the files at each call.
  virtual std::string digest() const = 0;
  /// Set for GGUF files only; directories carry tokenizer.json.
  virtual const text::GgufVocabulary* gguf_vocabulary() const = 0;
  virtual std::string general_name() const = 0;  // a human name, may be empty
  /// Gives the tensor's mapped pages back to the system; they are read again when touched.
  virtual void drop_pages(const TensorView& tensor) const = 0;
  virtual void drop_all_pages() const = 0;
};

/// Bytes of the rank's own weights: slices count as what they hold.
struct LoadProgress {
  size_t bytes_done = 0, bytes_total = 0;
  double seconds = 0;
};

struct LoadOptions {
  bool dummy_weights = false;  // --load-format dummy: random weights, only the config is read
  uint64_t dummy_seed = 0;
  /// Loads the first multi-token prediction layer too (Model::draft); kInvalidArgument when the
  /// config has none.
  bool draft = false;
  /// The part of the model to load, and the way to the ranks with the others: not owned, of
  /// shard.size ranks, needed when that is above 1. It outlives the model.
  Shard shard;
  comm::Communicator* communicator = nullptr;
  /// Ranks that load at the same time on this machine: their weights must fit its memory together.
  int ranks_on_machine = 1;
  /// How latent attention is computed. kAbsorbed makes bits independent of chunking.
  kernels::MlaForm mla_form = kernels::MlaForm::kAuto;
  /// Both are called from any thread of the pool, one call at a time, and must not throw.
  std::function<void(const LoadProgress&)> progress;  // at most every 100 ms, and at the end
  std::function<bool()> cancelled;                    // polled; loading stops with kAborted
};

/// Packs the weights, or the shard's part of them, in parallel and returns a model that no longer
/// needs the checkpoint's pages, except for the embedding table, which stays mapped (the model
/// keeps the checkpoint alive).
Result<std::unique_ptr<Model>> load_model(std::shared_ptr<const Checkpoint> checkpoint,
                                          std::shared_ptr<kernels::Ops> ops,
                                          platform::ThreadPool& pool, const LoadOptions& options);

}  // namespace capstan::model
