// Speed of linear() over the matrices of a model, against what this machine can do.
//
//   linear_bench [--model r1|smol] [--format Q4_0,Q8_0] [--rows 1,32,512] [--threads N]
//                [--seconds S] [--layers N] [--isa avx2] [--shapes] [--float-x] [--cpu-time]
//
// One pass runs every matrix of the model once, in order, each layer with weights of its own, so
// that r1 (R1-Distill-Qwen-1.5B's shape) reads more bytes than any cache holds. The roofs are
// measured in the same run: DRAM read bandwidth of all threads, and the rates of register-resident
// loops of the set's INT8, BF16 and FP32 multiply-adds (kernels/peaks.h).
#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "bench_util.h"
#include "kernels/linear.h"
#include "kernels/peaks.h"
#include "quant/codecs.h"
#include "quant/fp8.h"
#include "quant/panel.h"

namespace capstan::kernels {
namespace {

using bench::split;

/// Set by --cpu-time: seconds this thread ran, which with one thread leaves out what other
/// processes take from it.
bool g_cpu_time = false;

double now() {
  if (g_cpu_time) {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
  }
  return bench::now();
}

struct Shape {
  const char* name;
  std::vector<int64_t> n;  // of the stacked parts
  int64_t k;
  bool swiglu = false;
};

struct ModelShapes {
  int layers;
  std::vector<Shape> layer;
  Shape head;
};

ModelShapes model_shapes(const std::string& name) {
  if (name == "smol") {
    return {30,
            {{"qkv", {576, 192, 192}, 576},
             {"o", {576}, 576},
             {"gate_up", {1536, 1536}, 576, true},
             {"down", {576}, 1536}},
            {"head", {49152}, 576}};
  }
  return {28,
          {{"qkv", {1536, 256, 256}, 1536},
           {"o", {1536}, 1536},
           {"gate_up", {8960, 8960}, 1536, true},
           {"down", {1536}, 8960}},
          {"head", {151936}, 1536}};
}

struct Options {
  std::string model = "r1";
  std::vector<std::string> formats = {"F32",  "F16",  "BF16", "F8_E4M3", "Q8_0", "Q4_0",
                                      "Q4_1", "Q5_0", "Q5_1", "Q4_K",    "Q5_K", "Q6_K"};
  std::vector<int64_t> rows = {1, 2, 4, 8, 16, 32, 64, 128, 512};
  int threads = 0;
  double seconds = 0.5;
  int layers = 0;
  Isa isa = Isa::kAvx2;
  bool per_shape = false;
  bool float_x = false;
};

DType parse_format(const std::string& name) {
  for (int t = 0; t <= static_cast<int>(DType::kQ6_K); ++t) {
    if (dtype_info(static_cast<DType>(t)).name == name) return static_cast<DType>(t);
  }
  std::fprintf(stderr, "unknown format %s\n", name.c_str());
  std::exit(2);
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--shapes") {
      o.per_shape = true;
    } else if (flag == "--cpu-time") {
      g_cpu_time = true;
    } else if (flag == "--float-x") {
      o.float_x = true;
    } else if (i + 1 == argc) {
      std::fprintf(stderr, "%s needs a value or is unknown\n", flag.c_str());
      std::exit(2);
    } else {
      const std::string value = argv[++i];
      if (flag == "--model") {
        o.model = value;
      } else if (flag == "--format") {
        o.formats = split(value);
      } else if (flag == "--rows") {
        o.rows.clear();
        for (const auto& r : split(value)) o.rows.push_back(std::atoll(r.c_str()));
      } else if (flag == "--threads") {
        o.threads = std::atoi(value.c_str());
      } else if (flag == "--seconds") {
        o.seconds = std::atof(value.c_str());
      } else if (flag == "--layers") {
        o.layers = std::atoi(value.c_str());
      } else if (flag == "--isa") {
        o.isa = value == "avx512" ? Isa::kAvx512 : value == "ref" ? Isa::kRef : Isa::kAvx2;
      } else {
        std::fprintf(stderr, "unknown flag %s\n", flag.c_str());
        std::exit(2);
      }
    }
  }
  return o;
}

struct Roofs {
  double dram = 0;  // bytes/s
  double int8 = 0;  // MAC/s
  double fp32 = 0;
  double bf16 = 0;
};

template <class F>
double best_seconds(int repeats, F&& f) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double start = now();
    f();
    best = std::min(best, now() - start);
  }
  return best;
}

