// Sums of the ranks' parts, element by element, in the order in which the parts are given.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace capstan::comm {

/// F32, F16, BF16, I32, I64.
bool can_reduce(DType dtype);

/// What parts of `dtype` are summed in: F32 for the 16-bit floats, else the type itself.
constexpr DType sum_type(DType dtype) {
  return dtype == DType::kF16 || dtype == DType::kBF16 ? DType::kF32 : dtype;
}

/// out[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) + ... for i in [0, count), computed in
/// sum_type(in). `in` is the type of all parts; `out_type` is `in`, sum_type(in), or a 16-bit float
/// when `in` is F32 (rounded once, to nearest even). n >= 1. `out` may be the very memory of any
/// part of the same width, or overlap none. Integers wrap around.
///
/// The same bits on every CPU and in every thread, whatever the position of an element: the
/// thread's floating-point mode (FTZ, DAZ, rounding) is set aside meanwhile.
void add_parts(const void* const* parts, int n, DType in, void* out, DType out_type, int64_t count);

namespace internal {
using AddParts = void (*)(const void* const* parts, int n, DType in, void* out, DType out_type,
                          int64_t count);
/// The portable version, and that of this build's CPU family (null: none). For tests.
AddParts add_parts_plain();
AddParts add_parts_avx2();
}  // namespace internal

}  // namespace capstan::comm
