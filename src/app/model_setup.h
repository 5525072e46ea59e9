// From a path to everything the server is put together from: checkpoint, tokenizer, template,
// model, engine.
#pragma once

#include <functional>
#include <memory>

#include "app/rank_group.h"
#include "app/serve_options.h"
#include "engine/rank_loop.h"
#include "model/checkpoint.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace capstan::app {

/// Declared in the order of construction: the engine goes first, which tells the ranks to stop, the
/// group last.
struct LoadedModel {
  std::unique_ptr<RankGroup> group;  // null: one rank
  std::unique_ptr<platform::ThreadPool> pool;
  std::shared_ptr<kernels::Ops> ops;
  std::shared_ptr<const model::Checkpoint> checkpoint;
  std::shared_ptr<const text::Tokenizer> tokenizer;         // on node 0, like all that follows but
  std::shared_ptr<const text::ChatTemplate> chat_template;  // `ranks`; null: the model has none
  std::vector<std::unique_ptr<engine::RankThread>> ranks;   // of this node, without rank 0
  std::shared_ptr<engine::Engine> engine;
};

/// Opens, checks, joins the other nodes, loads and starts. `cancelled` is polled; then the error is
/// kAborted. `joined` is called once the group stands, before weights are read. Fills
/// options.engine and the parts of options.server that the model decides.
///
/// The group is joined before weights are read rather than after: nodes that do not fit each other
/// are told so in the first second instead of after the load, and a node that fails to load can
/// tell the others.
///
/// `out` is filled as things come to be, and has what there was when an error ended it.
Status load(ServeOptions& options, const std::string& model_path,
            const std::function<bool()>& cancelled, const std::function<void(RankGroup&)>& joined,
            LoadedModel& out);

/// --context-length against the model's own; messages name both.
Result<int> decide_context_length(const ServeOptions& options, const model::ModelConfig& config);

/// auto, or what --kv-cache-dtype says.
Result<DType> decide_kv_dtype(const std::string& flag, const model::ModelConfig& config);

/// --quantization against what the checkpoint holds.
Status check_quantization(const std::string& flag, bool is_gguf);

/// Drafts of a multi-token prediction layer need a checkpoint that has one.
Status check_speculation(const ServeOptions& options, const model::Checkpoint& checkpoint);

}  // namespace capstan::app
