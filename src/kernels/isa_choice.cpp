#include "kernels/isa_choice.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"

namespace capstan::kernels {
namespace {

/// A product shaped like a small model's layer, for one row and for sixteen.
class TimedProduct {
 public:
  TimedProduct(Isa isa, DType dtype, const PackOptions& options) : isa_(isa) {
    const std::vector<std::byte> data(dtype_bytes(dtype, kN * kK));
    const TensorView part{data.data(), dtype, {kN, kK}, "timing"};
    LinearSpec spec;
    spec.parts = {&part, 1};
    if (auto weight = pack_linear(isa, spec, options); weight.ok()) weight_ = std::move(*weight);
  }
  void run(platform::ThreadPool& pool) {
    const auto start = std::chrono::steady_clock::now();
    for (const int64_t rows : {int64_t{1}, kRows}) {
      LinearArgs args;
      args.x = {x_.data(), rows, kK, kK};
      args.weight = weight_.get();
      args.y = {y_.data(), rows, kN, kN};
      run_linear(isa_, args, pool);
    }
    best_ = std::min(
        best_, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  double seconds() const { return best_; }

 private:
  static constexpr int64_t kN = 256, kK = 1024, kRows = 16;
  Isa isa_;
  std::unique_ptr<LinearWeight> weight_;
  std::vector<float> x_ = std::vector<float>(kRows * kK, 1.0f), y_ = std::vector<float>(kRows * kN);
  double best_ = 1e9;
};

/// The set that wins float or int8 products by more than it loses the others. Sets take turns, so
/// that a busy moment meets all of them.
Isa time_isas(std::span<const Isa> isas, const PackOptions& options, platform::ThreadPool& pool) {
  constexpr int kTurns = 24;  // the first ones warm caches and clocks up; about 4 ms in all
  std::vector<TimedProduct> products;
  for (const Isa isa : isas) {
    for (const DType dtype : {DType::kBF16, DType::kQ8_0}) {
      products.emplace_back(isa, dtype, options);
    }
  }
  pool.begin_burst();
  for (int turn = 0; turn < kTurns; ++turn) {
    for (TimedProduct& product : products) product.run(pool);
  }
  pool.end_burst();
  // Another set is another rounding: only a clear difference is worth that.
  constexpr double kClearly = 0.9;
  size_t best = isas.size() - 1;  // the widest
  std::string report;
  const auto cost = [&](size_t i) {
    return products[2 * i].seconds() * products[2 * i + 1].seconds();
  };
  for (size_t i = 0; i < isas.size(); ++i) {
    report += fmt::format("{}{} {:.0f} us (BF16) and {:.0f} us (Q8_0)", i == 0 ? "" : ", ",
                          isa_name(isas[i]), 1e6 * products[2 * i].seconds(),
                          1e6 * products[2 * i + 1].seconds());
    if (cost(i) < kClearly * kClearly * cost(best)) best = i;
  }
  LOG_INFO("kernels timed at start-up: {}", report);
  return isas[best];
}

}  // namespace

Isa fastest_isa(const PackOptions& options, platform::ThreadPool& pool) {
  std::vector<Isa> isas = supported_isas();
  if (isas.size() == 1) return isas[0];
  std::erase(isas, Isa::kRef);  // the scalar oracle is never the fastest
  if (isas.size() == 1) return isas[0];
  static std::mutex mutex;
  static std::map<std::pair<bool, bool>, Isa> chosen;
  std::lock_guard lock(mutex);
  const std::pair key(options.quantise_activations, options.fp8_as_int8);
  if (const auto found = chosen.find(key); found != chosen.end()) return found->second;
  return chosen[key] = time_isas(isas, options, pool);
}

}  // namespace capstan::kernels
