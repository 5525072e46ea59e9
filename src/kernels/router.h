// Choice of experts from router logits: one row, in float (what the CPU runs) or double (the
// oracle's precision).
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "kernels/ops.h"

namespace capstan::kernels {

/// Refuses numbers that cannot work together: groups that do not divide the experts, more experts
/// to choose than the kept groups hold, counts below one, a sum of two over groups of none.
Status check_router(const RouterSpec& router);

/// Memory of route_row, to be kept between rows.
template <class Real>
struct RouterScratch {
  std::vector<Real> score, choice, group;
  std::vector<uint8_t> group_open, open;  // not taken yet
};

/// The steps: scores; choice scores (+ bias); the best groups; the best experts in
/// them; weights from the scores. `router` passed check_router.
template <class Real>
void route_row(const RouterSpec& router, const float* logits, RouterScratch<Real>& scratch,
               int32_t* experts, float* weights);

extern template void route_row<float>(const RouterSpec&, const float*, RouterScratch<float>&,
                                      int32_t*, float*);
extern template void route_row<double>(const RouterSpec&, const float*, RouterScratch<double>&,
                                       int32_t*, float*);

}  // namespace capstan::kernels
