// Speed of latent attention, against what this machine can do, measured in the same run.
//
//   mla_bench [--threads N] [--seconds S] [--heads H] [--dtype f16|bf16|f32|fp8]
//             [--weights bf16|f32|fp8] [--only decode|batch|prefill|extend|store] [--isa
//             avx2|avx512]
//
// Sizes per head are DeepSeek's (nope 128, rope 64, value 128, rank 512); --heads is 16 (V2-Lite,
// default) or 128 (V3). Decode goes through so many layers that no cache holds them: its roofs are
// DRAM (latent rows and kv_b) and FP32 multiply-adds, and the share is of the larger of the two
// times. Operations are those of the form that ran; exp() is not counted.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "bench_util.h"
#include "kernels/cpu_ops.h"
#include "kernels/mla_plan.h"
#include "kernels/peaks.h"
#include "platform/bandwidth.h"
#include "platform/cpu.h"
#include "quant/codecs.h"
#include "quant/panel.h"

namespace capstan::kernels {
namespace {

using bench::best_time;

struct Options {
  int threads = 0, heads = 16;
  double seconds = 0.3;
  DType dtype = DType::kF16, weights = DType::kBF16;
  std::string only;
  std::optional<Isa> isa;
};

DType dtype_of(const std::string& name) {
  if (name == "f32") return DType::kF32;
  if (name == "f16") return DType::kF16;
  if (name == "bf16") return DType::kBF16;
  if (name == "fp8") return DType::kF8E4M3;
  std::fprintf(stderr, "unknown type %s\n", name.c_str());
  std::exit(2);
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--threads") {
      o.threads = std::atoi(value.c_str());
    } else if (flag == "--heads") {
      o.heads = std::max(1, std::atoi(value.c_str()));
    } else if (flag == "--seconds") {
      o.seconds = std::atof(value.c_str());
    } else if (flag == "--dtype") {
      o.dtype = dtype_of(value);
    } else if (flag == "--weights") {
      o.weights = dtype_of(value);
    } else if (flag == "--only") {
      o.only = value;
    } else if (flag == "--isa") {
      o.isa = value == "avx512" ? Isa::kAvx512 : Isa::kAvx2;
    } else {
      std::fprintf(stderr, "unknown flag %s\n", flag.c_str());
      std::exit(2);
    }
  }
  return o;
}

class Bench {
 public:
  Bench(const Options& options, Ops& ops, double dram, double fp32)
      : o_(options), ops_(ops), dram_(dram), fp32_(fp32), s_{options.heads, 128, 64, 128, 512} {}

  void decode(int sequences) {
    std::printf("\ndecode, %d sequence%s, %d heads, cache %s, weights %s\n", sequences,
                sequences == 1 ? "" : "s", s_.heads, name(o_.dtype), name(o_.weights));
    std::printf("%8s %10s %8s %8s %10s %10s %8s\n", "context", "us/layer", "GB/s", "GFLOP/s",
                "of DRAM", "of FP32", "of roof");
    for (const int context : {1024, 8192, 32768}) {
      const double cache = double(sequences) * context * double(dtype_bytes(o_.dtype, 576));
      const double weights = double(dtype_bytes(o_.weights, int64_t{s_.heads} * 256 * 512));
      const int layers = std::min(24, static_cast<int>(2.5e8 / (cache + weights)) + 1);
      make(context * sequences, layers);
      std::vector<SequenceSlice> slices;
      for (int i = 0; i < sequences; ++i) {
        slices.push_back({i, 1, context, pages_.data() + i * (context / 16)});
      }
      const double flops = 2.0 * s_.heads * sequences * (context * 1088.0 + 256 * 512);
      report(context, cache + weights, flops, run(slices, sequences, MlaForm::kAuto, layers));
    }
  }

