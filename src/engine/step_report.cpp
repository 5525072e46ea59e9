#include "engine/step_report.h"

#include <algorithm>
#include <cstdio>

#include "base/log.h"

namespace capstan::engine {
namespace {

double usage(const scheduler::SchedulerStats& s) {
  return s.total_tokens == 0
             ? 0
             : static_cast<double>(s.used_tokens) / static_cast<double>(s.total_tokens);
}

}  // namespace

void StepReport::step(const StepFacts& facts, double now, EngineStats& stats) {
  if (facts.new_sequences == 0 && facts.prefill_tokens == 0 && facts.decode_items == 0) return;
  ++stats.steps;
  stats.last_step_seconds = facts.seconds;
  stats.prefill_compute_tokens += static_cast<uint64_t>(facts.prefill_tokens);
  stats.prefill_cached_tokens += static_cast<uint64_t>(facts.cached_tokens);
  stats.decode_tokens += static_cast<uint64_t>(facts.generated_tokens);

  if (facts.prompt_tokens > 0) {
    if (hit_start_ < 0 || now - hit_start_ > kRefreshSeconds) {
      hit_start_ = now;
      hit_cached_ = hit_prompt_ = 0;
    }
    hit_cached_ += facts.cached_tokens;
    hit_prompt_ += facts.prompt_tokens;
    stats.cache_hit_rate = static_cast<double>(hit_cached_) / static_cast<double>(hit_prompt_);
  }
  if (facts.prefill_tokens > 0) {
    LOG_INFO(
        "Prefill batch. #new-seq: {}, #new-token: {}, #cached-token: {}, token usage: {:.2f}, "
        "#running-req: {}, #queue-req: {}",
        facts.new_sequences, facts.prefill_tokens, facts.cached_tokens, usage(stats.scheduler),
        stats.scheduler.running, stats.scheduler.waiting);
  }

  count_drafts(facts, stats);
  stats.spec_followed = facts.followed;
  stats.spec_draft_seconds += facts.draft_seconds;

  if (window_start_ < 0) {
    window_start_ = log_start_ = now - facts.seconds;
    window_tokens_ = log_tokens_ = 0;
  }
  window_tokens_ += facts.generated_tokens;
  log_tokens_ += facts.generated_tokens;
  if (now - window_start_ >= kRefreshSeconds) {
    stats.gen_throughput = static_cast<double>(window_tokens_) / (now - window_start_);
    window_start_ = now;
    window_tokens_ = 0;
  }
  if (facts.decode_items > 0 && ++decode_steps_ >= decode_log_interval_) {
    const double span = std::max(1e-9, now - log_start_);
    stats.gen_throughput = static_cast<double>(log_tokens_) / span;
    log_decode(stats);
    decode_steps_ = 0;
    verified_ = drafted_ = accepted_ = 0;
    log_start_ = window_start_ = now;
    log_tokens_ = window_tokens_ = 0;
  }
}

void StepReport::count_drafts(const StepFacts& facts, EngineStats& stats) {
  if (facts.verified_items == 0) return;
  stats.spec_verify_count += static_cast<uint64_t>(facts.verified_items);
  stats.spec_draft_tokens += static_cast<uint64_t>(facts.draft_tokens);
  stats.spec_accepted_tokens += static_cast<uint64_t>(facts.accepted_tokens);
  verified_ += facts.verified_items;
  drafted_ += facts.draft_tokens;
  accepted_ += facts.accepted_tokens;
  stats.spec_accept_length =
      static_cast<double>(verified_ + accepted_) / static_cast<double>(verified_);
  stats.spec_accept_rate =
      drafted_ > 0 ? static_cast<double>(accepted_) / static_cast<double>(drafted_) : 0;
}

void StepReport::log_decode(const EngineStats& stats) const {
  char speculation[64] = "";
  if (verified_ > 0) {
    std::snprintf(speculation, sizeof speculation, "accept len: %.2f, accept rate: %.2f, ",
                  stats.spec_accept_length, stats.spec_accept_rate);
  }
  LOG_INFO(
      "Decode batch. #running-req: {}, #token: {}, token usage: {:.2f}, {}gen throughput "
      "(token/s): {:.2f}, #queue-req: {}",
      stats.scheduler.running, stats.scheduler.used_tokens, usage(stats.scheduler), speculation,
      stats.gen_throughput, stats.scheduler.waiting);
}

void StepReport::idle(EngineStats& stats) {
  window_start_ = -1;
  stats.gen_throughput = 0;
  stats.spec_followed = 0;
}

}  // namespace capstan::engine
