#include "kernels/peaks.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "platform/cpu.h"

namespace capstan::kernels {
namespace {

double measure(double (*loop)(long), platform::ThreadPool& pool, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr long kRounds = 20000;                                  // about 100 us
  std::vector<double> done(static_cast<size_t>(pool.size()) * 8);  // one cache line each
  double best = 0;
  const auto stop = Clock::now() + std::chrono::duration<double>(seconds);
  pool.begin_burst();
  do {
    const auto start = Clock::now();
    pool.run([&](int thread) { done[static_cast<size_t>(thread) * 8] = loop(kRounds); });
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    double total = 0;
    for (const double d : done) total += d;
    best = std::max(best, total / elapsed);
  } while (Clock::now() < stop);
  pool.end_burst();
  return best;
}

}  // namespace

Peaks measure_peaks(Isa isa, platform::ThreadPool& pool, double seconds) {
  if (isa == Isa::kRef) return {};
  const PeakLoops& loops = isa == Isa::kAvx512 ? avx512_peak_loops() : avx2_peak_loops();
  const bool bf16 = isa == Isa::kAvx512 && platform::isa_support().avx512_bf16;
  const double each = seconds / (bf16 ? 3 : 2);
  return {measure(loops.fp32, pool, each), measure(loops.int8, pool, each),
          bf16 ? measure(bf16_peak_loop, pool, each) : 0};
}

}  // namespace capstan::kernels
