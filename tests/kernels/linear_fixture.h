// Matrices, references and tolerances for the tests of linear().
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <span>
#include <vector>

#include "kernels/linear.h"
#include "kernels/linear_internal.h"
#include "quant/codecs.h"

namespace capstan::kernels {

/// The AVX-512 kernels compiled on SIMDe (see test.cmake).
const LinearKernels& simde_avx512_linear_kernels();
const LinearKernels& simde_amx_linear_kernels();

inline const char* isa_label(Isa isa) {
  return isa == Isa::kRef ? "ref" : isa == Isa::kAvx2 ? "avx2" : "avx512";
}

namespace linear_test {

inline constexpr DType kFormats[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                     DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                     DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

inline std::vector<Isa> runnable_isas() {
  std::vector<Isa> isas = {Isa::kRef};
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isas.push_back(Isa::kAvx2);
    isas.push_back(Isa::kAvx512);  // natively or on SIMDe
  }
  return isas;
}

/// The kernels of a set other than kRef, SIMDe's where the CPU lacks AVX-512.
inline const LinearKernels& kernels_of(Isa isa) {
  if (isa == Isa::kAvx2) return avx2_linear_kernels();
  return __builtin_cpu_supports("avx512vnni") ? avx512_linear_kernels()
                                              : simde_avx512_linear_kernels();
}

/// run_linear, with SIMDe's kernels where the CPU lacks AVX-512.
inline void run_product(Isa isa, const LinearArgs& args, platform::ThreadPool& pool) {
  if (isa == Isa::kAvx512 && !__builtin_cpu_supports("avx512vnni")) {
    if (args.x.rows != 0) run_linear_panels(kernels_of(isa), args, pool);
  } else {
    run_linear(isa, args, pool);
  }
}

/// y [m, n] of x [m, k], by one table.
inline std::vector<float> product(const LinearKernels& kernels, const LinearWeight& weight,
                                  const std::vector<float>& x, int64_t m, int threads = 1) {
  std::vector<float> y(static_cast<size_t>(m * weight.n()));
  platform::ThreadPool pool(threads, false);
  run_linear_panels(kernels,
                    {{const_cast<float*>(x.data()), m, weight.k(), weight.k()},
                     &weight,
                     {y.data(), m, weight.n(), weight.n()},
                     Epilogue::kStore},
                    pool);
  return y;
}

/// A matrix [n, k] (or, with k == 0, a vector [n]) in `dtype`, about N(0, 1/k).
/// Block formats get random bytes with all codes and sane scales: encoders for K-quants are not
/// needed, and every code is exercised.
class Matrix {
 public:
  Matrix() = default;
  Matrix(DType dtype, int64_t n, int64_t k, unsigned seed)
      : data_(std::make_shared<std::vector<std::byte>>(dtype_bytes(dtype, n * (k == 0 ? 1 : k)))) {
    view.dtype = dtype;
    view.shape = k == 0 ? std::vector<int64_t>{n} : std::vector<int64_t>{n, k};
    view.name = "w" + std::to_string(seed);
    view.data = data_->data();
    std::mt19937 rng(seed);
    const double unit = 1.0 / std::sqrt(static_cast<double>(k == 0 ? 1 : k));
    if (!is_block_quantised(dtype)) {
      fill_floats(rng, unit);
    } else {
      fill_blocks(rng, unit);
    }
  }

  void set_f32(size_t i, float v) { std::memcpy(data_->data() + i * 4, &v, 4); }

  std::vector<float> values() const {
    std::vector<float> out(static_cast<size_t>(view.elems()));
    quant::dequantize_row(view.dtype, view.data, out.data(), view.elems());
    return out;
  }

  TensorView view;

 private:
  void fill_floats(std::mt19937& rng, double unit) {
    std::normal_distribution<double> normal(0, unit);
    const size_t size = dtype_bytes(view.dtype, 1);
    for (size_t i = 0; i < data_->size(); i += size) {
      const float f = static_cast<float>(normal(rng));
      uint16_t bits =
          view.dtype == DType::kF16 ? quant::float_to_half(f) : quant::float_to_bfloat16(f);
      std::memcpy(data_->data() + i, size == 4 ? static_cast<const void*>(&f) : &bits, size);
    }
  }

