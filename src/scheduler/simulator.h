// Drives the scheduler with a cost model and a virtual clock instead of a model and a device:
// scheduling tested and clusters planned with thousands of requests in milliseconds.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "scheduler/scheduler.h"

namespace capstan::scheduler {

/// Seconds that a step takes, linear in what it computes:
///   step + prefill_token * prefill + decode_token * decode (drafts included)
///        + context_token * (sum of contexts read by decode rows)
///        + attention_pair * (sum over prefill rows of the context each of them reads).
/// and of that up to `jitter` more or less, at random, but the same in every run.
/// Fit the coefficients to measured steps of the machine in question; all >= 0, not all 0.
struct CostModel {
  double step = 0;           // weights read once, launches, host
  double prefill_token = 0;  // arithmetic of one prompt token
  double decode_token = 0;   // arithmetic of one decoded token
  double context_token = 0;  // reading the KV of one position
  double attention_pair = 0;
  double jitter = 0;  // share, below 1

  /// Of a step with ranks that talk (cluster_cost.h): latency of its collectives, and their bytes.
  /// Comes on top of the above.
  struct Communication {
    double step = 0, prefill_token = 0, decode_token = 0;
  } communication = {};

  double seconds(const StepPlan& plan) const;
  double communication_seconds(const StepPlan& plan) const;  // share of the above
};

/// One request of a trace. The id and the arrival in `spec` are overwritten.
struct Arrival {
  double at = 0;  // seconds; ascending through the trace
  RequestSpec spec;
  /// Tokens after which the model stops by itself; spec.max_new_tokens may end it earlier.
  int32_t output_tokens = 0;
  uint64_t output_stream = 0;  // which tokens the model writes, see simulated_token
};

/// The token that a simulated model writes as i-th output of a request with this output_stream, so
/// that the next turn of a conversation can be written into the trace. Above 2^30, thus unlike
/// prompt tokens unless copied there.
int32_t simulated_token(uint64_t output_stream, int32_t i);

struct RequestOutcome {
  bool refused = false;  // by add(), or pushed out of a full queue
  FinishKind finish = FinishKind::kNone;
  double first_admitted = 0;  // seconds of the virtual clock, as the next two
  double first_token = 0;
  double finished = 0;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // at first admission
  int32_t output_tokens = 0;
  int32_t retractions = 0;
};

struct Percentiles {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
  /// Nearest rank; all 0 without samples.
  static Percentiles of(std::vector<double> samples);
};

struct TokenGap {
  size_t request = 0;  // index in the trace
  double at = 0;       // when the later token came
  double seconds = 0;
};

struct SimulationResult {
  Percentiles queue_time, ttft, itl, e2e;  // seconds; of requests not refused
  double makespan = 0;                     // from 0 to the end of the last step
  double busy = 0;                         // seconds of it in which a step ran
  double communication = 0;                // seconds of these that ranks talked
  int64_t steps = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  int64_t computed_prefill_tokens = 0;  // recomputed ones included
  int64_t draft_tokens = 0, accepted_tokens = 0;
  uint64_t retractions = 0;
  int64_t refused = 0;
  int max_running = 0, max_waiting = 0;
  double hit_rate() const {
    return prompt_tokens == 0 ? 0 : static_cast<double>(cached_tokens) / prompt_tokens;
  }
  double output_tokens_per_second() const { return makespan > 0 ? output_tokens / makespan : 0; }

  std::vector<RequestOutcome> requests;  // parallel to the trace
  std::vector<TokenGap> gaps;            // if asked for
};

struct SimulationOptions {
  int check_every = 0;  // steps between checks of all invariants; 0: never
  bool keep_gaps = false;
  /// Speculation: this many tokens are proposed for every request that decodes. Each holds with
  /// probability `acceptance`, if those before it do. Tokens that come in one step share its gap
  /// equally.
  int draft_tokens = 0;
  double acceptance = 0;
};

/// Runs the trace to its end. kInvalidArgument for a bad configuration, an unsorted trace or a
/// model in which steps take no time; kInternal when an invariant breaks or requests wait while
/// nothing runs.
Result<SimulationResult> simulate(const SchedulerConfig& config, const CostModel& cost,
                                  std::span<const Arrival> trace,
                                  const SimulationOptions& options = {});

}  // namespace capstan::scheduler
