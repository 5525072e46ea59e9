// The oracle for linear(): file bytes kept as they are, each row dequantised, dot products summed
// in double in ascending k.
#include <cmath>
#include <cstring>

#include "kernels/linear_internal.h"
#include "quant/codecs.h"
#include "quant/fp8.h"

namespace capstan::kernels {

namespace {

struct RefPart {
  DType dtype;
  int64_t n;
  std::vector<std::byte> rows;
  std::vector<float> bias;    // empty: none
  std::vector<float> scales;  // F8_E4M3: [ceil(n/128)][ceil(k/128)]

  /// Row `row` of k elements as float32.
  void decode(int64_t row, int64_t k, float* out) const {
    const std::byte* from = rows.data() + static_cast<size_t>(row) * dtype_bytes(dtype, k);
    if (dtype == DType::kF8E4M3) {
      quant::dequantize_fp8_blocks(from, scales.data(), row, 1, k, out);
    } else {
      quant::dequantize_row(dtype, from, out, k);
    }
  }
};

class RefWeight : public LinearWeight {
 public:
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  size_t bytes() const override {
    size_t total = 0;
    for (const RefPart& p : parts)
      total += p.rows.size() + (p.bias.size() + p.scales.size()) * sizeof(float);
    return total;
  }
  int64_t n_ = 0;
  int64_t k_ = 0;
  bool swiglu_pair = false;
  std::vector<RefPart> parts;
};

// Output feature `row` of every row of x, bias included.
void dot_feature(const RefPart& part, int64_t row, const MatrixView& x, std::vector<float>& w,
                 std::vector<double>& out) {
  part.decode(row, x.cols, w.data());
  for (int64_t i = 0; i < x.rows; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < x.cols; ++j)
      sum += static_cast<double>(w[static_cast<size_t>(j)]) * static_cast<double>(x.row(i)[j]);
    if (!part.bias.empty()) sum += static_cast<double>(part.bias[static_cast<size_t>(row)]);
    out[static_cast<size_t>(i)] = sum;
  }
}

}  // namespace

Result<std::unique_ptr<LinearWeight>> pack_linear_ref(const LinearSpec& spec) {
  auto weight = std::make_unique<RefWeight>();
  weight->k_ = spec.parts[0].cols();
  weight->swiglu_pair = spec.swiglu_pair;
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    const TensorView& view = spec.parts[i];
    RefPart part{view.dtype, view.shape[0], {}, {}, {}};
    part.rows.assign(view.data, view.data + view.bytes());
    if (i < spec.biases.size() && spec.biases[i].data != nullptr)
      part.bias = bias_values(spec.biases[i]);
    if (view.dtype == DType::kF8E4M3) part.scales = scale_values(spec.scales[i]);
    weight->n_ += part.n;
    weight->parts.push_back(std::move(part));
  }
  return std::unique_ptr<LinearWeight>(std::move(weight));
}

void run_linear_ref(const LinearArgs& args, platform::ThreadPool& pool) {
  const auto& weight = static_cast<const RefWeight&>(*args.weight);
  const MatrixView& x = args.x;
  const bool swiglu = args.epilogue == Epilogue::kSwiGlu;
  const int threads = pool.size();
  pool.run([&](int thread) {
    std::vector<float> w(static_cast<size_t>(weight.k_));
    std::vector<double> out(static_cast<size_t>(x.rows)), up(static_cast<size_t>(x.rows));
    int64_t column = 0;
    for (size_t p = 0; p < (swiglu ? 1 : weight.parts.size()); ++p) {
      const RefPart& part = weight.parts[p];
      for (int64_t r = part.n * thread / threads; r < part.n * (thread + 1) / threads; ++r) {
        dot_feature(part, r, x, w, out);
        if (swiglu) dot_feature(weight.parts[1], r, x, w, up);
        for (int64_t i = 0; i < x.rows; ++i) {
          const double v = out[static_cast<size_t>(i)];
          float& y = args.y.row(i)[column + r];
          if (swiglu) {
            y = static_cast<float>(v / (1.0 + std::exp(-v)) * up[static_cast<size_t>(i)]);
          } else {
            y = static_cast<float>(args.epilogue == Epilogue::kAdd ? static_cast<double>(y) + v
                                                                   : v);
          }
        }
      }
      column += part.n;
    }
  });
}

void linear_row_ref(const LinearWeight& weight, const double* x, double* y) {
  const auto& ref = static_cast<const RefWeight&>(weight);
  std::vector<float> w(static_cast<size_t>(ref.k_));
  for (const RefPart& part : ref.parts) {
    for (int64_t r = 0; r < part.n; ++r) {
      part.decode(r, ref.k_, w.data());
      double sum = part.bias.empty() ? 0 : static_cast<double>(part.bias[static_cast<size_t>(r)]);
      for (size_t i = 0; i < w.size(); ++i) sum += static_cast<double>(w[i]) * x[i];
      *y++ = sum;
    }
  }
}

}  // namespace capstan::kernels
