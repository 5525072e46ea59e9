#include "kernels/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

namespace capstan::kernels {

namespace {

/// Index of the largest value with open[i] != 0, the lowest of equals; NaN loses to everything.
template <class Real>
int best_open(const std::vector<Real>& value, const std::vector<uint8_t>& open) {
  size_t best = value.size();
  for (size_t i = 0; i < value.size(); ++i) {
    if (open[i] == 0) continue;
    if (best == value.size() || value[i] > value[best] ||
        (std::isnan(value[best]) && !std::isnan(value[i]))) {
      best = i;
    }
  }
  return static_cast<int>(best);
}

template <class Real>
void softmax(const float* logits, std::vector<Real>& out) {
  Real max = -std::numeric_limits<Real>::infinity(), sum = 0;
  for (size_t i = 0; i < out.size(); ++i) max = std::max(max, static_cast<Real>(logits[i]));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = std::exp(static_cast<Real>(logits[i]) - max);
    sum += out[i];
  }
  for (Real& v : out) v /= sum;
}

/// The maximum of a group, or the sum of its two largest (of one, if it has one).
template <class Real>
Real group_score(const Real* values, int n, bool top2_sum) {
  Real first = -std::numeric_limits<Real>::infinity(), second = first;
  for (int i = 0; i < n; ++i) {
    if (values[i] > first) {
      second = first;
      first = values[i];
    } else if (values[i] > second) {
      second = values[i];
    }
  }
  return top2_sum && n > 1 ? first + second : first;
}

}  // namespace

Status check_router(const RouterSpec& r) {
  const auto text = [](int v) { return std::to_string(v); };
  if (r.experts < 1) return invalid_argument("router: " + text(r.experts) + " experts");
  if (r.top_k < 1 || r.top_k > r.experts) {
    return invalid_argument("router: cannot choose " + text(r.top_k) + " experts of " +
                            text(r.experts));
  }
  if (r.groups < 1 || r.experts % r.groups != 0) {
    return invalid_argument("router: " + text(r.experts) + " experts cannot form " +
                            text(r.groups) + " equal groups");
  }
  if (r.groups_kept < 1 || r.groups_kept > r.groups) {
    return invalid_argument("router: cannot keep " + text(r.groups_kept) + " of " + text(r.groups) +
                            " groups");
  }
  const int kept = r.experts / r.groups * r.groups_kept;
  if (!r.mask_with_zero && r.top_k > kept) {
    return invalid_argument("router: cannot choose " + text(r.top_k) + " experts, the " +
                            text(r.groups_kept) + " groups kept have " + text(kept));
  }
  return {};
}

template <class Real>
void route_row(const RouterSpec& router, const float* logits, RouterScratch<Real>& s,
               int32_t* experts, float* weights) {
  const auto n = static_cast<size_t>(router.experts);
  const int size = router.experts / router.groups;
  s.score.resize(n);
  if (router.scoring == ExpertScoring::kSoftmax) {
    softmax(logits, s.score);
  } else {
    for (size_t i = 0; i < n; ++i)
      s.score[i] = Real{1} / (Real{1} + std::exp(-static_cast<Real>(logits[i])));
  }
  s.choice = s.score;
  if (router.bias != nullptr) {
    for (size_t i = 0; i < n; ++i) s.choice[i] += static_cast<Real>(router.bias[i]);
  }

  s.open.assign(n, 1);
  if (router.groups_kept < router.groups) {
    const auto groups = static_cast<size_t>(router.groups);
    s.group.resize(groups);
    for (int g = 0; g < router.groups; ++g) {
      s.group[static_cast<size_t>(g)] =
          group_score(s.choice.data() + g * size, size, router.group_top2_sum);
    }
    s.group_open.assign(groups, 1);
    for (int i = 0; i < router.groups_kept; ++i)
      s.group_open[static_cast<size_t>(best_open(s.group, s.group_open))] = 0;
    for (size_t e = 0; e < n; ++e) {
      const bool kept = s.group_open[e / static_cast<size_t>(size)] == 0;
      if (kept) continue;
      if (router.mask_with_zero) {
        s.choice[e] = s.score[e] = 0;
      } else {
        s.open[e] = 0;
      }
    }
  }

  Real sum = 0;
  for (int j = 0; j < router.top_k; ++j) {
    const int e = best_open(s.choice, s.open);
    s.open[static_cast<size_t>(e)] = 0;
    experts[j] = e;
    sum += s.score[static_cast<size_t>(e)];
  }
  Real factor = 1;
  if (router.normalise) factor /= sum + static_cast<Real>(1e-20);
  if (!router.normalise || router.scale_always) factor *= static_cast<Real>(router.scale);
  for (int j = 0; j < router.top_k; ++j)
    weights[j] = static_cast<float>(s.score[static_cast<size_t>(experts[j])] * factor);
}

template void route_row<float>(const RouterSpec&, const float*, RouterScratch<float>&, int32_t*,
                               float*);
template void route_row<double>(const RouterSpec&, const float*, RouterScratch<double>&, int32_t*,
                                float*);

}  // namespace capstan::kernels
