// Speed of attention and the row-wise ops, against what this machine can do, measured in the same
// run.
//
//   ops_bench [--threads N] [--seconds S] [--heads Q,KV,D] [--dtype f16|bf16|f32] [--isa
//   avx2|avx512]
//
// Decode reads keys and values of contexts of growing length, one sequence, from enough layers that
// no cache holds them; its roof is DRAM read bandwidth. Prefill attends a whole prompt of N tokens;
// its roof is the FP32 multiply-add rate.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/log.h"
#include "bench_util.h"
#include "kernels/cpu_ops.h"
#include "kernels/peaks.h"
#include "platform/bandwidth.h"
#include "platform/cpu.h"
#include "quant/codecs.h"
#include "quant/panel.h"

namespace capstan::kernels {
namespace {

using bench::best_time;

struct Options {
  int threads = 0;
  double seconds = 0.4;
  int q_heads = 9, kv_heads = 3, head_dim = 64;  // SmolLM2-135M
  DType dtype = DType::kF16;
  std::optional<Isa> isa;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--threads") {
      o.threads = std::atoi(value.c_str());
    } else if (flag == "--seconds") {
      o.seconds = std::atof(value.c_str());
    } else if (flag == "--heads") {
      if (std::sscanf(value.c_str(), "%d,%d,%d", &o.q_heads, &o.kv_heads, &o.head_dim) != 3 ||
          o.q_heads < 1 || o.kv_heads < 1 || o.head_dim < 1 || o.q_heads % o.kv_heads != 0) {
        std::fprintf(stderr, "--heads wants Q,KV,D with Q a multiple of KV, not '%s'\n",
                     value.c_str());
        std::exit(2);
      }
    } else if (flag == "--dtype") {
      o.dtype = value == "f32" ? DType::kF32 : value == "bf16" ? DType::kBF16 : DType::kF16;
    } else if (flag == "--isa") {
      o.isa = value == "avx512" ? Isa::kAvx512 : Isa::kAvx2;
    } else {
      std::fprintf(stderr, "unknown flag %s\n", flag.c_str());
      std::exit(2);
    }
    ++i;
  }
  return o;
}

/// Layers of paged cache with random contents; every layer has the same page table.
class Cache {
 public:
  Cache(const Options& o, int tokens, int layers) {
    kv_.dtype = o.dtype;
    kv_.page_size = 16;
    kv_.kv_heads = o.kv_heads;
    kv_.head_dim = o.head_dim;
    kv_.head_stride = static_cast<int64_t>(dtype_bytes(o.dtype, 16 * o.head_dim));
    kv_.value_offset = o.kv_heads * kv_.head_stride;
    kv_.page_stride = 2 * kv_.value_offset;
    pages_.resize(static_cast<size_t>((tokens + 15) / 16));
    std::iota(pages_.begin(), pages_.end(), 0);
    layer_bytes_ = pages_.size() * static_cast<size_t>(kv_.page_stride);
    bytes_ = quant::PanelBuffer(layer_bytes_ * static_cast<size_t>(layers));
    std::mt19937 random(1);
    std::vector<float> noise(1 << 16);
    std::normal_distribution<float> normal;
    for (float& x : noise) x = normal(random);
    const size_t chunk = dtype_bytes(o.dtype, 1 << 16);
    std::vector<std::byte> block(chunk);
    (void)quant::quantize_row(o.dtype, noise.data(), block.data(), 1 << 16);
    for (size_t at = 0; at < bytes_.bytes(); at += chunk) {
      std::memcpy(bytes_.data() + at, block.data(), std::min(chunk, bytes_.bytes() - at));
    }
  }
  PagedKv layer(int i) {
    PagedKv kv = kv_;
    kv.base = bytes_.data() + static_cast<size_t>(i) * layer_bytes_;
    return kv;
  }
  const int32_t* pages() const { return pages_.data(); }

 private:
  PagedKv kv_;
  std::vector<int32_t> pages_;
  size_t layer_bytes_ = 0;
  quant::PanelBuffer bytes_;  // huge pages, as the server has
};

void bench_decode(const Options& o, Ops& ops, double dram) {
  std::printf("\ndecode attention, one sequence, %d query and %d KV heads of %d, %s\n", o.q_heads,
              o.kv_heads, o.head_dim, std::string(dtype_info(o.dtype).name).c_str());
  std::printf("%8s %10s %8s %8s\n", "context", "us/layer", "GB/s", "of DRAM");
  const int width = o.q_heads * o.head_dim;
  std::vector<float> q(static_cast<size_t>(width), 0.1f), out(q.size());
  for (const int context : {128, 512, 1024, 2048, 4096, 8192}) {
    const double bytes =
        2.0 * context * static_cast<double>(dtype_bytes(o.dtype, o.kv_heads * o.head_dim));
    const int layers = static_cast<int>(3e8 / bytes) + 1;
    Cache cache(o, context, layers);
    const SequenceSlice slice{0, 1, context, cache.pages()};
    const double seconds = best_time(o.seconds,
                                     [&] {
                                       ops.begin_step();
                                       for (int l = 0; l < layers; ++l) {
                                         ops.attention({{q.data(), 1, width, width},
                                                        o.q_heads,
                                                        cache.layer(l),
                                                        0.125f,
                                                        {&slice, 1},
                                                        {out.data(), 1, width, width}});
                                       }
                                       ops.end_step();
                                     }) /
                           layers;
    std::printf("%8d %10.1f %8.1f %7.0f%%\n", context, 1e6 * seconds, bytes / seconds / 1e9,
                100 * bytes / seconds / dram);
  }
}

