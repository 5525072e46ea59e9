// What the engine thread does: take commands, plan, run, commit, tell.
#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/log.h"
#include "engine/engine_impl.h"

namespace capstan::engine {
namespace {

// Walking the whole cache takes milliseconds when it is large, and a request may be about to
// arrive.
constexpr double kSecondsBetweenChecks = 10;

}  // namespace

void EngineImpl::run() {
  ::pthread_setname_np(::pthread_self(), "engine");
  while (wait_for_work()) {
    take_commands();
    expire();
    if (steps_allowed_) {
      step();
    } else {
      publish();
    }
    if (live_.empty()) check_when_idle();
  }
  take_commands();
  end_all("the server was stopped", ErrorCode::kUnavailable);
  publish();
}

bool EngineImpl::wait_for_work() {
  std::unique_lock lock(mutex_);
  const auto ready = [this] {
    return stop_ || !mailbox_.empty() || steps_allowed_ == paused_ ||
           (!paused_ && !stalled_ && !live_.empty());
  };
  if (!ready()) {
    working_now_ = false;
    model_->rest();
    if (const auto deadline = next_deadline()) {
      wake_.wait_until(lock,
                       epoch_ + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                    std::chrono::duration<double>(*deadline)),
                       ready);
    } else {
      wake_.wait(lock, ready);
    }
  }
  if (!working_now_) {
    progress_ns_ = static_cast<int64_t>(now() * 1e9);
    working_now_ = !paused_;
  }
  stalled_ = false;
  steps_allowed_ = !paused_;
  commands_.swap(mailbox_);
  mailbox_requests_ = 0;
  return !stop_;
}

void EngineImpl::take_commands() {
  for (Command& command : commands_) {
    if (auto* live = std::get_if<std::unique_ptr<LiveRequest>>(&command)) {
      admit(std::move(*live));
    } else if (auto* one = std::get_if<Cancel>(&command)) {
      if (LiveRequest* live = find(one->id)) {
        end(*live, one->kind, std::move(one->message), ErrorCode::kAborted);
      }
    } else if (auto* all = std::get_if<CancelAll>(&command)) {
      end_all(all->message, all->code);
    } else {
      std::get<Flush>(command).done.set_value(live_.empty() && scheduler_->flush_cache());
    }
  }
  commands_.clear();
}

void EngineImpl::admit(std::unique_ptr<LiveRequest> owned) {
  LiveRequest& live = *owned;
  if (live.request.probe) probes_.push_back(live.id);
  live_.emplace(live.id, std::move(owned));
  EngineRequest& request = live.request;
  scheduler::RequestSpec spec;
  spec.id = live.id;
  spec.max_new_tokens = live.max_new_tokens;
  spec.priority = request.priority;
  spec.cache_namespace = cache_namespace(request.cache_salt);
  spec.sibling_group = request.sibling_group;
  spec.bypass_queue_limit = request.probe;
  spec.no_cache = request.probe;
  spec.arrival = live.submitted;
  if (live.wants_prompt_logprobs()) {
    spec.logprob_start = request.sampling.logprob_start;
    spec.prompt = request.prompt;
    OutputToken first;  // nothing is computed before it
    first.token = request.prompt[static_cast<size_t>(spec.logprob_start)];
    first.logprob = std::numeric_limits<float>::quiet_NaN();
    live.prompt_logprobs.push_back(std::move(first));
  } else {
    spec.prompt = std::move(request.prompt);
  }
  if (speculator_ != nullptr && !request.probe) speculator_->begin(live.id, spec.prompt);
  if (Status added = scheduler_->add(std::move(spec)); !added.ok()) {
    live.abort_code = added.error().code;
    finish(live, FinishKind::kAbort, added.error().message);
  }
}

void EngineImpl::end(LiveRequest& live, FinishKind kind, std::string message, ErrorCode code) {
  // Commands are taken between steps only, so nothing of the request is in flight.
  scheduler_->cancel(live.id, kind);
  live.abort_code = code;
  finish(live, kind, message);
}

void EngineImpl::end_all(const std::string& message, ErrorCode code) {
  while (!live_.empty()) end(*live_.begin()->second, FinishKind::kAbort, message, code);
}

std::optional<double> EngineImpl::next_deadline() const {
  double earliest = std::numeric_limits<double>::infinity();
  for (const auto& [id, live] : live_) {
    if (live->admitted < 0) {
      if (config_.queue_timeout >= 0) {
        earliest = std::min(earliest, live->submitted + config_.queue_timeout);
      }
    } else if (config_.run_timeout >= 0) {
      earliest = std::min(earliest, live->admitted + config_.run_timeout);
    }
  }
  if (std::isinf(earliest)) return std::nullopt;
  return earliest;
}

