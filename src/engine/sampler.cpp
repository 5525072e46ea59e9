#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/philox.h"
#include "engine/row_math.h"

namespace capstan::engine {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr double kGreedyBelow = 1e-6;
// exp() of anything further below the maximum is zero in float32 (row_math.cpp).
constexpr double kVanishes = 88.0;
// How many of the likeliest tokens are looked at first; eight times as many when top-p needs more.
constexpr int64_t kFirstCandidates = 64;

/// Descending by logit; equal logits by ascending id, so that every ranking has one outcome.
struct Likelier {
  const float* x;
  bool operator()(int32_t a, int32_t b) const { return x[a] != x[b] ? x[a] > x[b] : a < b; }
};

/// Steps 1, 2 and 4 of docs/sampling.md (3, the grammar mask, is -inf in the logits already).
void apply_penalties(const SampleInput& in, int64_t n) {
  const SamplingParams& params = *in.params;
  float* x = in.logits;
  if (in.counts != nullptr) {
    const auto frequency = static_cast<float>(params.frequency_penalty);
    const auto presence = static_cast<float>(params.presence_penalty);
    const auto repetition = static_cast<float>(params.repetition_penalty);
    const auto penalise = [&](int32_t token, int64_t count) {
      if (token >= n) return;
      float v = x[token] - frequency * static_cast<float>(count) - presence;
      if (repetition != 1.0f) v = v < 0 ? v * repetition : v / repetition;
      x[token] = v;
    };
    const auto assumed = [&](int32_t token) {
      return std::count(in.assumed.begin(), in.assumed.end(), token);
    };
    for (const auto& [token, count] : in.counts->entries()) {
      penalise(token, count + assumed(token));
    }
    for (size_t i = 0; i < in.assumed.size(); ++i) {
      const int32_t token = in.assumed[i];
      const auto end = in.assumed.begin() + static_cast<std::ptrdiff_t>(i);
      const bool done = std::find(in.assumed.begin(), end, token) != end;
      if (!done && !in.counts->contains(token)) penalise(token, assumed(token));
    }
  }
  for (const auto& [token, bias] : params.logit_bias) {
    if (token < n) x[token] += bias;
  }
  // Last, so that no bias or replacement brings them back; -inf does not depend on the order.
  if (in.generated < params.min_new_tokens) {
    for (int32_t id : in.end_ids) {
      if (id < n) x[id] = -kInf;
    }
  }
}

}  // namespace

int64_t RowSampler::row_length(int64_t vocab) const {
  return options_.token_limit > 0 ? std::min<int64_t>(vocab, options_.token_limit) : vocab;
}

void RowSampler::sample(const SampleInput& in, SampleOutput& out) {
  const SamplingParams& params = *in.params;
  const int64_t n = row_length(in.vocab);
  apply_penalties(in, n);
  RowMax max = row_max(in.logits, n);
  if (!max.clean) {
    out.replaced = replace_non_finite(in.logits, n);
    max = row_max(in.logits, n);
  }
  if (max.value == -kInf) {
    out.token.token = -1;
    out.error = out.replaced > 0
                    ? "the model's output was not a number (" + std::to_string(out.replaced) +
                          " of " + std::to_string(n) + " logits), no token can be chosen"
                    : "every token is excluded by logit_bias, min_new_tokens or the grammar";
    return;
  }

  const bool greedy = params.temperature < kGreedyBelow;
  const float inverse_temperature = greedy ? 1.0f : static_cast<float>(1.0 / params.temperature);
  double total = 0;
  if (greedy) {
    out.token.token = max.index;
  } else {
    p_.resize(static_cast<size_t>(n));
    total = row_exp(in.logits, n, max.value, inverse_temperature, p_.data(), block_sums_);
    const double uniform = uniform_for(in.seed, in.choice, static_cast<uint64_t>(in.generated));
    out.token.token = draw(in, n, max.value, total, uniform);
  }
  if (!params.logprobs && params.top_logprobs == 0 && params.token_ids_logprob.empty()) return;
  float report_scale = inverse_temperature;
  if (greedy || options_.return_original_logprob) {
    report_scale = 1.0f;
    total = row_exp_sum(in.logits, n, max.value, 1.0f);
  }
  report(in.logits, n, max.value, report_scale, total, params, out.token);
}