// Reads [begin, end) of memory; prefetching `ahead` bytes if not 0.
__attribute__((target("avx2"))) void read_memory(const std::byte* begin, const std::byte* end,
                                                 ptrdiff_t ahead) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (const std::byte* p = begin; p + 128 <= end; p += 128) {
    const auto* v = reinterpret_cast<const __m256i*>(p);
    if (ahead != 0) {
      _mm_prefetch(reinterpret_cast<const char*>(p + ahead), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(p + ahead + 64), _MM_HINT_T0);
    }
    a = _mm256_xor_si256(a, _mm256_load_si256(v));
    b = _mm256_xor_si256(b, _mm256_load_si256(v + 1));
    c = _mm256_xor_si256(c, _mm256_load_si256(v + 2));
    d = _mm256_xor_si256(d, _mm256_load_si256(v + 3));
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
  asm volatile("" : : "x"(all));
}

double dram_roof(platform::ThreadPool& pool) {
  constexpr size_t kBytes = size_t{256} << 20;  // far more than any last-level cache's share
  quant::PanelBuffer buffer(kBytes);
  std::memset(buffer.data(), 1, kBytes);
  double best = 0;
  for (ptrdiff_t ahead : {0, 1024, 2048, 4096}) {
    const double s = best_seconds(5, [&] {
      pool.run([&](int t) {
        const size_t part = kBytes / static_cast<size_t>(pool.size()) / 128 * 128;
        const std::byte* p = buffer.data() + part * static_cast<size_t>(t);
        read_memory(p, p + part, ahead);
      });
    });
    best = std::max(best, static_cast<double>(kBytes) / s);
  }
  return best;
}

Roofs measure_roofs(Isa isa, platform::ThreadPool& pool) {
  const Peaks peaks = measure_peaks(isa, pool, 1.0);
  Roofs r;
  r.int8 = peaks.int8 / 2;  // a multiply-add is two operations
  r.fp32 = peaks.fp32 / 2;
  r.bf16 = peaks.bf16 / 2;
  pool.begin_burst();
  r.dram = dram_roof(pool);
  pool.end_burst();
  return r;
}

std::unique_ptr<LinearWeight> make_weight(const Options& o, const Shape& shape, DType dtype,
                                          const std::vector<std::byte>& source) {
  std::vector<TensorView> parts;
  for (int64_t n : shape.n) parts.push_back({source.data(), dtype, {n, shape.k}, shape.name});
  LinearSpec spec;
  spec.parts = parts;
  spec.swiglu_pair = shape.swiglu;
  std::vector<float> ones;
  std::vector<TensorView> scales;
  if (dtype == DType::kF8E4M3) {
    const int64_t columns = quant::fp8_blocks(shape.k);
    for (int64_t n : shape.n) {
      ones.resize(std::max(ones.size(), static_cast<size_t>(quant::fp8_blocks(n) * columns)), 1.0f);
      scales.push_back({nullptr, DType::kF32, {quant::fp8_blocks(n), columns}, "scales"});
    }
    for (TensorView& s : scales) s.data = reinterpret_cast<const std::byte*>(ones.data());
    spec.scales = scales;
  }
  auto w = pack_linear(o.isa, spec, {.quantise_activations = !o.float_x});
  if (!w.ok()) {
    std::fprintf(stderr, "%s\n", w.error().message.c_str());
    std::exit(1);
  }
  return std::move(*w);
}

struct Job {
  const Shape* shape;
  std::unique_ptr<LinearWeight> weight;
};

void run_job(const Options& o, const Job& job, int64_t rows, std::vector<float>& x,
             std::vector<float>& y, platform::ThreadPool& pool) {
  const int64_t k = job.weight->k();
  const int64_t n = job.shape->swiglu ? job.weight->n() / 2 : job.weight->n();
  run_linear(o.isa,
             {{x.data(), rows, k, k},
              job.weight.get(),
              {y.data(), rows, n, n},
              job.shape->swiglu ? Epilogue::kSwiGlu : Epilogue::kStore},
             pool);
}

/// Times of all products of one shape.
struct ShapeSamples {
  const Shape* shape = nullptr;
  double bytes = 0;
  double macs = 0;
  std::vector<double> seconds;
};

/// The machine may be shared: a quarter of the samples undisturbed is enough.
double quartile(std::vector<double>& v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 4];
}

struct Line {
  const char* what;
  double seconds = 0;
  double bytes = 0;
  double macs = 0;
};

void report(const Line& l, const std::string& format, int64_t rows, const Roofs& roofs) {
  std::printf(
      "%-8s %-5s M %4ld  %9.3f ms  %6.1f GB/s %5.1f%%  %7.1f GMAC/s  int8 %5.1f%%  fp32 %5.1f%%",
      l.what, format.c_str(), static_cast<long>(rows), l.seconds * 1e3, l.bytes / l.seconds / 1e9,
      100 * l.bytes / l.seconds / roofs.dram, l.macs / l.seconds / 1e9,
      100 * l.macs / l.seconds / roofs.int8, 100 * l.macs / l.seconds / roofs.fp32);
  if (roofs.bf16 > 0) std::printf("  bf16 %5.1f%%", 100 * l.macs / l.seconds / roofs.bf16);
  std::printf("\n");
  std::fflush(stdout);
}