void bench_prefill(const Options& o, Ops& ops, double fp32) {
  std::printf("\nprefill attention, one prompt\n%8s %10s %10s %10s\n", "tokens", "ms/layer",
              "GFLOP/s", "of FP32");
  const int width = o.q_heads * o.head_dim;
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (const int tokens : {128, 512, 2048, 4096}) {
    Cache cache(o, tokens, 1);
    std::vector<float> q(static_cast<size_t>(tokens) * static_cast<size_t>(width)), out(q.size());
    for (float& x : q) x = normal(random);
    const SequenceSlice slice{0, tokens, tokens, cache.pages()};
    const double seconds = best_time(o.seconds, [&] {
      ops.begin_step();
      ops.attention({{q.data(), tokens, width, width},
                     o.q_heads,
                     cache.layer(0),
                     0.125f,
                     {&slice, 1},
                     {out.data(), tokens, width, width}});
      ops.end_step();
    });
    // Scores and weighted values of every visible (query, key) pair; exp() is not counted.
    const double flops = 4.0 * width * (static_cast<double>(tokens) * (tokens + 1) / 2);
    std::printf("%8d %10.2f %10.1f %9.0f%%\n", tokens, 1e3 * seconds, flops / seconds / 1e9,
                100 * flops / seconds / fp32);
  }
}

void bench_rows(const Options& o, Ops& ops) {
  std::printf("\nrow-wise ops, hidden size %d\n%8s %12s %14s\n", o.q_heads * o.head_dim, "rows",
              "rms_norm us", "qkv_rope us");
  const int64_t hidden = int64_t{o.q_heads} * o.head_dim;
  const int64_t width = hidden + 2 * o.kv_heads * o.head_dim;
  for (const int64_t rows : {1, 8, 64, 512}) {
    Cache cache(o, static_cast<int>(rows), 1);
    std::vector<float> x(static_cast<size_t>(rows * width), 0.5f), weight(x.size(), 1.0f);
    std::vector<float> angle(static_cast<size_t>(rows * o.head_dim), 0.7f);
    std::vector<int64_t> slots(static_cast<size_t>(rows));
    std::iota(slots.begin(), slots.end(), 0);
    QkvArgs qkv;
    qkv.qkv = {x.data(), rows, width, width};
    qkv.q_heads = o.q_heads;
    qkv.kv = cache.layer(0);
    qkv.cos = qkv.sin = angle.data();
    qkv.rope_dim = o.head_dim;
    qkv.slots = slots;
    ops.begin_step();
    const double norm = best_time(o.seconds / 4, [&] {
      ops.rms_norm({{x.data(), rows, hidden, hidden},
                    weight.data(),
                    1e-5f,
                    {x.data(), rows, hidden, hidden}});
    });
    const double rope = best_time(o.seconds / 4, [&] { ops.qkv_rope_store(qkv); });
    ops.end_step();
    std::printf("%8ld %12.2f %14.2f\n", static_cast<long>(rows), 1e6 * norm, 1e6 * rope);
  }
}

int run(int argc, char** argv) {
  const Options o = parse(argc, argv);
  platform::ThreadPool pool(o.threads);
  CpuOpsOptions options;
  options.isa = o.isa;
  auto ops = make_cpu_ops(options, pool);
  if (!ops.ok()) {
    std::fprintf(stderr, "%s\n", ops.error().message.c_str());
    return 1;
  }
  const Isa isa = (*ops)->name() == "avx512" ? Isa::kAvx512 : Isa::kAvx2;
  const double dram = platform::measure_dram_read(pool);
  const Peaks peaks = measure_peaks(isa, pool);
  std::printf("%s, %d threads, %s: DRAM read %.1f GB/s, FP32 %.0f GFLOP/s, INT8 %.0f GOP/s\n",
              platform::cpu_model_name().c_str(), pool.size(), std::string((*ops)->name()).c_str(),
              dram / 1e9, peaks.fp32 / 1e9, peaks.int8 / 1e9);
  double join = best_time(0.05, [&] { pool.run([](int) {}); });
  pool.begin_burst();
  const double spin = best_time(0.05, [&] { pool.run([](int) {}); });
  pool.end_burst();
  std::printf("fork and join: %.2f us spinning, %.1f us sleeping\n", 1e6 * spin, 1e6 * join);
  bench_decode(o, **ops, dram);
  bench_prefill(o, **ops, peaks.fp32);
  bench_rows(o, **ops);
  return 0;
}

}  // namespace
}  // namespace capstan::kernels

int main(int argc, char** argv) { return capstan::kernels::run(argc, argv); }