void EngineImpl::expire() {
  if (config_.queue_timeout < 0 && config_.run_timeout < 0) return;
  const double t = now();
  std::vector<LiveRequest*> late;
  for (const auto& [id, live] : live_) {
    const bool waits = live->admitted < 0;
    const double limit = waits ? config_.queue_timeout : config_.run_timeout;
    if (limit >= 0 && t - (waits ? live->submitted : live->admitted) >= limit) {
      late.push_back(live.get());
    }
  }
  for (LiveRequest* live : late) {
    const bool waits = live->admitted < 0;
    end(*live, FinishKind::kAbort,
        waits ? "the request waited longer than " + std::to_string(config_.queue_timeout) +
                    " s for its turn (SGLANG_REQ_WAITING_TIMEOUT); retry later"
              : "the request ran longer than " + std::to_string(config_.run_timeout) +
                    " s (SGLANG_REQ_RUNNING_TIMEOUT)",
        ErrorCode::kUnavailable);
  }
}

void EngineImpl::step() {
  if (speculator_ != nullptr) speculator_->propose(*scheduler_, decoding_);
  const scheduler::StepPlan plan = scheduler_->plan(now());
  for (const scheduler::Finished& f : plan.finished) {
    if (LiveRequest* live = find(f.id)) {
      if (f.kind == FinishKind::kAbort) live->abort_code = ErrorCode::kResourceExhausted;
      finish(*live, f.kind, f.message);
    }
  }
  if (plan.empty()) {
    stalled_ = !live_.empty();
    publish();
    return;
  }
  StepFacts facts;
  note_admissions(plan, facts);
  publish();  // who runs and who waits, before a long step rather than after it

  const double began = now();
  watchdog_->step_begins();
  sampled_.assign(plan.items.size(), {});
  Status status;
  try {
    status = forward_and_sample(plan);
  } catch (const std::exception& e) {
    status = internal_error(e.what());
  } catch (...) {
    status = internal_error("an exception of unknown type");
  }
  watchdog_->step_ends();
  const double ended = now();
  progress_ns_ = static_cast<int64_t>(ended * 1e9);
  if (!status.ok()) {
    fail_step(plan, status.error());
    publish();
    return;
  }

  const std::vector<scheduler::Finished> finished = scheduler_->commit(plan, sampled_, ended);
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const LiveRequest* live = find(plan.items[i].id);
    if (live == nullptr || live->request.probe) continue;
    facts.generated_tokens += static_cast<int64_t>(live->new_tokens.size());
  }
  facts.seconds = ended - began;
  learn(plan, facts);
  LOG_DEBUG("Step {}: {} decode, {} prefill, {:.3f} ms; {:.3f} ms since the last",
            working_.steps + 1, plan.decode_tokens, plan.prefill_tokens, 1e3 * facts.seconds,
            1e3 * (began - step_ended_));
  step_ended_ = ended;
  refresh_scheduler_stats();
  report_.step(facts, ended, working_);
  deliver(plan, finished);
  publish();
}

void EngineImpl::note_admissions(const scheduler::StepPlan& plan, StepFacts& facts) {
  const double t = now();
  std::lock_guard lock(stats_mutex_);
  outline_.number = working_.steps + 1;
  outline_.decode = outline_.prefill_items = outline_.prefill_tokens = 0;
  outline_.ids.clear();
  prompt_rows_.assign(plan.items.size(), {});
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const scheduler::PlanItem& item = plan.items[i];
    LiveRequest& live = *find(item.id);
    outline_.ids.push_back(item.id);
    if (live.wants_prompt_logprobs()) {
      prompt_rows_[i] = {std::max(item.start, live.next_prompt_row),
                         std::min(item.start + item.count, live.prompt_length - 1)};
    }
    if (item.first_chunk && live.admitted < 0) {
      live.admitted = t;
      live.cached_tokens = item.cached_tokens;
    } else if (item.first_chunk) {
      ++live.retractions;  // it is back
    }
    if (item.is_decode) {
      ++outline_.decode;
    } else {
      ++outline_.prefill_items;
      outline_.prefill_tokens += item.count;
    }
    if (live.request.probe) continue;
    if (item.is_decode) {
      ++facts.decode_items;
    } else {
      facts.prefill_tokens += item.count;
    }
    if (item.first_chunk) {
      ++facts.new_sequences;
      facts.cached_tokens += item.cached_tokens;
      // What it held before a retraction is to be computed again, like a prompt.
      facts.prompt_tokens += live.prompt_length + live.generated;
    }
  }
}

