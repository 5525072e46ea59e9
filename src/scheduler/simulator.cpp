#include "scheduler/simulator.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>

namespace capstan::scheduler {
namespace {

class Simulation {
 public:
  Simulation(std::unique_ptr<Scheduler> scheduler, const CostModel& cost,
             std::span<const Arrival> trace, const SimulationOptions& options)
      : scheduler_(std::move(scheduler)), cost_(cost), trace_(trace), options_(options) {
    result_.requests.resize(trace.size());
    last_token_.resize(trace.size(), -1);
  }

  Result<SimulationResult> run() {
    while (next_ < trace_.size() || !scheduler_->idle()) {
      if (scheduler_->idle()) now_ = std::max(now_, trace_[next_].at);
      admit_arrivals();
      CAPSTAN_RETURN_IF_ERROR(step());
    }
    result_.makespan = now_;
    summarise();
    return std::move(result_);
  }

 private:
  static size_t index(RequestId id) { return static_cast<size_t>(id - 1); }

  void admit_arrivals() {
    for (; next_ < trace_.size() && trace_[next_].at <= now_; ++next_) {
      RequestSpec spec = trace_[next_].spec;
      spec.id = next_ + 1;
      spec.arrival = trace_[next_].at;
      RequestOutcome& outcome = result_.requests[next_];
      outcome.prompt_tokens = static_cast<int32_t>(spec.prompt.size());
      outcome.first_admitted = -1;
      outcome.refused = !scheduler_->add(std::move(spec)).ok();
    }
  }

  Status step() {
    propose_drafts();
    const StepPlan plan = scheduler_->plan(now_);
    for (const Finished& f : plan.finished) result_.requests[index(f.id)].refused = true;
    const SchedulerStats stats = scheduler_->stats();
    result_.max_running = std::max(result_.max_running, stats.running);
    result_.max_waiting = std::max(result_.max_waiting, stats.waiting);
    if (plan.empty()) {
      if (stats.running + stats.waiting == 0) return {};
      return internal_error("the scheduler plans nothing while " + std::to_string(stats.running) +
                            " requests run and " + std::to_string(stats.waiting) + " wait");
    }
    sampled_.assign(plan.items.size(), {});
    for (size_t i = 0; i < plan.items.size(); ++i) begin_item(plan.items[i], sampled_[i]);
    const double luck = 1 + cost_.jitter * noise();
    const double seconds = cost_.seconds(plan) * luck;
    now_ += seconds;
    result_.busy += seconds;
    result_.communication += cost_.communication_seconds(plan) * luck;
    result_.computed_prefill_tokens += plan.prefill_tokens;
    result_.draft_tokens += plan.draft_tokens;
    for (size_t i = 0; i < plan.items.size(); ++i) {
      const PlanItem& item = plan.items[i];
      if (item.samples) tokens_came(index(item.id), 1 + sampled_[i].accepted);
      result_.accepted_tokens += sampled_[i].accepted;
      result_.requests[index(item.id)].retractions = scheduler_->retractions(item.id);
    }
    for (const Finished& f : scheduler_->commit(plan, sampled_, now_)) {
      std::erase(drafting_, f.id);
      result_.requests[index(f.id)].finish = f.kind;
      result_.requests[index(f.id)].finished = now_;
    }
    ++result_.steps;
    if (options_.check_every > 0 && result_.steps % options_.check_every == 0) {
      return scheduler_->check_invariants();
    }
    return {};
  }

  void begin_item(const PlanItem& item, SampledToken& sampled) {
    RequestOutcome& outcome = result_.requests[index(item.id)];
    if (outcome.first_admitted < 0) {
      outcome.first_admitted = now_;
      outcome.cached_tokens = item.cached_tokens;
    }
    if (!item.samples) return;
    if (options_.draft_tokens > 0 && outcome.output_tokens == 0) drafting_.push_back(item.id);
    const Arrival& arrival = trace_[index(item.id)];
    for (;; ++sampled.accepted) {
      const int32_t written = outcome.output_tokens + sampled.accepted;
      sampled.token = simulated_token(arrival.output_stream, written);
      if (written + 1 >= arrival.output_tokens) {
        sampled.stop = FinishKind::kStop;
        break;
      }
      if (sampled.accepted == item.drafts) break;
      const auto draft = static_cast<size_t>(item.count - item.drafts + sampled.accepted);
      if (item.tokens[draft] != sampled.token) break;
    }
  }

  void propose_drafts() {
    for (const RequestId id : drafting_) {
      const int32_t written = result_.requests[index(id)].output_tokens;
      bool holds = true;
      drafts_.clear();
      for (int32_t i = 0; i < options_.draft_tokens; ++i) {
        holds = holds && 0.5 * (noise() + 1) < options_.acceptance;
        const uint64_t stream = trace_[index(id)].output_stream;
        drafts_.push_back(holds ? simulated_token(stream, written + i) : -1);
      }
      scheduler_->propose(id, drafts_);
    }
  }

  void tokens_came(size_t request, int32_t count) {
    RequestOutcome& outcome = result_.requests[request];
    if (outcome.output_tokens == 0) {
      outcome.first_token = now_;
    } else {
      const double gap = (now_ - last_token_[request]) / count;
      for (int32_t i = 0; i < count; ++i) {
        itl_.push_back(gap);
        if (options_.keep_gaps) result_.gaps.push_back({request, now_, gap});
      }
    }
    outcome.output_tokens += count;
    last_token_[request] = now_;
  }

