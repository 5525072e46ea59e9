// Speed of a mixture-of-experts layer, against what this machine can do.
//
//   experts_bench [--shape v2-lite|v3] [--format F8_E4M3,Q4_K] [--rows 1,8,32,512] [--threads N]
//                 [--seconds S] [--experts N] [--top N] [--skew S] [--isa avx2]
//
// v2-lite is a layer of DeepSeek-V2-Lite (64 experts, 6 chosen, 2048 -> 1408 -> 2048), v3 a slice
// of one of DeepSeek-V3 (32 of its 256 experts, 8 chosen, 7168 -> 2048 -> 7168). Every call routes
// its tokens anew; --skew s favours low experts with weights (e+1)^-s. Bytes are those of the
// experts that a call chooses, multiply-adds those of all its tokens.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "bench_util.h"
#include "kernels/cpu_ops.h"
#include "kernels/peaks.h"
#include "platform/bandwidth.h"
#include "quant/fp8.h"

namespace capstan::kernels {
namespace {

using bench::split;

struct Options {
  std::string shape = "v2-lite";
  std::vector<std::string> formats = {"F8_E4M3", "Q8_0", "Q4_K", "Q6_K"};
  std::vector<int64_t> rows = {1, 8, 32, 512};
  int threads = 0;
  double seconds = 1;
  int experts = 0;
  int top = 0;
  double skew = 0;
  Isa isa = Isa::kAvx2;
};

struct Shape {
  int experts, top;
  int64_t k, width;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (i + 1 == argc) {
      std::fprintf(stderr, "%s needs a value or is unknown\n", flag.c_str());
      std::exit(2);
    }
    const std::string value = argv[++i];
    if (flag == "--shape") {
      o.shape = value;
    } else if (flag == "--format") {
      o.formats = split(value);
    } else if (flag == "--rows") {
      o.rows.clear();
      for (const auto& r : split(value)) o.rows.push_back(std::atoll(r.c_str()));
    } else if (flag == "--threads") {
      o.threads = std::atoi(value.c_str());
    } else if (flag == "--seconds") {
      o.seconds = std::atof(value.c_str());
    } else if (flag == "--experts") {
      o.experts = std::atoi(value.c_str());
    } else if (flag == "--top") {
      o.top = std::atoi(value.c_str());
    } else if (flag == "--skew") {
      o.skew = std::atof(value.c_str());
    } else if (flag == "--isa") {
      o.isa = value == "avx512" ? Isa::kAvx512 : value == "ref" ? Isa::kRef : Isa::kAvx2;
    } else {
      std::fprintf(stderr, "unknown flag %s\n", flag.c_str());
      std::exit(2);
    }
  }
  return o;
}

Shape shape_of(const Options& o) {
  Shape s = o.shape == "v3" ? Shape{32, 8, 7168, 2048} : Shape{64, 6, 2048, 1408};
  if (o.experts > 0) s.experts = o.experts;
  if (o.top > 0) s.top = o.top;
  return s;
}

DType parse_format(const std::string& name) {
  for (int t = 0; t <= static_cast<int>(DType::kQ6_K); ++t) {
    if (dtype_info(static_cast<DType>(t)).name == name) return static_cast<DType>(t);
  }
  std::fprintf(stderr, "unknown format %s\n", name.c_str());
  std::exit(2);
}

struct Layer {
  std::vector<std::unique_ptr<LinearWeight>> gate_up, down;
  std::vector<const LinearWeight*> gate_up_list, down_list;
  double bytes_of(int expert) const {
    const auto e = static_cast<size_t>(expert);
    return static_cast<double>(gate_up[e]->bytes() + down[e]->bytes());
  }
};

std::unique_ptr<LinearWeight> pack(Ops& ops, DType dtype, int parts, int64_t n, int64_t k,
                                   const std::vector<std::byte>& source) {
  const std::vector<float> scale(static_cast<size_t>(quant::fp8_blocks(n) * quant::fp8_blocks(k)),
                                 1e-4f);
  std::vector<TensorView> views, scales;
  for (int p = 0; p < parts; ++p) {
    views.push_back({source.data(), dtype, {n, k}, "expert"});
    scales.push_back({reinterpret_cast<const std::byte*>(scale.data()),
                      DType::kF32,
                      {quant::fp8_blocks(n), quant::fp8_blocks(k)},
                      "scale"});
  }
  LinearSpec spec;
  spec.parts = views;
  spec.swiglu_pair = parts == 2;
  if (dtype == DType::kF8E4M3) spec.scales = scales;
  auto packed = ops.pack_linear(spec);
  if (!packed.ok()) {
    std::fprintf(stderr, "%s\n", packed.error().message.c_str());
    std::exit(1);
  }
  return std::move(*packed);
}

/// What files have instead of a super-block format where rows are no multiple of 256 (llama.cpp's
/// choice): V2-Lite's down matrices.
DType fitting(DType dtype, int64_t k) {
  if (k % dtype_info(dtype).block_elems == 0) return dtype;
  return dtype == DType::kQ4_K ? DType::kQ5_0 : dtype == DType::kQ5_K ? DType::kQ5_1 : DType::kQ8_0;
}

/// Random codes; half-precision scales of a harmless size wherever the file has them, no FP8 NaN.
std::vector<std::byte> random_codes(DType dtype, int64_t elems) {
  std::vector<std::byte> codes(dtype_bytes(dtype, elems));
  const uint64_t mask = dtype == DType::kF8E4M3 ? 0xf7f7f7f7f7f7f7f7 : 0x2fff2fff2fff2fff;
  std::mt19937_64 random(1);
  for (size_t i = 0; i + 8 <= codes.size(); i += 8) {
    const uint64_t v = random() & mask;
    std::memcpy(codes.data() + i, &v, 8);
  }
  return codes;
}

Layer make_layer(Ops& ops, platform::ThreadPool& pool, DType dtype, const Shape& s) {
  const DType down_type = fitting(dtype, s.width);
  const std::vector<std::byte> source = random_codes(dtype, s.k * s.width),
                               down_source = random_codes(down_type, s.k * s.width);
  Layer layer;
  const auto n = static_cast<size_t>(s.experts);
  layer.gate_up.resize(n);
  layer.down.resize(n);
  pool.for_each(s.experts, [&](int64_t e) {
    const auto i = static_cast<size_t>(e);
    layer.gate_up[i] = pack(ops, dtype, 2, s.width, s.k, source);
    layer.down[i] = pack(ops, down_type, 1, s.k, s.width, down_source);
  });
  for (size_t e = 0; e < n; ++e) {
    layer.gate_up_list.push_back(layer.gate_up[e].get());
    layer.down_list.push_back(layer.down[e].get());
  }
  return layer;
}

/// `top` distinct experts a token, drawn without replacement.
std::vector<int32_t> route(std::mt19937& random, const Shape& s, int64_t rows, double skew) {
  std::vector<double> weight;
  for (int e = 0; e < s.experts; ++e) weight.push_back(std::pow(e + 1.0, -skew));
  std::vector<int32_t> out;
  for (int64_t t = 0; t < rows; ++t) {
    std::vector<double> left = weight;
    for (int j = 0; j < s.top; ++j) {
      std::discrete_distribution<int32_t> draw(left.begin(), left.end());
      out.push_back(draw(random));
      left[static_cast<size_t>(out.back())] = 0;
    }
  }
  return out;
}

void bench(const Options& o, const std::string& format, const Shape& s, double dram,
           const Peaks& peaks, Ops& ops, platform::ThreadPool& pool) {
  const Layer layer = make_layer(ops, pool, parse_format(format), s);
  std::mt19937 random(7);
  for (const int64_t rows : o.rows) {
    std::vector<float> x(static_cast<size_t>(rows * s.k)), y(x.size());
    for (float& v : x) v = static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 1e-3f;
    const std::vector<float> weights(static_cast<size_t>(rows * s.top), 0.125f);
    struct Sample {
      double seconds, bytes;
    };
    std::vector<Sample> samples;
    double elapsed = 0;
    ops.begin_step();
    while (elapsed < o.seconds || samples.size() < 4) {
      const std::vector<int32_t> experts = route(random, s, rows, o.skew);
      ExpertsArgs args;
      args.x = {x.data(), rows, s.k, s.k};
      args.experts = experts.data();
      args.weights = weights.data();
      args.top_k = s.top;
      args.gate_up = layer.gate_up_list;
      args.down = layer.down_list;
      args.y = {y.data(), rows, s.k, s.k};
      const double start = bench::now();
      ops.experts(args);
      const double took = bench::now() - start;
      elapsed += took;
      double bytes = 0;
      for (const int32_t e : std::set<int32_t>(experts.begin(), experts.end()))
        bytes += layer.bytes_of(e);
      samples.push_back({took, bytes});
    }
    ops.end_step();
    // The machine may be shared: a quarter of the samples undisturbed is enough.
    std::sort(samples.begin(), samples.end(), [](const Sample& a, const Sample& b) {
      return a.seconds / a.bytes < b.seconds / b.bytes;
    });
    const Sample q = samples[samples.size() / 4];
    const double macs = static_cast<double>(rows * s.top * 3 * s.k * s.width);
    std::printf(
        "%-7s M %4ld  %9.3f ms  %6.1f GB/s %5.1f%% of DRAM  %6.1f GMAC/s  int8 %5.1f%%  fp32 "
        "%5.1f%%",
        format.c_str(), static_cast<long>(rows), q.seconds * 1e3, q.bytes / q.seconds / 1e9,
        100 * q.bytes / q.seconds / dram, macs / q.seconds / 1e9,
        200 * macs / q.seconds / peaks.int8, 200 * macs / q.seconds / peaks.fp32);
    if (peaks.bf16 > 0) std::printf("  bf16 %5.1f%%", 200 * macs / q.seconds / peaks.bf16);
    std::printf("\n");
    std::fflush(stdout);
  }
}

int main_experts(int argc, char** argv) {
  const Options o = parse(argc, argv);
  const Shape s = shape_of(o);
  platform::ThreadPool pool(o.threads);
  CpuOpsOptions options;
  options.isa = o.isa;
  auto ops = make_cpu_ops(options, pool);
  if (!ops.ok()) {
    std::fprintf(stderr, "%s\n", ops.error().message.c_str());
    return 1;
  }
  pool.begin_burst();
  const double dram = platform::measure_dram_read(pool);
  const Peaks peaks = measure_peaks(o.isa, pool);
  pool.end_burst();
  std::printf(
      "%s: %d experts, %d chosen, %ld -> %ld; %d threads: DRAM %.1f GB/s, INT8 %.0f GMAC/s, "
      "FP32 %.0f GMAC/s, BF16 %.0f GMAC/s\n",
      o.shape.c_str(), s.experts, s.top, static_cast<long>(s.k), static_cast<long>(s.width),
      pool.size(), dram / 1e9, peaks.int8 / 2e9, peaks.fp32 / 2e9, peaks.bf16 / 2e9);
  for (const std::string& format : o.formats) bench(o, format, s, dram, peaks, **ops, pool);
  return 0;
}

}  // namespace
}  // namespace capstan::kernels

int main(int argc, char** argv) { return capstan::kernels::main_experts(argc, argv); }
