#include "kernels/mla_plan.h"

namespace capstan::kernels {
namespace {

/// Elements of a batch below which mla_store stays on the calling thread, as in CpuOps.
constexpr int64_t kSerialElements = 8192;

/// Rows that are always absorbed, as decode is: verified drafts then have the bits of the steps
/// they stand for. It costs nothing: 16 queries over 16 keys are 6% faster so.
constexpr int kAbsorbedRows = 16;

}  // namespace

bool mla_prefers_naive(const MlaShape& s, int q_len, int kv_len) {
  if (q_len <= kAbsorbedRows) return false;
  // Multiply-adds per head. Naive: every key expanded, then query_dim + value_dim per visible pair.
  // Absorbed: every query through K_h and V_h, then 2*rank + rope_dim per pair. Both forms make
  // some 33 multiply-adds a nanosecond (one Zen 3 thread, V2-Lite's sizes), so counting them finds
  // the faster one: of 28 sizes from 16 queries over 16 keys to 256 over 4,352 it errs on 128 over
  // 384, by 8%, and on 16 over 16, by 6%. With much context the forms cross at 170 queries.
  const double weights = static_cast<double>(s.nope_dim + s.value_dim) * s.rank;
  const double pairs = static_cast<double>(q_len) * (kv_len - 0.5 * (q_len - 1));
  const double naive = weights * kv_len + pairs * (s.query_dim() + s.value_dim);
  const double absorbed = weights * q_len + pairs * (s.rank + s.cache_dim());
  return naive < absorbed;
}

void MlaPlan::store(const MlaKernels& kernels, const MlaStoreArgs& args,
                    platform::ThreadPool& pool) {
  const auto dim = static_cast<size_t>(mla_padded(args.shape.cache_dim()));
  const int threads =
      args.q.rows * args.q.cols < kSerialElements || args.q.rows == 1 ? 1 : pool.size();
  reserve_floats(store_scratch_, dim * static_cast<size_t>(threads));
  const auto rows = [&](int thread) {
    float* scratch = store_scratch_.as<float>() + dim * static_cast<size_t>(thread);
    const int64_t end = args.q.rows * (thread + 1) / threads;
    for (int64_t t = args.q.rows * thread / threads; t < end; ++t) {
      kernels.store_row(args, t, scratch);
    }
  };
  if (threads == 1) return rows(0);
  pool.run(rows);
}

void MlaPlan::run(const MlaKernels& kernels, const MlaAttentionArgs& args,
                  platform::ThreadPool& pool) {
  sequences_.clear();
  for (const SequenceSlice& sequence : args.sequences) {
    if (sequence.q_len == 0) continue;
    const bool naive = args.form == MlaForm::kNaive ||
                       (args.form == MlaForm::kAuto &&
                        mla_prefers_naive(args.shape, sequence.q_len, sequence.kv_len));
    if (naive) {
      naive_.run(kernels, args, sequence, pool);
    } else {
      sequences_.push_back(&sequence);
    }
  }
  if (!sequences_.empty()) absorbed_.run(kernels, args, sequences_, pool);
}

}  // namespace capstan::kernels