  void summarise() {
    std::vector<double> queue;
    std::vector<double> ttft;
    std::vector<double> e2e;
    for (size_t i = 0; i < trace_.size(); ++i) {
      const RequestOutcome& outcome = result_.requests[i];
      if (outcome.refused) {
        ++result_.refused;
        continue;
      }
      queue.push_back(outcome.first_admitted - trace_[i].at);
      if (outcome.output_tokens > 0) ttft.push_back(outcome.first_token - trace_[i].at);
      e2e.push_back(outcome.finished - trace_[i].at);
      result_.prompt_tokens += outcome.prompt_tokens;
      result_.cached_tokens += outcome.cached_tokens;
      result_.output_tokens += outcome.output_tokens;
    }
    result_.queue_time = Percentiles::of(std::move(queue));
    result_.ttft = Percentiles::of(std::move(ttft));
    result_.itl = Percentiles::of(std::move(itl_));
    result_.e2e = Percentiles::of(std::move(e2e));
    result_.retractions = scheduler_->stats().retractions;
  }

  /// In [-1, 1).
  double noise() { return static_cast<double>(random_() >> 11) * 0x1.0p-52 - 1; }

  std::mt19937_64 random_;
  std::unique_ptr<Scheduler> scheduler_;
  CostModel cost_;
  std::span<const Arrival> trace_;
  SimulationOptions options_;
  SimulationResult result_;
  std::vector<double> last_token_;
  std::vector<double> itl_;
  std::vector<SampledToken> sampled_;
  std::vector<RequestId> drafting_;  // those that wrote a token and have not ended
  std::vector<int32_t> drafts_;
  size_t next_ = 0;
  double now_ = 0;
};

}  // namespace

double CostModel::seconds(const StepPlan& plan) const {
  double contexts = 0;
  double pairs = 0;
  for (const PlanItem& item : plan.items) {
    if (item.is_decode) {
      contexts += item.count * (item.start + 0.5 * (item.count + 1));
    } else {
      pairs += item.count * (item.start + 0.5 * (item.count + 1));
    }
  }
  return step + prefill_token * plan.prefill_tokens + decode_token * plan.decode_tokens +
         context_token * contexts + attention_pair * pairs + communication_seconds(plan);
}

double CostModel::communication_seconds(const StepPlan& plan) const {
  return communication.step + communication.prefill_token * plan.prefill_tokens +
         communication.decode_token * plan.decode_tokens;
}

int32_t simulated_token(uint64_t output_stream, int32_t i) {
  uint64_t h = (output_stream + 1) * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(i);
  h = (h ^ (h >> 31)) * 0xD6E8FEB86659FD93u;
  return static_cast<int32_t>((1u << 30) | ((h >> 33) & ((1u << 30) - 1)));
}

Percentiles Percentiles::of(std::vector<double> samples) {
  Percentiles p;
  if (samples.empty()) return p;
  std::sort(samples.begin(), samples.end());
  const auto rank = [&](double q) {
    const auto n = static_cast<double>(samples.size());
    return samples[static_cast<size_t>(std::max(std::ceil(q * n) - 1, 0.0))];
  };
  double sum = 0;
  for (const double sample : samples) sum += sample;
  p.mean = sum / static_cast<double>(samples.size());
  p.p50 = rank(0.50);
  p.p90 = rank(0.90);
  p.p99 = rank(0.99);
  p.max = samples.back();
  return p;
}

Result<SimulationResult> simulate(const SchedulerConfig& config, const CostModel& cost,
                                  std::span<const Arrival> trace,
                                  const SimulationOptions& options) {
  for (size_t i = 1; i < trace.size(); ++i) {
    if (trace[i].at < trace[i - 1].at) {
      return invalid_argument("the trace is not sorted by time: request " + std::to_string(i) +
                                  " comes at " + std::to_string(trace[i].at) + " s, after one at " +
                                  std::to_string(trace[i - 1].at) + " s",
                              "trace");
    }
  }
  for (const double coefficient :
       {cost.step, cost.prefill_token, cost.decode_token, cost.context_token, cost.attention_pair,
        cost.communication.step, cost.communication.prefill_token,
        cost.communication.decode_token}) {
    if (!(coefficient >= 0)) {
      return invalid_argument("a coefficient of the cost model is " + std::to_string(coefficient) +
                                  ": must not be negative",
                              "cost");
    }
  }
  if (options.draft_tokens < 0 || !(options.acceptance >= 0 && options.acceptance <= 1)) {
    return invalid_argument(std::to_string(options.draft_tokens) + " draft tokens accepted with " +
                                "probability " + std::to_string(options.acceptance) +
                                ": must be 0 or more, with a probability in [0, 1]",
                            "options");
  }
  if (!(cost.jitter >= 0 && cost.jitter < 1)) {
    return invalid_argument(
        "the jitter of the cost model is " + std::to_string(cost.jitter) + ": must be in [0, 1)",
        "cost");
  }
  if (cost.step + std::min(cost.prefill_token, cost.decode_token) <= 0) {
    return invalid_argument("the cost model has steps that take no time: set step", "cost");
  }
  CAPSTAN_ASSIGN(auto scheduler, Scheduler::create(config));
  return Simulation(std::move(scheduler), cost, trace, options).run();
}

}  // namespace capstan::scheduler