int32_t RowSampler::draw(const SampleInput& in, int64_t n, float max, double total,
                         double uniform) {
  const SamplingParams& params = *in.params;
  const bool top_k = params.top_k > 0 && params.top_k < n;
  if (top_k || params.top_p < 1.0 || params.min_p > 0.0) {
    return draw_filtered(params, in.logits, n, max, total, uniform);
  }
  double target = uniform * total;
  size_t block = 0;
  while (block + 1 < block_sums_.size() && target >= block_sums_[block]) {
    target -= block_sums_[block++];
  }
  // Rounding may leave a target just beyond the last positive entry, which then is the one.
  const int64_t begin = static_cast<int64_t>(block) * kRowBlock;
  const int64_t end = std::min(begin + kRowBlock, n);
  int64_t last = -1;
  for (int64_t i = begin; i < end; ++i) {
    const float p = p_[static_cast<size_t>(i)];
    if (p <= 0) continue;
    last = i;
    if (target < p) break;
    target -= p;
  }
  for (int64_t i = begin; last < 0 && i-- > 0;) {  // a last block of zeros
    if (p_[static_cast<size_t>(i)] > 0) last = i;
  }
  return static_cast<int32_t>(last);
}

/// Keeps the intersection of top-k, top-p and min-p, each measured on the full distribution, and
/// draws from it in ascending order of ids. p_ holds exp((x - max) / T), so the largest is 1.
int32_t RowSampler::draw_filtered(const SamplingParams& params, const float* x, int64_t n,
                                  float max, double total, double uniform) {
  const int64_t k = params.top_k > 0 ? std::min<int64_t>(params.top_k, n) : n;
  const double mass_limit =
      params.top_p < 1.0 ? params.top_p * total : std::numeric_limits<double>::infinity();
  // No token below this logit has p >= min_p (with a margin; p itself decides below) or p > 0.
  const double depth =
      params.min_p > 0 ? std::min(kVanishes, 1e-3 - std::log(params.min_p)) : kVanishes;
  const float floor = std::nextafter(static_cast<float>(max - depth * params.temperature), -kInf);

  // All tokens with x >= threshold are a prefix of the ranking. Take a short one and lengthen it
  // until what lies beyond cannot be kept.
  for (int64_t want = std::min(kFirstCandidates, k);; want = std::min(want * 8, k)) {
    const float bound = lower_bound_of_top(x, n, want, maxima_);
    candidates_.clear();
    indices_at_least(x, n, std::max(bound, floor), candidates_);
    if (want == k || bound <= floor) break;
    double mass = 0;
    for (int32_t id : candidates_) mass += p_[static_cast<size_t>(id)];
    if (mass > mass_limit) break;
  }

  order_.assign(candidates_.begin(), candidates_.end());
  const size_t kept = kept_prefix(x, static_cast<size_t>(k), mass_limit);
  const Likelier likelier{x};
  const int32_t cut =
      *std::max_element(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(kept),
                        likelier);  // the least likely one kept
  const auto keeps = [&](int32_t id) {
    return static_cast<double>(p_[static_cast<size_t>(id)]) >= params.min_p && !likelier(cut, id);
  };
  double kept_mass = 0;
  for (int32_t id : candidates_) {
    if (keeps(id)) kept_mass += p_[static_cast<size_t>(id)];
  }
  double target = uniform * kept_mass;
  int32_t last = -1;
  for (int32_t id : candidates_) {
    const float p = p_[static_cast<size_t>(id)];
    if (p <= 0 || !keeps(id)) continue;
    last = id;
    if (target < p) break;
    target -= p;
  }
  return last;
}