  void fill_blocks(std::mt19937& rng, double unit) {
    for (std::byte& b : *data_) b = static_cast<std::byte>(rng());
    const DTypeInfo info = dtype_info(view.dtype);
    // Where the half-precision numbers lie, and about which size they have.
    std::vector<std::pair<int, double>> halves;
    switch (view.dtype) {
      case DType::kQ8_0:
        halves = {{0, unit / 74}};
        break;
      case DType::kQ4_0:
        halves = {{0, unit / 4.6}};
        break;
      case DType::kQ5_0:
        halves = {{0, unit / 9.2}};
        break;
      case DType::kQ4_1:
        halves = {{0, unit / 4.6}, {2, -1.6 * unit}};
        break;
      case DType::kQ5_1:
        halves = {{0, unit / 9.2}, {2, -1.6 * unit}};
        break;
      case DType::kQ4_K:
        halves = {{0, unit / 4.6 / 40}, {2, 1.6 * unit / 40}};
        break;
      case DType::kQ5_K:
        halves = {{0, unit / 9.2 / 40}, {2, 1.6 * unit / 40}};
        break;
      case DType::kQ6_K:
        halves = {{208, unit / 18 / 70}};
        break;
      default:
        break;
    }
    std::uniform_real_distribution<double> spread(0.5, 1.5);
    for (size_t at = 0; at < data_->size(); at += static_cast<size_t>(info.block_bytes)) {
      for (const auto& [offset, size] : halves) {
        const uint16_t h = quant::float_to_half(static_cast<float>(size * spread(rng)));
        std::memcpy(data_->data() + at + static_cast<size_t>(offset), &h, 2);
      }
    }
  }

