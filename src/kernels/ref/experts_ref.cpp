// The oracle for experts(): one token at a time, everything in double.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/experts.h"

namespace capstan::kernels {

void experts_ref(const ExpertsArgs& args) {
  std::vector<int> order(static_cast<size_t>(args.top_k));
  for (int64_t t = 0; t < args.x.rows; ++t) {
    const int32_t* experts = args.experts + t * args.top_k;
    const float* weights = args.weights + t * args.top_k;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return experts[a] < experts[b]; });
    const std::vector<double> x(args.x.row(t), args.x.row(t) + args.x.cols);
    std::vector<double> sum(static_cast<size_t>(args.y.cols)), out(sum.size());
    for (const int j : order) {
      if (experts[j] < 0) continue;
      const LinearWeight* gate_up = args.gate_up[static_cast<size_t>(experts[j])];
      if (gate_up == nullptr) continue;
      std::vector<double> both(static_cast<size_t>(gate_up->n()));
      linear_row_ref(*gate_up, x.data(), both.data());
      const size_t width = both.size() / 2;
      for (size_t i = 0; i < width; ++i)
        both[i] = both[i] / (1 + std::exp(-both[i])) * both[width + i];
      linear_row_ref(*args.down[static_cast<size_t>(experts[j])], both.data(), out.data());
      for (size_t i = 0; i < out.size(); ++i) sum[i] += static_cast<double>(weights[j]) * out[i];
    }
    float* y = args.y.row(t);
    for (size_t i = 0; i < sum.size(); ++i)
      y[i] = static_cast<float>(static_cast<double>(y[i]) + sum[i]);
  }
}

}  // namespace capstan::kernels