/// Partitions order_ so that its first m elements are those that top-k and top-p keep; returns m.
/// Quickselect by mass: linear in the number of candidates, no sort of a flat distribution.
size_t RowSampler::kept_prefix(const float* x, size_t k, double mass_limit) {
  const Likelier likelier{x};
  const auto at = [&](size_t i) { return order_.begin() + static_cast<std::ptrdiff_t>(i); };
  size_t lo = 0, hi = order_.size();
  if (k < hi) {
    std::nth_element(order_.begin(), at(k), order_.end(), likelier);
    hi = k;
  }
  if (mass_limit == std::numeric_limits<double>::infinity()) return hi;
  double before = 0;  // mass of [0, lo), all of them kept
  while (hi - lo > 16) {
    const size_t mid = lo + (hi - lo) / 2;
    std::nth_element(at(lo), at(mid), at(hi), likelier);
    double mass = 0;
    for (size_t i = lo; i < mid; ++i) mass += p_[static_cast<size_t>(order_[i])];
    if (before + mass > mass_limit) {
      hi = mid;
    } else {
      before += mass;
      lo = mid;
    }
  }
  std::sort(at(lo), at(hi), likelier);
  for (size_t i = lo; i < hi; ++i) {
    if (before > mass_limit) return i;
    before += p_[static_cast<size_t>(order_[i])];
  }
  return hi;
}

void RowSampler::report(const float* x, int64_t n, float max, float inverse_temperature,
                        double total, const SamplingParams& params, OutputToken& out) {
  const double log_total = std::log(total);
  const auto logprob = [&](int32_t id) {
    const double shifted = static_cast<double>(x[id]) - static_cast<double>(max);
    return std::max(kLogprobFloor, static_cast<float>(shifted * inverse_temperature - log_total));
  };
  if (out.token >= 0 && out.token < n) out.logprob = logprob(out.token);
  if (params.top_logprobs > 0) {
    const auto k = static_cast<size_t>(std::min<int64_t>(params.top_logprobs, n));
    candidates_.clear();
    indices_at_least(x, n, lower_bound_of_top(x, n, static_cast<int64_t>(k), maxima_), candidates_);
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(k),
                      candidates_.end(), Likelier{x});
    out.top.reserve(k);
    for (size_t i = 0; i < k; ++i) out.top.push_back({candidates_[i], logprob(candidates_[i])});
  }
  out.chosen.reserve(params.token_ids_logprob.size());
  for (int32_t id : params.token_ids_logprob) {
    out.chosen.push_back({id, id < n ? logprob(id) : kLogprobFloor});
  }
}

void RowSampler::prompt_logprob(const float* logits, int64_t vocab, int32_t token,
                                const SamplingParams& params, OutputToken& out) {
  const int64_t n = row_length(vocab);
  const RowMax max = row_max(logits, n);
  out.token = token;
  out.logprob = kLogprobFloor;
  if (!max.clean || max.value == -kInf) return;  // the sampled row of this request reports it
  report(logits, n, max.value, 1.0f, row_exp_sum(logits, n, max.value, 1.0f), params, out);
}

Sampler::Sampler(const SamplerOptions& options, platform::ThreadPool* pool) : pool_(pool) {
  rows_.assign(pool == nullptr ? 1 : static_cast<size_t>(pool->size()), RowSampler(options));
}

void Sampler::sample(std::span<const SampleInput> in, std::span<SampleOutput> out) {
  int64_t elements = 0;
  for (const SampleInput& row : in) {
    // A drawn row costs some six passes over its logits, a greedy one a single pass.
    elements += row.params->temperature < kGreedyBelow ? row.vocab : 6 * row.vocab;
  }
  each(in.size(), elements, [&](RowSampler& row, size_t i) { row.sample(in[i], out[i]); });
}

}  // namespace capstan::engine