void EngineImpl::fail_step(const scheduler::StepPlan& plan, const Error& error) {
  // The end of a group was told already, in one line.
  if (error.code != ErrorCode::kUnavailable) {
    LOG_ERROR("A step of {} requests failed, they are aborted: {}", plan.items.size(),
              error.message);
  }
  scheduler_->abandon(plan);  // nothing it wrote may be served from the cache
  for (const scheduler::PlanItem& item : plan.items) {
    LiveRequest* live = find(item.id);
    if (live == nullptr) continue;
    live->new_tokens.clear();
    end(*live, FinishKind::kAbort,
        "the model failed while computing this request: " + error.message,
        error.code == ErrorCode::kUnavailable ? ErrorCode::kUnavailable : ErrorCode::kInternal);
  }
}

void EngineImpl::deliver(const scheduler::StepPlan& plan,
                         const std::vector<scheduler::Finished>& finished) {
  for (const scheduler::Finished& f : finished) {
    if (LiveRequest* live = find(f.id)) finish(*live, f.kind, f.message);
  }
  for (const scheduler::PlanItem& item : plan.items) {
    LiveRequest* live = find(item.id);
    if (live != nullptr && !live->new_tokens.empty()) send(*live, make_event(*live));
  }
}

OutputEvent EngineImpl::make_event(LiveRequest& live) {
  OutputEvent event;
  event.tokens = std::move(live.new_tokens);
  live.new_tokens.clear();
  event.prompt_tokens = live.prompt_length;
  event.cached_tokens = live.cached_tokens;
  event.retractions = live.retractions;
  event.decode_steps = live.decode_steps;
  event.queue_seconds = (live.admitted < 0 ? now() : live.admitted) - live.submitted;
  event.prompt_logprobs = std::move(live.prompt_logprobs);
  live.prompt_logprobs.clear();
  return event;
}

void EngineImpl::send(LiveRequest& live, OutputEvent&& event) {
  try {
    live.sink(std::move(event));
  } catch (const std::exception& e) {
    LOG_ERROR("The sink of request {} threw: {}", live.id, e.what());
  } catch (...) {
    LOG_ERROR("The sink of request {} threw", live.id);
  }
}

void EngineImpl::finish(LiveRequest& live, FinishKind kind, const std::string& message) {
  OutputEvent event = make_event(live);
  event.finished = true;
  event.finish = kind;
  if (kind == FinishKind::kStop) event.matched_token = live.matched_token;
  if (kind == FinishKind::kAbort) {
    event.message = live.abort_message.empty() ? message : std::move(live.abort_message);
    event.abort_code = live.abort_code;
  }
  if (speculator_ != nullptr) speculator_->end(live.id);
  if (live.request.probe) {
    std::erase(probes_, live.id);
  } else {
    ++working_.finished_requests;
    if (kind == FinishKind::kAbort) ++working_.aborted_requests;
  }
  send(live, std::move(event));
  live_.erase(live.id);
  ++ended_;
}

LiveRequest* EngineImpl::find(RequestId id) {
  const auto it = live_.find(id);
  return it == live_.end() ? nullptr : it->second.get();
}

void EngineImpl::refresh_scheduler_stats() {
  working_.scheduler = scheduler_->stats();
  int probes_running = 0, probes_waiting = 0;
  for (RequestId id : probes_) {
    ++(find(id)->admitted < 0 ? probes_waiting : probes_running);
  }
  working_.scheduler.running = std::max(0, working_.scheduler.running - probes_running);
  working_.scheduler.waiting = std::max(0, working_.scheduler.waiting - probes_waiting);
}

void EngineImpl::publish() {
  refresh_scheduler_stats();
  if (live_.empty()) report_.idle(working_);
  {
    std::lock_guard lock(mutex_);
    queued_ = working_.scheduler.waiting + mailbox_requests_;
  }
  {
    std::lock_guard lock(stats_mutex_);
    stats_ = working_;
  }
  live_count_.fetch_sub(std::exchange(ended_, 0));
}

/// Salts are told apart by their text, not by a hash of it: two tenants never share a prefix. The
/// table is bounded; a salt that comes back after it was dropped starts with an empty cache.
uint64_t EngineImpl::cache_namespace(const std::string& salt) {
  constexpr size_t kMaxSalts = 1 << 16;
  if (salt.empty()) return 0;
  if (salts_.size() >= kMaxSalts) salts_.clear();
  const auto [it, inserted] = salts_.try_emplace(salt, next_namespace_);
  if (inserted) ++next_namespace_;
  return it->second;
}

void EngineImpl::check_when_idle() {
  if (now() - last_check_ < kSecondsBetweenChecks) return;
  last_check_ = now();
  if (Status status = scheduler_->check_invariants(); !status.ok()) {
    LOG_ERROR("Scheduler or cache is inconsistent: {}", status.error().message);
  }
}

}  // namespace capstan::engine
