// Where weights come from while a model loads: a mapped checkpoint, or the random generator.
#pragma once

#include <vector>

#include "base/result.h"
#include "model/checkpoint.h"
#include "model/weights.h"

namespace capstan::model {

/// A weight's view with what keeps it alive: nothing for mapped files, buffers for dummies.
struct LoadedWeight {
  TensorView view;
  TensorView scales;  // block scales of F8_E4M3, else without data
  TensorView mapped;  // where `view` came from in the file; without data for dummies
  AlignedBuffer storage, scale_storage;
};

/// Hands out weights, or the slices of them that specs ask for: mapped ones, checked before by
/// check_weights(), or random ones. Safe to use from several threads at once.
class WeightSource {
 public:
  WeightSource(const Checkpoint& checkpoint, const LoadOptions& options)
      : checkpoint_(checkpoint), dummy_(options.dummy_weights), seed_(options.dummy_seed) {}

  /// As stored, or as made.
  DType dtype(const WeightSpec& spec) const;
  /// Bytes that loading this slice reads or makes, scales apart.
  size_t bytes(const WeightSpec& spec) const;

  /// kDataLoss when block scales are not finite numbers of 0 or above.
  Result<LoadedWeight> load(const WeightSpec& spec) const;

  /// Widened to float32; kDataLoss when an element is not finite.
  Result<std::vector<float>> load_vector(const WeightSpec& spec) const;

  /// The weight has been packed: its mapped pages go back to the system.
  void done_with(const LoadedWeight& weight) const;

 private:
  TensorView empty_view(const WeightSpec& spec) const;  // dtype, shape and name of the slice
  Result<LoadedWeight> load_mapped(const WeightSpec& spec) const;

  const Checkpoint& checkpoint_;
  const bool dummy_;
  const uint64_t seed_;
};

}  // namespace capstan::model
