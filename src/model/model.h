// A decoder-only language model, loaded and ready to run steps.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "kernels/ops.h"
#include "model/config.h"
#include "model/kv_store.h"

namespace capstan::model {

/// One step: tokens of several sequences, decode tokens and prefill chunks mixed.
struct ForwardBatch {
  std::span<const int32_t> tokens;     // [t]
  std::span<const int32_t> positions;  // [t], position of each token in its sequence
  std::span<const int64_t> slots;      // [t], page*page_size+offset where its K and V go
  std::span<const kernels::SequenceSlice> sequences;
  std::span<const int32_t> logit_rows;  // rows of tokens whose logits are wanted, ascending
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelConfig& config() const = 0;
  /// Bytes of weights read per decode token (for the DRAM roof) and held in all.
  virtual size_t weight_bytes_per_token() const = 0;
  virtual size_t weight_bytes() const = 0;
  /// Computes the step and writes logits [logit_rows.size(), vocab_size]. Called by one thread.
  virtual Status forward(const ForwardBatch& batch, KvStore& kv, MatrixView logits) = 0;
};

}  // namespace capstan::model
