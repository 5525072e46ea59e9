// The inventory of an architecture as one rank holds it: see shard.h.
#pragma once

#include <functional>

#include "base/result.h"
#include "model/checkpoint.h"
#include "model/shard.h"
#include "model/weights.h"

namespace capstan::model {

/// Element type of a weight as it is stored.
using DTypeOf = std::function<DType(const WeightSpec&)>;

/// The inventory of one rank. Errors are kInvalidArgument and name the tensor that can not be cut.
class ShardedWeights {
 public:
  /// `config` must outlive this. The shard must be fine by check_shard().
  ShardedWeights(const ModelConfig& config, const Shard& shard, DTypeOf dtype_of)
      : config_(config), shard_(shard), dtype_of_(std::move(dtype_of)) {}

  /// layer_spec() with slices; FFNs and experts of which the rank holds nothing have no gate_up.
  Result<LayerSpec> layer(int layer) const;
  WeightSpec lm_head() const;
  /// All of the rank, the embedding first and the output matrix also where it is the same; `draft`
  /// with multi-token prediction.
  Result<std::vector<WeightSpec>> all(bool draft) const;

 private:
  struct Range {
    int64_t begin = 0, end = 0;
  };
  Status cut_rows(WeightSpec& weight, Range rows) const;
  Status cut_attention(LayerSpec& layer) const;
  Status cut_output(WeightSpec& o, int64_t& offset) const;
  Status cut_ffn(FfnSpec& ffn, int part, int parts, bool expert) const;
  Error fp8_error(const WeightSpec& weight, const char* what, int64_t size, int parts,
                  bool expert) const;
  Range heads(int64_t n, int64_t row) const;

  const ModelConfig& config_;
  Shard shard_;
  DTypeOf dtype_of_;
};

/// Whether the options' shard can be cut from this checkpoint, in every tensor: what load_model()
/// checks first. kInvalidArgument as check_shard(config, shard), or naming the tensor; the
/// checkpoint must be fine by check_weights(), or the weights dummies.
Status check_shard(const Checkpoint& checkpoint, const LoadOptions& options);

}  // namespace capstan::model
