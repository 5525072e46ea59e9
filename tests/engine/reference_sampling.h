// The sampling rules of docs/sampling.md written plainly: double precision, full sorts, no
// shortcuts.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <vector>

#include "engine/sampling_params.h"

namespace capstan::engine::reference {

/// Penalties and bias on a copy of the logits; `generated` is every token generated so far.
inline std::vector<double> adjust(const std::vector<float>& logits, const SamplingParams& p,
                                  const std::vector<int32_t>& generated) {
  std::vector<double> x(logits.begin(), logits.end());
  std::map<int32_t, int> counts;
  for (int32_t t : generated) ++counts[t];
  for (auto [t, c] : counts) {
    double& v = x[static_cast<size_t>(t)];
    v -= p.frequency_penalty * c;
    v -= p.presence_penalty;
    v = v < 0 ? v * p.repetition_penalty : v / p.repetition_penalty;
  }
  for (auto [t, bias] : p.logit_bias) x[static_cast<size_t>(t)] += bias;
  return x;
}

inline std::vector<double> softmax(const std::vector<double>& x, double temperature) {
  const double max = *std::max_element(x.begin(), x.end());
  std::vector<double> p(x.size());
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += p[i] = std::exp((x[i] - max) / temperature);
  for (double& v : p) v /= sum;
  return p;
}

/// The distribution a token is drawn from: the intersection of the three filters, renormalised.
inline std::vector<double> filtered(const std::vector<double>& x, const SamplingParams& params) {
  const std::vector<double> p = softmax(x, params.temperature);
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  std::vector<double> kept(p.size(), 0.0);
  double before = 0, sum = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const size_t i = order[rank];
    const bool in_k = params.top_k < 0 || rank < static_cast<size_t>(params.top_k);
    const bool in_p = params.top_p >= 1 || before <= params.top_p;
    const bool in_min = p[i] >= params.min_p * p[order[0]];
    if (in_k && in_p && in_min) sum += kept[i] = p[i];
    before += p[i];
  }
  for (double& v : kept) v /= sum;
  return kept;
}

/// Pearson's statistic over cells expected at least five times, and its degrees of freedom. Rare
/// cells are pooled into one. A draw outside the support is reported as an infinite statistic.
struct ChiSquare {
  double statistic = 0;
  int freedom = 0;
  /// Six standard deviations: with fixed seeds a correct sampler passes or fails for good.
  bool fits() const { return statistic < freedom + 6 * std::sqrt(2.0 * std::max(1, freedom)); }
};

inline ChiSquare chi_square(const std::vector<double>& expected, const std::vector<int>& observed) {
  const int draws = std::accumulate(observed.begin(), observed.end(), 0);
  ChiSquare out;
  double rare_expected = 0, rare_observed = 0;
  int cells = 0;
  const auto add = [&](double e, double o) {
    out.statistic += (o - e) * (o - e) / e;
    ++cells;
  };
  for (size_t i = 0; i < expected.size(); ++i) {
    const double e = expected[i] * draws;
    if (e == 0 && observed[i] > 0) out.statistic = INFINITY;
    if (e >= 5) {
      add(e, observed[i]);
    } else {
      rare_expected += e;
      rare_observed += observed[i];
    }
  }
  if (rare_expected >= 5) add(rare_expected, rare_observed);
  out.freedom = cells - 1;
  return out;
}

}  // namespace capstan::engine::reference
