// From one row of logits to one token and its log-probabilities. The order of operations and the
// meaning of every parameter: docs/sampling.md.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/sampling_params.h"
#include "engine/token_counts.h"
#include "platform/thread_pool.h"

namespace capstan::engine {

/// No log-probability is reported below this; masked tokens have it. JSON knows no -infinity, and
/// OpenAI's API uses the same floor for "practically never".
inline constexpr float kLogprobFloor = -9999.0f;

struct SampleInput {
  float* logits = nullptr;  // [vocab]; penalties, bias and masks are applied in place
  int64_t vocab = 0;
  const SamplingParams* params = nullptr;
  const TokenCounts* counts = nullptr;  // of generated tokens; null when no penalty needs them
  std::span<const int32_t> end_ids;     // EOS and stop ids, -inf below min_new_tokens
  int32_t generated = 0;                // tokens generated before this one, assumed ones included
  uint64_t seed = 0;
  uint32_t choice = 0;
  /// Drafts taken as generated after `counts` was made: the row is used only if they hold.
  std::span<const int32_t> assumed = {};
};

struct SampleOutput {
  OutputToken token;     // token -1: nothing could be drawn, see error
  int64_t replaced = 0;  // NaN and infinite logits that were replaced
  std::string error;
};

struct SamplerOptions {
  int32_t token_limit = 0;  // ids from here on are never drawn or reported; 0 = none
  bool return_original_logprob = false;
};

/// Scratch memory and code for one row at a time; one per thread.
class RowSampler {
 public:
  explicit RowSampler(const SamplerOptions& options) : options_(options) {}

  void sample(const SampleInput& in, SampleOutput& out);

  /// The log-probability of prompt token `token` from the row before it: plain softmax.
  /// Alternatives as `params` asks for.
  void prompt_logprob(const float* logits, int64_t vocab, int32_t token,
                      const SamplingParams& params, OutputToken& out);

 private:
  int32_t draw(const SampleInput& in, int64_t n, float max, double total, double uniform);
  int32_t draw_filtered(const SamplingParams& params, const float* x, int64_t n, float max,
                        double total, double uniform);
  size_t kept_prefix(const float* x, size_t k, double mass_limit);
  void report(const float* x, int64_t n, float max, float inverse_temperature, double total,
              const SamplingParams& params, OutputToken& out);
  int64_t row_length(int64_t vocab) const;

  SamplerOptions options_;
  std::vector<float> p_, maxima_;
  std::vector<double> block_sums_;
  std::vector<int32_t> candidates_, order_;
};

/// Samples many rows, spread over the pool where that pays.
class Sampler {
 public:
  Sampler(const SamplerOptions& options, platform::ThreadPool* pool);

  /// out.size() == in.size().
  void sample(std::span<const SampleInput> in, std::span<SampleOutput> out);

  /// Calls f(RowSampler&, i) for i in [0, n), on the pool when `elements` floats to be read are
  /// enough to pay for the hand-over. f must not throw.
  template <class F>
  void each(size_t n, int64_t elements, F&& f);

 private:
  // Handing rows to threads that spin costs about a microsecond; this is some 20 us of work.
  static constexpr int64_t kParallelElements = 1 << 17;

  platform::ThreadPool* pool_;
  std::vector<RowSampler> rows_;  // one per thread
};

template <class F>
void Sampler::each(size_t n, int64_t elements, F&& f) {
  if (pool_ == nullptr || n < 2 || elements < kParallelElements) {
    for (size_t i = 0; i < n; ++i) f(rows_[0], i);
    return;
  }
  std::atomic<size_t> next{0};
  pool_->run([&](int thread) {
    for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) {
      f(rows_[static_cast<size_t>(thread)], i);
    }
  });
}

}  // namespace capstan::engine
