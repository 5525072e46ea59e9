// The passes over one row of logits that are long enough to matter: a vocabulary of 150 k is 600
// KB.
//
// Every loop works on kLanes independent lanes, so that the compiler vectorises it without leave to
// reorder arithmetic; results depend only on the row, never on thread or batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace capstan::engine {

/// Elements per block: 16 KB of floats, half of an L1 cache. Partial sums are kept per block.
inline constexpr int64_t kRowBlock = 4096;

struct RowMax {
  float value = 0;     // largest element
  int32_t index = 0;   // lowest index that holds it
  bool clean = false;  // no NaN and no +infinity anywhere; the rest is only valid then
};

/// Argmax in one pass. -infinity is an ordinary value (a masked token).
RowMax row_max(const float* x, int64_t n);

/// Replaces NaN by -infinity and +infinity by the largest float. Returns how many it replaced.
int64_t replace_non_finite(float* x, int64_t n);

/// p[i] = exp((x[i] - max) * inverse_temperature); block_sums gets one sum per kRowBlock elements.
/// Returns the total. Requires x[i] <= max, so that p <= 1.
double row_exp(const float* x, int64_t n, float max, float inverse_temperature, float* p,
               std::vector<double>& block_sums);

/// Same total without storing p.
double row_exp_sum(const float* x, int64_t n, float max, float inverse_temperature);

/// A value t such that at least k elements are >= t and not many more, found without looking at
/// each element more than once; -infinity if k is too large for that to help.
float lower_bound_of_top(const float* x, int64_t n, int64_t k, std::vector<float>& scratch);

/// Appends the indices of all elements >= t, ascending.
void indices_at_least(const float* x, int64_t n, float t, std::vector<int32_t>& out);

}  // namespace capstan::engine
