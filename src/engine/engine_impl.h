// The engine thread and its mailbox; members are spread over engine.cpp (any thread),
// engine_loop.cpp and engine_step.cpp (engine thread).
// Who may touch what:
//   engine thread   scheduler, KV memory, live requests, sampler, report
//   any thread      mailbox_ (under mutex_), stats_ (under stats_mutex_), the atomics
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <future>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>
#include <variant>

#include "engine/batch_builder.h"
#include "engine/live_request.h"
#include "engine/speculator.h"
#include "engine/step_report.h"
#include "engine/watchdog.h"

namespace capstan::engine {

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::unique_ptr<model::Model> model, const EngineConfig& config, model::KvStore kv,
             std::unique_ptr<scheduler::Scheduler> scheduler);
  ~EngineImpl() override;

  Result<RequestId> submit(EngineRequest request, OutputSink sink) override;
  void cancel(RequestId id, FinishKind kind, std::string message) override;
  void cancel_all(std::string message) override;
  void fail(const Error& why) override;
  void set_paused(bool paused) override;
  bool flush_cache() override;
  void begin_drain() override { draining_ = true; }
  /// Then the statistics count every request that has ended.
  bool idle() const override { return live_count_ == 0; }
  EngineStats stats() const override;
  std::vector<std::vector<uint64_t>> expert_load() const override { return model_->expert_load(); }
  const model::ModelConfig& model_config() const override { return model_->config(); }
  const EngineConfig& config() const override { return config_; }

 private:
  struct Cancel {
    RequestId id;
    FinishKind kind;
    std::string message;
  };
  struct CancelAll {
    std::string message;
    ErrorCode code = ErrorCode::kAborted;
  };
  struct Flush {
    std::promise<bool> done;
  };
  using Command = std::variant<std::unique_ptr<LiveRequest>, Cancel, CancelAll, Flush>;

  void post(Command command);
  void run();
  /// Sleeps until there is a command or something to compute; false when the engine shall end.
  bool wait_for_work();
  void take_commands();
  void admit(std::unique_ptr<LiveRequest> live);
  void end(LiveRequest& live, FinishKind kind, std::string message, ErrorCode code);
  void expire();
  void step();
  Status forward_and_sample(const scheduler::StepPlan& plan);
  void report_prompt_rows(const scheduler::StepPlan& plan, MatrixView logits);
  void sample_rows(const scheduler::StepPlan& plan, MatrixView logits);
  void take_outputs(LiveRequest& live, const scheduler::PlanItem& item,
                    std::span<SampleOutput> outputs, scheduler::SampledToken& sampled);
  void learn(const scheduler::StepPlan& plan, StepFacts& facts);
  MatrixView logits_for(size_t rows);
  bool ask_for_hidden(const scheduler::StepPlan& plan, model::ForwardBatch& batch);
  void fail_step(const scheduler::StepPlan& plan, const Error& error);
  void note_admissions(const scheduler::StepPlan& plan, StepFacts& facts);
  void deliver(const scheduler::StepPlan& plan, const std::vector<scheduler::Finished>& finished);
  void send(LiveRequest& live, OutputEvent&& event);
  void finish(LiveRequest& live, FinishKind kind, const std::string& message);
  OutputEvent make_event(LiveRequest& live);
  void refresh_scheduler_stats();
  void publish();
  uint64_t cache_namespace(const std::string& salt);
  void check_when_idle();
  std::optional<double> next_deadline() const;
  void end_all(const std::string& message, ErrorCode code);
  LiveRequest* find(RequestId id);
  double now() const;
  std::string describe_step() const;

  const EngineConfig config_;
  const std::unique_ptr<model::Model> model_;
  model::KvStore kv_;
  const std::unique_ptr<scheduler::Scheduler> scheduler_;
  const std::chrono::steady_clock::time_point epoch_ = std::chrono::steady_clock::now();

  std::unordered_map<RequestId, std::unique_ptr<LiveRequest>> live_;
  int64_t ended_ = 0;                                // since the statistics were published
  std::vector<RequestId> probes_;                    // the live ones; left out of all figures
  std::unordered_map<std::string, uint64_t> salts_;  // cache salt -> namespace
  uint64_t next_namespace_ = 1;                      // 0: requests without a salt
  Sampler sampler_;
  BatchBuilder builder_;
  StepReport report_;
  const std::unique_ptr<Speculator> speculator_;  // null: no speculation
  std::vector<RequestId> decoding_;               // those that got a token in the last step
  bool steps_allowed_ = true;  // not paused, as of the last look into the mailbox
  bool stalled_ = false;       // the last plan was empty although requests wait
  double last_check_ = 0;
  double step_ended_ = 0;
  AlignedBuffer logits_;
  int64_t logits_stride_ = 0;
  std::vector<float> hidden_;
  std::vector<BatchBuilder::PromptRows> prompt_rows_;
  std::vector<scheduler::SampledToken> sampled_;
  std::vector<SampleInput> inputs_;
  std::vector<SampleOutput> outputs_;
  std::vector<size_t> input_items_;                       // plan items of inputs_
  std::vector<std::pair<size_t, LogitRow>> prompt_work_;  // row of logits, what it is for
  std::vector<Command> commands_;                         // taken from the mailbox

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Command> mailbox_;
  int queued_ = 0;            // waiting requests, those in the mailbox included; probes not
  int mailbox_requests_ = 0;  // of those, the ones in the mailbox
  bool stop_ = false;
  bool paused_ = false;
  std::optional<Error> failure_;  // of fail()

  mutable std::mutex stats_mutex_;
  EngineStats stats_;    // as published
  EngineStats working_;  // the engine thread's copy
  struct StepOutline {   // for the watchdog's report; under stats_mutex_
    uint64_t number = 0;
    int decode = 0, prefill_items = 0, prefill_tokens = 0;
    std::vector<RequestId> ids;
  } outline_;

  std::atomic<bool> draining_{false};
  std::atomic<int64_t> live_count_{0};
  std::atomic<RequestId> next_id_{1};
  std::atomic<bool> working_now_{false};  // a step runs or could
  std::atomic<int64_t> progress_ns_{0};   // since epoch_: the last step's end
  std::unique_ptr<Watchdog> watchdog_;
  std::thread thread_;
};

}  // namespace capstan::engine
