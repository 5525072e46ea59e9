#include "kernels/cpu_ops.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

#include "base/log.h"
#include "kernels/attention_plan.h"
#include "kernels/cpu_kernels.h"
#include "kernels/experts.h"
#include "kernels/isa_choice.h"
#include "kernels/linear.h"
#include "kernels/mla_plan.h"
#include "kernels/ref/ref_ops.h"
#include "kernels/router.h"
#include "platform/cpu.h"
#include "quant/codecs.h"

namespace capstan::kernels {
namespace {

/// Elements of a batch below which a row-wise op stays on the calling thread: a fork and join costs
/// as much as passing over some 4,000 elements.
constexpr int64_t kSerialElements = 8192;

const CpuKernels& kernels_of(Isa isa) {
  return isa == Isa::kAvx512 ? avx512_kernels() : avx2_kernels();
}

const MlaKernels& mla_kernels_of(Isa isa) {
  return isa == Isa::kAvx512 ? avx512_mla_kernels() : avx2_mla_kernels();
}

/// f(row) for all rows, in contiguous shares.
template <class F>
void for_rows(platform::ThreadPool& pool, int64_t rows, int64_t elements, F&& f) {
  const int threads = pool.size();
  if (threads == 1 || rows == 1 || elements < kSerialElements) {
    for (int64_t r = 0; r < rows; ++r) f(r);
    return;
  }
  pool.run([&](int thread) {
    const int64_t end = rows * (thread + 1) / threads;
    for (int64_t r = rows * thread / threads; r < end; ++r) f(r);
  });
}

class CpuOps final : public Ops {
 public:
  CpuOps(Isa isa, const PackOptions& options, platform::ThreadPool& pool)
      : isa_(isa), options_(options), pool_(pool) {}

  std::string_view name() const override { return isa_name(isa_); }

  Result<std::unique_ptr<LinearWeight>> pack_linear(const LinearSpec& spec) override {
    return kernels::pack_linear(isa_, spec, options_);
  }

  void linear(const LinearArgs& args) override { run_linear(isa_, args, pool_); }

  void embed(const EmbedArgs& args) override {
    const int64_t h = args.table->cols(), vocab = args.table->rows();
    const size_t row_bytes = dtype_bytes(args.table->dtype, h);
    const auto rows = static_cast<int64_t>(args.ids.size());
    for_rows(pool_, rows, rows * h, [&](int64_t t) {
      const int64_t id = args.ids[static_cast<size_t>(t)];
      if (id < 0 || id >= vocab) {  // a caller's bug must not take the other sequences down
        LOG_ERROR(
            "token id {} in row {} is outside the vocabulary of {}; its embedding is taken as zero",
            id, t, vocab);
        std::fill_n(args.y.row(t), h, 0.0f);
        return;
      }
      quant::dequantize_row(args.table->dtype,
                            args.table->data + static_cast<size_t>(id) * row_bytes, args.y.row(t),
                            h);
    });
  }

  void rms_norm(const RmsNormArgs& args) override {
    if (isa_ == Isa::kRef) return ref::rms_norm(args);
    const auto row = kernels_of(isa_).rms_norm_row;
    for_rows(pool_, args.x.rows, args.x.rows * args.x.cols, [&](int64_t t) {
      row(args.x.row(t), args.weight, args.eps, args.y.row(t), args.x.cols);
    });
  }

  void qkv_rope_store(const QkvArgs& args) override {
    if (isa_ == Isa::kRef) return ref::qkv_rope_store(args);
    const auto row = kernels_of(isa_).qkv_row;
    for_rows(pool_, args.qkv.rows, args.qkv.rows * args.qkv.cols, [&](int64_t t) { row(args, t); });
  }

  void attention(const AttentionArgs& args) override {
    if (isa_ == Isa::kRef) return ref::attention(args);
    plan_.run(kernels_of(isa_), args, pool_);
  }

  Result<std::unique_ptr<MlaProjection>> pack_mla(const MlaProjectionSpec& spec) override {
    return PackedMla::pack(spec, !options_.quantise_activations);
  }

  void mla_store(const MlaStoreArgs& args) override {
    if (isa_ == Isa::kRef) return ref::mla_store(args);
    mla_.store(mla_kernels_of(isa_), args, pool_);
  }

  void mla_attention(const MlaAttentionArgs& args) override {
    if (isa_ == Isa::kRef) return ref::mla_attention(args);
    mla_.run(mla_kernels_of(isa_), args, pool_);
  }

  void route(const RouteArgs& args) override {
    if (isa_ == Isa::kRef) return ref::route(args);
    const RouterSpec& router = *args.router;
    // Scores cost an exponential each, as much as passing over sixteen elements.
    for_rows(pool_, args.logits.rows, args.logits.rows * router.experts * 16, [&](int64_t t) {
      static thread_local RouterScratch<float> scratch;
      route_row(router, args.logits.row(t), scratch, args.experts + t * router.top_k,
                args.weights + t * router.top_k);
    });
  }

  void experts(const ExpertsArgs& args) override {
    if (isa_ == Isa::kRef) return experts_ref(args);
    experts_plan_.run(linear_kernels(isa_), args, pool_);
  }

  void begin_step() override { pool_.begin_burst(); }
  void end_step() override { pool_.end_burst(); }

 private:
  const Isa isa_;
  const PackOptions options_;
  platform::ThreadPool& pool_;
  AttentionPlan plan_;
  ExpertsPlan experts_plan_;
  MlaPlan mla_;
};

}  // namespace

std::vector<Isa> supported_isas() {
  const platform::IsaSupport& cpu = platform::isa_support();
  std::vector<Isa> isas = {Isa::kRef};
  if (cpu.avx2) isas.push_back(Isa::kAvx2);
  if (cpu.avx512) isas.push_back(Isa::kAvx512);
  return isas;
}

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      return "ref";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "?";
}

Result<std::shared_ptr<Ops>> make_cpu_ops(const CpuOpsOptions& options,
                                          platform::ThreadPool& pool) {
  const PackOptions pack{options.quantise_activations, options.fp8_as_int8};
  const std::vector<Isa> isas = supported_isas();
  if (options.isa && std::find(isas.begin(), isas.end(), *options.isa) == isas.end()) {
    std::string have;
    for (const Isa isa : isas) have += (have.empty() ? "" : ", ") + std::string(isa_name(isa));
    return invalid_argument("this CPU (" + platform::cpu_model_name() + ") cannot run the " +
                            std::string(isa_name(*options.isa)) + " kernels; it supports: " + have);
  }
  const Isa isa = options.isa ? *options.isa : fastest_isa(pack, pool);
  LOG_INFO("CPU kernels: {} on {} thread{} ({})", isa_name(isa), pool.size(),
           pool.size() == 1 ? "" : "s", platform::cpu_model_name());
  return std::shared_ptr<Ops>(std::make_shared<CpuOps>(isa, pack, pool));
}

}  // namespace capstan::kernels
