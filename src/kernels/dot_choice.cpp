#include "kernels/dot_choice.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "base/log.h"
#include "kernels/avx2/linear_fp8.h"
#include "kernels/avx512bf16/linear_bf16.h"
#include "kernels/linear_internal.h"
#include "platform/cpu.h"

namespace capstan::kernels {
namespace {

constexpr int64_t kK = 1024;
constexpr int kRows = 16;            // of FP8
constexpr int kTileTimingRows = 32;  // of tile products
constexpr int kTurns = 24;           // the first ones warm caches and clocks up

/// A panel kernel's best times for one row and for `rows`.
class TimedKernel {
 public:
  TimedKernel(PanelKernel kernel, int rows) : kernel_(kernel), rows_(rows) {}

  void run(const std::byte* panel, const XChunk& x) {
    one_ = std::min(one_, seconds(panel, x, 1));
    all_ = std::min(all_, seconds(panel, x, rows_));
  }
  double one() const { return one_; }
  double all() const { return all_; }

 private:
  double seconds(const std::byte* panel, const XChunk& x, int rows) const {
    alignas(64) float acc[kTileTimingRows * kPanelColumns];
    const auto start = std::chrono::steady_clock::now();
    kernel_(panel, kK, x, rows, acc);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  PanelKernel kernel_;
  int rows_;
  double one_ = 1e9, all_ = 1e9;
};

bool time_kernels() {
  // Zeros: these instructions take as long whatever they multiply, but for denormals.
  const std::vector<std::byte> panel(quant::panel_bytes(DType::kF8E4M3, kK));
  const std::vector<float> x(static_cast<size_t>(kRows * kK));
  XChunk chunk;
  chunk.f32 = x.data();
  chunk.stride = kK;
  chunk.bf16 = reinterpret_cast<const std::byte*>(x.data());
  TimedKernel fp32(avx512_linear_kernels().panel(DType::kF8E4M3, false), kRows);
  TimedKernel bf16(avx512bf16::fp8_panel, kRows);
  for (int turn = 0; turn < kTurns; ++turn) {
    fp32.run(panel.data(), chunk);
    bf16.run(panel.data(), chunk);
  }
  LOG_INFO("FP8 kernels timed: {:.1f} and {:.1f} us (float32), {:.1f} and {:.1f} us (BF16)",
           1e6 * fp32.one(), 1e6 * fp32.all(), 1e6 * bf16.one(), 1e6 * bf16.all());
  // BF16 rounds more: only a clear difference is worth that.
  constexpr double kClearly = 0.8;
  return bf16.one() * bf16.all() < kClearly * kClearly * fp32.one() * fp32.all();
}

bool time_tiles() {
  const std::vector<std::byte> panel(quant::panel_bytes(DType::kQ4_K, kK));
  const std::vector<std::byte> x(static_cast<size_t>(kTileTimingRows * (kK / 256) * kXSuperRecord));
  XChunk chunk;
  chunk.super = x.data();
  TimedKernel vectors(avx512_linear_kernels().panel(DType::kQ4_K, true), kTileTimingRows);
  TimedKernel tiles(amx_linear_kernels().panel(DType::kQ4_K, true), kTileTimingRows);
  for (int turn = 0; turn < kTurns; ++turn) {
    vectors.run(panel.data(), chunk);
    tiles.run(panel.data(), chunk);
  }
  LOG_INFO("Q4_K kernels timed, {} rows: {:.1f} us (AVX-512), {:.1f} us (AMX)", kTileTimingRows,
           1e6 * vectors.all(), 1e6 * tiles.all());
  return tiles.all() < vectors.all();  // both give the same bits
}

bool time_fp8_widening() {
  // One code in 256 denormal: enough to show what one costs, few enough to be a model's.
  quant::PanelBuffer panel(quant::panel_bytes(DType::kF8E4M3, kK));
  if (panel.data() == nullptr) return false;
  const size_t header = quant::fp8_panel_header(kK);
  const std::vector<float> scales(header / sizeof(float), 1.0f);
  std::memcpy(panel.data(), scales.data(), header);
  for (size_t i = header; i < quant::panel_bytes(DType::kF8E4M3, kK); ++i)
    panel.data()[i] = static_cast<std::byte>(i % 256 == 0 ? 0x01 : 0x38);
  const std::vector<float> x(static_cast<size_t>(kRows * kK), 0x1p64f);
  XChunk chunk;
  chunk.scaled = x.data();
  TimedKernel shifted(avx2::fp8_panel_shifted, kRows);
  TimedKernel halves(avx2::fp8_panel_halves, kRows);
  for (int turn = 0; turn < kTurns; ++turn) {
    shifted.run(panel.data(), chunk);
    halves.run(panel.data(), chunk);
  }
  LOG_DEBUG(
      "AVX2's FP8 kernels timed: {:.1f} and {:.1f} us (shifted), {:.1f} and {:.1f} us (halves)",
      1e6 * shifted.one(), 1e6 * shifted.all(), 1e6 * halves.one(), 1e6 * halves.all());
  return halves.one() * halves.all() < shifted.one() * shifted.all();
}

}  // namespace

bool amx_pays() {
  static const bool pays = platform::isa_support().amx && time_tiles();
  return pays;
}

bool bf16_dot_pays() {
  static const bool pays = platform::isa_support().avx512_bf16 && time_kernels();
  return pays;
}

bool fp8_halves_pay() {
  static const bool pays = time_fp8_widening();
  return pays;
}

}  // namespace capstan::kernels
