// Random weights, for --load-format dummy: speed and memory of a model from its config alone.
#pragma once

#include <cstdint>

#include "base/result.h"
#include "model/config.h"
#include "model/weights.h"

namespace capstan::model {

/// The dtype of this weight among dummy weights: the config's where it can be encoded and fits the
/// row length, else BF16; F32 for vectors.
DType dummy_dtype(const ModelConfig& config, const WeightSpec& spec);

/// Random weights in `dtype` (F32, F16, BF16, Q8_0, Q4_0 or Q4_1): the slice of them that the spec
/// asks for. Values depend on seed, name, row and column of the whole only. Matrices are uniform
/// with variance 1/columns, so that activations keep their size through the layers; biases are
/// uniform on [-0.1, 0.1]; norms are 1.
Status fill_dummy(const WeightSpec& spec, DType dtype, uint64_t seed, std::byte* out);

/// The same as F8_E4M3 with block scales: `out` takes the bytes of the slice, `scales` the
/// elements of that of scale_spec(spec). Each finite code is as likely as any other, which makes
/// the magnitudes log-uniform; the variance is 1/columns all the same.
void fill_dummy_fp8(const WeightSpec& spec, uint64_t seed, std::byte* out, float* scales);

}  // namespace capstan::model
