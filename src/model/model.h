// A decoder-only language model, loaded and ready to run steps.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/kv_store.h"

namespace capstan::model {

/// One step: tokens of several sequences, decode tokens and prefill chunks mixed. All ranks of a
/// split model get the same, each with a cache of its own; outputs are as forward() says.
struct ForwardBatch {
  std::span<const int32_t> tokens;     // [t]
  std::span<const int32_t> positions;  // [t], position of each token in its sequence
  std::span<const int64_t> slots;      // [t], page*page_size+offset where its K and V go
  std::span<const kernels::SequenceSlice> sequences;
  std::span<const int32_t> logit_rows;  // rows of tokens whose logits are wanted, ascending
  /// Rows whose last hidden state (after the final norm) is wanted, ascending, and where it goes:
  /// [hidden_rows.size(), hidden_size].
  std::span<const int32_t> hidden_rows = {};
  MatrixView hidden_states = {};
  /// Who the sequences are, parallel to them, or empty. A sequence keeps its id over steps. Of no
  /// effect on results: page tables that changed little are sent to other ranks as changes.
  std::span<const uint64_t> sequence_ids = {};
  /// With data-parallel attention (Shard::dp_size above 1): group g attends for sequences
  /// [groups[g], groups[g + 1]), and their slots and pages are places in its caches, which it
  /// numbers on its own (caches are of one size). [dp_size + 1], from 0 to the number of sequences;
  /// a group may have none.
  std::span<const int32_t> groups = {};
};

/// One step of the multi-token prediction layer. Row i combines token i + 1 of a sequence with the
/// hidden state of position i; its position and slot are those of i. logit_rows give the
/// distribution of token i + 2; hidden_rows the state to draft the next token with.
struct DraftBatch : ForwardBatch {
  /// [t, hidden_size]: hidden_states of the model, or of this layer. Rank 0's counts for all ranks.
  MatrixView previous;
};

/// Drafts tokens with the checkpoint's multi-token prediction layer. It shares embedding, output
/// matrix and scratch with its model: call one of the two at a time.
class DraftModel {
 public:
  virtual ~DraftModel() = default;
  virtual size_t weight_bytes_per_token() const = 0;  // with the output matrix
  /// Computes the step and writes logits as Model::forward does. Its keys and values lie in layer
  /// config().num_layers of the store.
  virtual Status forward(const DraftBatch& batch, KvStore& kv, MatrixView logits) = 0;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  /// The config as this rank's attention and cache see it: what KvStore::create takes. Other than
  /// config() only where ranks have a part of the heads each.
  virtual const ModelConfig& local_config() const { return config(); }
  /// Bytes of weights read per decode token (for the DRAM roof) and held in all, by this rank.
  virtual size_t weight_bytes_per_token() const = 0;
  virtual size_t weight_bytes() const = 0;
  /// The multi-token prediction layer, if it was loaded; else null.
  virtual DraftModel* draft() { return nullptr; }
  /// Tokens routed to each expert since loading, per layer (the draft's last); empty vectors for
  /// layers without experts, empty without any. Callable from any thread.
  virtual std::vector<std::vector<uint64_t>> expert_load() const { return {}; }
  /// Computes the step and writes logits [logit_rows.size(), vocab_size]. Called by one thread.
  ///
  /// Of a split model every rank makes the same calls. Rank 0 alone writes logits; the others'
  /// `logits` is not used, and their hidden_states are written where the view has data.
  /// kUnavailable when the ranks lost each other; the model is of no use afterwards.
  virtual Status forward(const ForwardBatch& batch, KvStore& kv, MatrixView logits) = 0;
  /// The caller will not call forward() for a while: others who compute with it need not wait.
  virtual void rest() {}
};

}  // namespace capstan::model