  void prefill() {
    std::printf("\nprefill, one prompt, %d heads, cache %s, weights %s\n", s_.heads, name(o_.dtype),
                name(o_.weights));
    std::printf("%8s %10s %10s %10s %14s\n", "tokens", "ms/layer", "GFLOP/s", "of FP32",
                "absorbed ms");
    for (const int tokens : {128, 512, 2048}) {
      make(tokens, 1);
      const std::vector<SequenceSlice> slices = {{0, tokens, tokens, pages_.data()}};
      const double pairs = 0.5 * tokens * (tokens + 1);
      const double flops = 2.0 * s_.heads * (tokens * 131072.0 + pairs * 320);
      const double naive = run(slices, tokens, MlaForm::kNaive, 1);
      const double absorbed = run(slices, tokens, MlaForm::kAbsorbed, 1);
      std::printf("%8d %10.2f %10.1f %9.0f%% %14.2f\n", tokens, 1e3 * naive, flops / naive / 1e9,
                  100 * flops / naive / fp32_, 1e3 * absorbed);
    }
  }

  /// Both forms at the sizes where they cross.
  void extend() {
    std::printf("\nextend, %d heads: ms per layer\n%8s %8s %10s %10s %8s %8s\n", s_.heads,
                "queries", "keys", "naive", "absorbed", "faster", "kAuto");
    for (const int context : {0, 256, 1024, 4096}) {
      for (const int queries : {16, 32, 64, 96, 128, 192, 256}) {
        const int keys = context + queries;
        make(keys, 1);
        const std::vector<SequenceSlice> slices = {{0, queries, keys, pages_.data()}};
        const double naive = run(slices, queries, MlaForm::kNaive, 1);
        const double absorbed = run(slices, queries, MlaForm::kAbsorbed, 1);
        std::printf("%8d %8d %10.2f %10.2f %8s %8s\n", queries, keys, 1e3 * naive, 1e3 * absorbed,
                    naive < absorbed ? "naive" : "absorbed",
                    mla_prefers_naive(s_, queries, keys) ? "naive" : "absorbed");
      }
    }
  }

  void store() {
    std::printf("\nmla_store, %d heads, cache %s\n%8s %10s\n", s_.heads, name(o_.dtype), "rows",
                "us");
    for (const int rows : {1, 8, 512}) {
      make(rows, 1);
      std::vector<float> kv(static_cast<size_t>(rows) * 576, 0.5f), norm(512, 1.0f);
      std::vector<float> angle(static_cast<size_t>(rows) * 32, 0.7f);
      std::vector<int64_t> slots(static_cast<size_t>(rows));
      std::iota(slots.begin(), slots.end(), 0);
      std::vector<float> q(static_cast<size_t>(rows * s_.heads * 192), 0.5f);
      MlaStoreArgs args;
      args.shape = s_;
      args.q = {q.data(), rows, s_.heads * 192, s_.heads * 192};
      args.kv = {kv.data(), rows, 576, 576};
      args.norm = norm.data();
      args.eps = 1e-6f;
      args.cos = args.sin = angle.data();
      args.cache = layer(0);
      args.slots = slots;
      ops_.begin_step();
      const double seconds = best_time(o_.seconds / 4, [&] { ops_.mla_store(args); });
      ops_.end_step();
      std::printf("%8d %10.2f\n", rows, 1e6 * seconds);
    }
  }

 private:
  static const char* name(DType t) { return dtype_info(t).name.data(); }

  void report(int context, double bytes, double flops, double seconds) const {
    const double roof = std::max(bytes / dram_, flops / fp32_);
    std::printf("%8d %10.1f %8.1f %8.1f %9.0f%% %9.0f%% %7.0f%%\n", context, 1e6 * seconds,
                bytes / seconds / 1e9, flops / seconds / 1e9, 100 * bytes / seconds / dram_,
                100 * flops / seconds / fp32_, 100 * roof / seconds);
  }

