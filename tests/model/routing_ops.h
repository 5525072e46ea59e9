// Choices of experts of a model's run: recorded, imposed on another run, and how clear they were.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "forwarding_ops.h"

namespace capstan::model {

/// The choice for one row of one route() call.
struct Decision {
  std::vector<int> groups, experts;  // kept and chosen, ascending
  /// Of the score of the last kept group and of the first not kept, and of the choice scores of the
  /// last chosen and the first not chosen expert in the kept groups. Infinite if there is no other.
  double group_margin = std::numeric_limits<double>::infinity();
  double expert_margin = std::numeric_limits<double>::infinity();
};

/// The `count` largest of the candidates, ascending, and their margin.
inline std::pair<std::vector<int>, double> largest(const std::vector<double>& values,
                                                   std::vector<int> candidates, int count) {
  const auto value = [&](int i) { return values[static_cast<size_t>(i)]; };
  std::stable_sort(candidates.begin(), candidates.end(),
                   [&](int a, int b) { return value(a) > value(b); });
  const auto n = static_cast<size_t>(count);
  const double margin = n < candidates.size() ? value(candidates[n - 1]) - value(candidates[n])
                                              : std::numeric_limits<double>::infinity();
  candidates.resize(n);
  std::sort(candidates.begin(), candidates.end());
  return {candidates, margin};
}

/// The rule of DeepSeek-V3 in double: sigmoid scores with a bias, groups by their best two.
inline Decision decide(const kernels::RouterSpec& router, const float* logits) {
  EXPECT_TRUE(router.scoring == kernels::ExpertScoring::kSigmoid && router.bias != nullptr &&
              router.group_top2_sum && !router.mask_with_zero &&
              router.experts >= 2 * router.groups)
      << "not the router of DeepSeek-V3";
  std::vector<double> choice(static_cast<size_t>(router.experts));
  for (size_t e = 0; e < choice.size(); ++e)
    choice[e] = 1 / (1 + std::exp(-double{logits[e]})) + double{router.bias[e]};
  const int size = router.experts / router.groups;
  std::vector<double> group;
  for (int g = 0; g < router.groups; ++g) {
    std::vector<double> best(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    std::partial_sort(best.begin(), best.begin() + 2, best.end(), std::greater<>());
    group.push_back(best[0] + best[1]);
  }
  Decision d;
  std::vector<int> all(group.size()), allowed;
  std::iota(all.begin(), all.end(), 0);
  std::tie(d.groups, d.group_margin) = largest(group, std::move(all), router.groups_kept);
  for (const int g : d.groups) {
    for (int e = g * size; e < (g + 1) * size; ++e) allowed.push_back(e);
  }
  std::tie(d.experts, d.expert_margin) = largest(choice, std::move(allowed), router.top_k);
  return d;
}

/// What a run did: decisions call by call (layer by layer of each step) and row by row; the hidden
/// states that each layer began with, and the last ones, [rows * hidden] a call.
struct RoutingTrace {
  std::vector<Decision> decisions;
  std::vector<std::vector<float>> layer_inputs;
};

/// Traces a model that is loaded without its draft layer and whose query rank is not its width.
class RoutingOps final : public ForwardingOps {
 public:
  enum class Impose {
    kExperts,               // the other run's choice, with the weights that this run's logits give
    kExpertsAndLayerInputs  // and every layer begins with the other run's hidden states
  };

  /// `other`: the trace of a run of the same steps, or null. trace() has this run's own decisions.
  explicit RoutingOps(std::shared_ptr<kernels::Ops> inner, const RoutingTrace* other = nullptr,
                      Impose impose = Impose::kExperts)
      : ForwardingOps(std::move(inner)), other_(other), impose_(impose) {}

  const RoutingTrace& trace() const { return trace_; }

  void embed(const kernels::EmbedArgs& args) override {
    ForwardingOps::embed(args);
    width_ = args.y.cols;
    norms_ = 0;
  }

  void rms_norm(const kernels::RmsNormArgs& args) override {
    // Of the norms over the model's width every other one is a layer's first, or the last of all.
    if (args.x.cols == width_ && norms_++ % 2 == 0) begin_layer(args.x);
    ForwardingOps::rms_norm(args);
  }

  void route(const kernels::RouteArgs& args) override {
    const int top_k = args.router->top_k;
    ForwardingOps::route(args);
    for (int64_t t = 0; t < args.logits.rows; ++t) {
      const Decision own = decide(*args.router, args.logits.row(t));
      std::vector<int> chosen(args.experts + t * top_k, args.experts + (t + 1) * top_k);
      std::sort(chosen.begin(), chosen.end());
      EXPECT_EQ(chosen, own.experts) << "row " << t;
      if (other_ != nullptr) choose(args, t, other_->decisions.at(trace_.decisions.size()).experts);
      trace_.decisions.push_back(own);
    }
  }

 private:
  void begin_layer(const MatrixView& x) {
    std::vector<float> rows;
    for (int64_t t = 0; t < x.rows; ++t) rows.insert(rows.end(), x.row(t), x.row(t) + x.cols);
    if (other_ != nullptr && impose_ == Impose::kExpertsAndLayerInputs) {
      const std::vector<float>& imposed = other_->layer_inputs.at(trace_.layer_inputs.size());
      for (int64_t t = 0; t < x.rows; ++t)
        std::copy_n(imposed.begin() + t * x.cols, x.cols, x.row(t));
    }
    trace_.layer_inputs.push_back(std::move(rows));
  }

  /// By a bias: it decides the choice, and weights do not depend on it.
  void choose(const kernels::RouteArgs& args, int64_t t, const std::vector<int>& experts) {
    kernels::RouterSpec router = *args.router;
    std::vector<float> bias(static_cast<size_t>(router.experts));
    for (const int e : experts) bias[static_cast<size_t>(e)] = 2;  // scores lie between 0 and 1
    router.bias = bias.data();
    router.groups_kept = router.groups;
    MatrixView row = args.logits;
    row.data = args.logits.row(t);
    row.rows = 1;
    ForwardingOps::route({.logits = row,
                          .router = &router,
                          .experts = args.experts + t * router.top_k,
                          .weights = args.weights + t * router.top_k});
  }

  const RoutingTrace* other_;
  const Impose impose_;
  RoutingTrace trace_;
  int64_t width_ = 0;
  int norms_ = 0;  // of the step, over the model's width
};

}  // namespace capstan::model