void bench_format(const Options& o, const std::string& format, const Roofs& roofs,
                  platform::ThreadPool& pool) {
  const DType dtype = parse_format(format);
  const ModelShapes model = model_shapes(o.model);
  // Random codes; half-precision scales of a harmless size wherever the file has them, no FP8 NaN.
  const int64_t most = model.head.n[0] * model.head.k / 256 * 256;
  std::vector<std::byte> source(dtype_bytes(dtype, most));
  const uint64_t mask = dtype == DType::kF8E4M3 ? 0xf7f7f7f7f7f7f7f7 : 0x2fff2fff2fff2fff;
  std::mt19937_64 rng(1);
  for (size_t i = 0; i + 8 <= source.size(); i += 8) {
    const uint64_t v = rng() & mask;
    std::memcpy(source.data() + i, &v, 8);
  }
  std::vector<Job> jobs;
  const int layers = o.layers > 0 ? o.layers : model.layers;
  const double start = now();
  std::vector<const Shape*> todo;
  for (int l = 0; l < layers; ++l) {
    for (const Shape& s : model.layer) todo.push_back(&s);
  }
  if (o.layers == 0) todo.push_back(&model.head);
  jobs.resize(todo.size());
  pool.for_each(static_cast<int64_t>(todo.size()), [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    jobs[at] = {todo[at], make_weight(o, *todo[at], dtype, source)};
  });
  double bytes = 0, macs = 0;
  for (const Job& j : jobs) {
    bytes += static_cast<double>(j.weight->bytes());
    macs += static_cast<double>(j.weight->n() * j.weight->k());
  }
  const double pack = now() - start;
  std::printf("%s: %.0f MB packed in %.2f s (%.2f GB/s)\n", format.c_str(), bytes / 1e6, pack,
              bytes / pack / 1e9);

  for (int64_t rows : o.rows) {
    int64_t width = 0;
    for (const Job& j : jobs) width = std::max({width, j.weight->n(), j.weight->k()});
    std::vector<float> x(static_cast<size_t>(rows * width)), y(x.size());
    std::mt19937 small(2);
    for (float& v : x) v = static_cast<float>(static_cast<int>(small() % 2001) - 1000) * 1e-3f;
    // The head sees one row per sequence, even in a prefill.
    const auto rows_of = [&](const Job& j) {
      return std::string_view(j.shape->name) == "head" ? std::min<int64_t>(rows, 32) : rows;
    };
    std::vector<ShapeSamples> samples(5);
    for (size_t i = 0; i < 5; ++i) samples[i].shape = i < 4 ? &model.layer[i] : &model.head;
    double elapsed = 0;
    pool.begin_burst();
    run_job(o, jobs[0], rows, x, y, pool);
    for (size_t i = 0; elapsed < o.seconds || i < (rows <= 4 ? jobs.size() : 5); ++i) {
      const Job& j = jobs[i % jobs.size()];
      const double begin = now();
      run_job(o, j, rows_of(j), x, y, pool);
      const double took = now() - begin;
      elapsed += took;
      for (ShapeSamples& s : samples) {
        if (s.shape != j.shape) continue;
        s.seconds.push_back(took);
        s.bytes = static_cast<double>(j.weight->bytes());
        s.macs = static_cast<double>(j.weight->n() * j.weight->k() * rows_of(j));
      }
    }
    pool.end_burst();
    Line all{"all"};
    for (ShapeSamples& s : samples) {
      if (s.seconds.empty()) continue;
      const double count = s.shape == &model.head ? 1 : layers;
      Line line{s.shape->name, count * quartile(s.seconds), count * s.bytes, count * s.macs};
      if (o.per_shape) report(line, format, rows, roofs);
      all.seconds += line.seconds;
      all.bytes += line.bytes;
      all.macs += line.macs;
    }
    report(all, format, rows, roofs);
  }
}

}  // namespace

int main_linear(int argc, char** argv) {
  const Options o = parse(argc, argv);
  platform::ThreadPool pool(o.threads);
  const Roofs roofs = measure_roofs(o.isa, pool);
  std::printf(
      "%d threads: DRAM read %.1f GB/s, INT8 %.1f GMAC/s, FP32 %.1f GMAC/s, BF16 %.1f GMAC/s\n",
      pool.size(), roofs.dram / 1e9, roofs.int8 / 1e9, roofs.fp32 / 1e9, roofs.bf16 / 1e9);
  for (const std::string& format : o.formats) bench_format(o, format, roofs, pool);
  return 0;
}

}  // namespace capstan::kernels

int main(int argc, char** argv) { return capstan::kernels::main_linear(argc, argv); }