  /// Latent caches and projections of so many layers, random contents.
  void make(int tokens, int layers) {
    const size_t row = dtype_bytes(o_.dtype, 576);
    pages_.resize(static_cast<size_t>((tokens + 15) / 16));
    std::iota(pages_.begin(), pages_.end(), 0);
    layer_bytes_ = pages_.size() * 16 * row;
    cache_ = quant::PanelBuffer(layer_bytes_ * static_cast<size_t>(layers));
    fill(o_.dtype, cache_.data(), cache_.bytes());
    const int64_t rows = int64_t{s_.heads} * 256;
    std::vector<std::byte> kv_b(dtype_bytes(o_.weights, rows * 512));
    fill(o_.weights, kv_b.data(), kv_b.size());
    std::vector<float> scales(static_cast<size_t>(rows / 128 * 4), 0.1f);
    MlaProjectionSpec spec;
    spec.shape = s_;
    spec.kv_b = {kv_b.data(), o_.weights, {rows, 512}, "kv_b"};
    if (o_.weights == DType::kF8E4M3) {
      spec.kv_b_scale = {reinterpret_cast<std::byte*>(scales.data()),
                         DType::kF32,
                         {rows / 128, 4},
                         "kv_b_scale_inv"};
    }
    while (projections_.size() < static_cast<size_t>(layers)) {
      auto packed = ops_.pack_mla(spec);
      if (!packed.ok()) {
        std::fprintf(stderr, "%s\n", packed.error().message.c_str());
        std::exit(1);
      }
      projections_.push_back(std::move(packed).value());
    }
  }

  static void fill(DType dtype, std::byte* to, size_t bytes) {
    static std::vector<float> noise;
    if (noise.empty()) {
      std::mt19937 random(1);
      std::normal_distribution<float> normal(0.0f, 0.3f);
      for (int i = 0; i < 1 << 16; ++i) noise.push_back(normal(random));
    }
    std::vector<std::byte> block(dtype_bytes(dtype, 1 << 16));
    (void)quant::quantize_row(dtype, noise.data(), block.data(), 1 << 16);
    for (size_t at = 0; at < bytes; at += block.size()) {
      std::memcpy(to + at, block.data(), std::min(block.size(), bytes - at));
    }
  }

  PagedKv layer(int i) {
    PagedKv kv;
    kv.base = cache_.data() + static_cast<size_t>(i) * layer_bytes_;
    kv.dtype = o_.dtype;
    kv.page_size = 16;
    kv.kv_heads = 1;
    kv.head_dim = 576;
    kv.value_dim = 512;
    kv.page_stride = kv.head_stride = static_cast<int64_t>(16 * dtype_bytes(o_.dtype, 576));
    return kv;
  }

  /// Seconds per layer.
  double run(const std::vector<SequenceSlice>& slices, int rows, MlaForm form, int layers) {
    const int q_width = s_.heads * 192, out_width = s_.heads * 128;
    std::vector<float> q(static_cast<size_t>(rows) * static_cast<size_t>(q_width), 0.1f);
    std::vector<float> out(static_cast<size_t>(rows) * static_cast<size_t>(out_width));
    MlaAttentionArgs args;
    args.shape = s_;
    args.q = {q.data(), rows, q_width, q_width};
    args.scale = 0.1f;
    args.form = form;
    args.sequences = slices;
    args.out = {out.data(), rows, out_width, out_width};
    return best_time(o_.seconds,
                     [&] {
                       ops_.begin_step();
                       for (int l = 0; l < layers; ++l) {
                         args.cache = layer(l);
                         args.projection = projections_[static_cast<size_t>(l)].get();
                         ops_.mla_attention(args);
                       }
                       ops_.end_step();
                     }) /
           layers;
  }

  const Options& o_;
  Ops& ops_;
  const double dram_, fp32_;
  const MlaShape s_;
  std::vector<int32_t> pages_;
  size_t layer_bytes_ = 0;
  quant::PanelBuffer cache_;  // huge pages, as the server has
  std::vector<std::unique_ptr<MlaProjection>> projections_;
};

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
  std::printf("%s, %d threads, %s: DRAM read %.1f GB/s, FP32 %.0f GFLOP/s\n",
              platform::cpu_model_name().c_str(), pool.size(), std::string((*ops)->name()).c_str(),
              dram / 1e9, peaks.fp32 / 1e9);
  Bench bench(o, **ops, dram, peaks.fp32);
  const auto wanted = [&](const char* what) { return o.only.empty() || o.only == what; };
  if (wanted("decode")) bench.decode(1);
  if (wanted("batch")) bench.decode(4);
  if (wanted("prefill")) bench.prefill();
  if (wanted("extend")) bench.extend();
  if (wanted("store")) bench.store();
  return 0;
}

}  // namespace
}  // namespace capstan::kernels

int main(int argc, char** argv) { return capstan::kernels::run(argc, argv); }
