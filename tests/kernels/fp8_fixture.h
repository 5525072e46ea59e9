// Block-quantised FP8 matrices with random codes, and their products in float64.
#pragma once

#include <limits>
#include <random>
#include <vector>

#include "kernels/linear_fixture.h"
#include "quant/fp8.h"

namespace capstan::kernels::fp8_test {

struct Fp8Matrix {
  Fp8Matrix(int64_t n_, int64_t k_, unsigned seed)
      : n(n_), k(k_), codes(static_cast<size_t>(n_ * k_)) {
    std::mt19937 random(seed);
    for (std::byte& b : codes) {
      const auto code = static_cast<uint8_t>(random());
      b = static_cast<std::byte>((code & 0x7f) == 0x7f ? 0 : code);
    }
    // The root mean square of random codes is 120.
    std::uniform_real_distribution<double> spread(0.3, 2.0);
    for (int64_t i = 0; i < quant::fp8_blocks(n) * quant::fp8_blocks(k); ++i) {
      scales.push_back(
          static_cast<float>(spread(random) / 120 / std::sqrt(static_cast<double>(k))));
    }
  }

  void set(size_t i, size_t code) { codes[i] = static_cast<std::byte>(code); }

  TensorView view() const { return {codes.data(), DType::kF8E4M3, {n, k}, "layer.weight"}; }
  TensorView scale_view() const {
    return {reinterpret_cast<const std::byte*>(scales.data()),
            DType::kF32,
            {quant::fp8_blocks(n), quant::fp8_blocks(k)},
            "layer.weight_scale_inv"};
  }
  double value(int64_t r, int64_t c) const {
    const float code =
        quant::e4m3_to_float(static_cast<uint8_t>(codes[static_cast<size_t>(r * k + c)]));
    return code * scales[static_cast<size_t>(r / 128 * ((k + 127) / 128) + c / 128)];
  }

  int64_t n, k;
  std::vector<std::byte> codes;
  std::vector<float> scales;
};

inline std::unique_ptr<LinearWeight> pack(Isa isa, std::span<const Fp8Matrix> parts,
                                          bool pair = false, bool exact = false) {
  std::vector<TensorView> views, scales;
  for (const Fp8Matrix& m : parts) {
    views.push_back(m.view());
    scales.push_back(m.scale_view());
  }
  auto packed =
      pack_linear(isa, {.parts = views, .biases = {}, .swiglu_pair = pair, .scales = scales},
                  {.quantise_activations = !exact});
  if (!packed.ok()) {
    ADD_FAILURE() << packed.error().message;
    std::abort();
  }
  return std::move(*packed);
}

/// Activations as the kernel of a weight packed by `pack` takes them.
inline std::vector<float> as_read(Isa isa, const std::vector<float>& x, bool exact = false) {
  if (isa == Isa::kRef) return x;
  return linear_test::rounded(x, linear_test::kernels_of(isa).x_form(DType::kF8E4M3, !exact));
}

inline std::vector<double> reference(std::span<const Fp8Matrix> parts, const std::vector<float>& x,
                                     int64_t m) {
  std::vector<double> y;
  for (int64_t r = 0; r < m; ++r) {
    for (const Fp8Matrix& p : parts) {
      for (int64_t c = 0; c < p.n; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < p.k; ++i)
          sum += p.value(c, i) * static_cast<double>(x[static_cast<size_t>(r * p.k + i)]);
        y.push_back(sum);
      }
    }
  }
  return y;
}

}  // namespace capstan::kernels::fp8_test