  std::shared_ptr<std::vector<std::byte>> data_;
};

struct Packed {
  Packed(Isa isa_, std::span<const Matrix> parts, std::span<const Matrix> biases = {},
         bool pair = false, const PackOptions& options = {})
      : isa(isa_) {
    std::vector<TensorView> views, bias_views;
    for (const Matrix& m : parts) views.push_back(m.view);
    for (const Matrix& m : biases) bias_views.push_back(m.view);
    auto result = pack_linear(isa, {views, bias_views, pair}, options);
    if (!result.ok()) {
      ADD_FAILURE() << result.error().message;
      std::abort();
    }
    weight = std::move(*result);
  }
  Isa isa;
  std::unique_ptr<LinearWeight> weight;
};

/// Row r of the activations: normal, with an outlier as real hidden states have. Rows are kept,
/// because drawing them would take most of the tests' time.
inline std::vector<float> activations(int64_t first, int64_t rows, int64_t k) {
  static std::map<int64_t, std::vector<float>> drawn;  // by k: [rows drawn so far, k]
  std::vector<float>& all = drawn[k];
  for (auto r = static_cast<int64_t>(all.size()) / k; r < first + rows; ++r) {
    std::mt19937 rng(static_cast<unsigned>(1000 + r));
    std::normal_distribution<float> normal(0, 1);
    for (int64_t i = 0; i < k; ++i) all.push_back(normal(rng));
    all[static_cast<size_t>(r * k + r % k)] *= 5;
  }
  return {all.begin() + first * k, all.begin() + (first + rows) * k};
}

inline constexpr float kAddBase = 0.25f;

/// y of rows [first, first + m) of the activations; strides wider than the rows.
inline std::vector<float> run(const Packed& packed, int64_t m, int threads, int64_t first = 0,
                              Epilogue epilogue = Epilogue::kStore) {
  const int64_t k = packed.weight->k();
  const int64_t n = epilogue == Epilogue::kSwiGlu ? packed.weight->n() / 2 : packed.weight->n();
  const int64_t x_stride = k + 3, y_stride = n + 5;
  const std::vector<float> tight = activations(first, m, k);
  std::vector<float> x(static_cast<size_t>(m * x_stride), std::nanf(""));
  for (int64_t r = 0; r < m; ++r) std::copy_n(tight.begin() + r * k, k, x.begin() + r * x_stride);
  constexpr float kGuard = -12345;
  std::vector<float> y(static_cast<size_t>(m * y_stride), kGuard);
  if (epilogue == Epilogue::kAdd) {
    for (int64_t r = 0; r < m; ++r) std::fill_n(y.begin() + r * y_stride, n, kAddBase);
  }
  platform::ThreadPool pool(threads, false);
  run_product(
      packed.isa,
      {{x.data(), m, k, x_stride}, packed.weight.get(), {y.data(), m, n, y_stride}, epilogue},
      pool);
  std::vector<float> out;
  for (int64_t r = 0; r < m; ++r) {
    out.insert(out.end(), y.begin() + r * y_stride, y.begin() + r * y_stride + n);
    for (int64_t i = n; i < y_stride; ++i)
      EXPECT_EQ(y[static_cast<size_t>(r * y_stride + i)], kGuard) << "wrote beyond the row";
  }
  return out;
}

/// What the integer kernels make of activations (see XForm): each block of 32, or of 256, rounded
/// to a multiple of its largest magnitude, or largest sum of two neighbours', over 127 or 126; or
/// of its largest sum of 32 magnitudes over kSuperBlockSum; and the BF16 ones.
inline std::vector<float> rounded(std::vector<float> x, XForm form) {
  if (form == kXFloat || form == kXScaled) return x;
  if (form == kXBf16) {
    for (float& v : x) v = quant::bfloat16_to_float(quant::float_to_bfloat16(v));
    return x;
  }
  const bool paired = form == kXPaired;
  const size_t block = form == kXSuper ? 256 : 32;
  for (size_t b = 0; b < x.size(); b += block) {
    float max = 0;
    for (size_t i = b; i < b + block; i += paired ? 2 : 1)
      max = std::max(max, std::fabs(x[i]) + (paired ? std::fabs(x[i + 1]) : 0));
    const float limit = paired ? 126 : 127;
    float inverse = limit / max, scale = max / limit;
    for (size_t i = b; form == kXSuper && i < b + block; i += 32) {
      float sum = 0;
      for (size_t j = i; j < i + 32; ++j) sum += std::fabs(x[j]);
      if (sum / scale > kSuperBlockSum) scale = sum / kSuperBlockSum, inverse = 1 / scale;
    }
    for (size_t i = b; i < b + block; ++i) x[i] = std::nearbyint(x[i] * inverse) * scale;
  }
  return x;
}

/// The product in float64, of activations as given or in the form that a kernel reads.
inline std::vector<double> reference(std::span<const Matrix> parts, int64_t m,
                                     std::span<const Matrix> biases = {}, XForm form = kXFloat) {
  const int64_t k = parts[0].view.shape[1];
  const std::vector<float> x = rounded(activations(0, m, k), form);
  std::vector<std::vector<float>> w;
  int64_t n = 0;
  for (const Matrix& p : parts) {
    w.push_back(p.values());
    n += p.view.shape[0];
  }
  std::vector<double> y;
  for (int64_t r = 0; r < m; ++r) {
    for (size_t p = 0; p < parts.size(); ++p) {
      const std::vector<float> bias = p < biases.size() && biases[p].view.data != nullptr
                                          ? biases[p].values()
                                          : std::vector<float>();
      for (int64_t c = 0; c < parts[p].view.shape[0]; ++c) {
        double sum = bias.empty() ? 0 : static_cast<double>(bias[static_cast<size_t>(c)]);
        for (int64_t i = 0; i < k; ++i) {
          sum += static_cast<double>(w[p][static_cast<size_t>(c * k + i)]) *
                 static_cast<double>(x[static_cast<size_t>(r * k + i)]);
        }
        y.push_back(sum);
      }
    }
  }
  return y;
}

inline double relmax(const std::vector<float>& x, const std::vector<double>& y) {
  double diff = 0, max = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    diff = std::max(diff, std::fabs(static_cast<double>(x[i]) - y[i]));
    max = std::max(max, std::fabs(y[i]));
  }
  return diff / max;
}

inline double cosdiff(const std::vector<float>& x, const std::vector<double>& y) {
  double dot = 0, norm = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const double a = static_cast<double>(x[i]);
    dot += a * y[i];
    norm += a * a + y[i] * y[i];
  }
  return 1 - 2 * dot / norm;
}

/// Float weights, and the oracle, within float32 rounding; Q8_0 with cosdiff 1e-4, 4 to 6 bits with
/// 1e-3. Q8_0 of a single block has twice its limit: where one activation rules the block, the
/// others' rounding is 32 / (12 * 127^2) of its energy, a cosdiff of 8e-5, and nothing averages it.
/// A single output (n = m = 1) may be a near-zero sum, so the measure there is against the size of
/// the terms.
inline void expect_close(DType dtype, Isa isa, const std::vector<float>& x,
                         const std::vector<double>& y, int64_t k = 0) {
  ASSERT_EQ(x.size(), y.size());
  if (isa == Isa::kRef || !is_block_quantised(dtype)) {
    if (y.size() >= 16) {
      EXPECT_LT(relmax(x, y), 1e-5);
    } else {
      for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(static_cast<double>(x[i]), y[i], 1e-5);
    }
    return;
  }
  if (y.size() >= 16) {
    EXPECT_LT(cosdiff(x, y), dtype != DType::kQ8_0 ? 1e-3 : k == 32 ? 2e-4 : 1e-4);
  } else {
    for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(static_cast<double>(x[i]), y[i], 0.15);
  }
}

}  // namespace linear_test
}  // namespace capstan::kernels
