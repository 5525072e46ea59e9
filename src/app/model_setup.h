// From a path to everything the server is put together from: checkpoint, tokenizer, template,
// model, engine.
#pragma once

#include <functional>
#include <memory>

#include "app/serve_options.h"
#include "model/checkpoint.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace capstan::app {

/// Declared in the order of construction: the engine goes first, the threads last.
struct LoadedModel {
  std::unique_ptr<platform::ThreadPool> pool;
  std::shared_ptr<kernels::Ops> ops;
  std::shared_ptr<const model::Checkpoint> checkpoint;
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const text::ChatTemplate> chat_template;  // null: the model has none
  server::SamplingDefaults sampling_defaults;
  std::shared_ptr<engine::Engine> engine;
};

/// Opens, checks, loads and starts. `cancelled` is polled; then the error is kAborted. Fills
/// options.engine and the parts of options.server that the model decides.
Result<LoadedModel> load(ServeOptions& options, const std::string& model_path,
                         const std::function<bool()>& cancelled);

/// --context-length against the model's own; messages name both.
Result<int> decide_context_length(const ServeOptions& options, const model::ModelConfig& config);

/// auto, or what --kv-cache-dtype says.
Result<DType> decide_kv_dtype(const std::string& flag, const model::ModelConfig& config);

/// --quantization against what the checkpoint holds.
Status check_quantization(const std::string& flag, bool is_gguf);

/// Drafts of a multi-token prediction layer need a checkpoint that has one.
Status check_speculation(const ServeOptions& options, const model::Checkpoint& checkpoint);

}  // namespace capstan::app
