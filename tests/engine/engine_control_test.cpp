// Arrival and departure: cancel, refuse, fail, drain, time out, and what the statistics say.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <thread>

#include "engine/engine_harness.h"

namespace capstan::engine {
namespace {

/// A model whose passes wait at the gate.
NullModelOptions gated(Gate& gate) {
  NullModelOptions model;
  model.before_forward = [&](const model::ForwardBatch&) {
    gate.pass();
    return Status();
  };
  return model;
}

TEST(EngineControl, CancelledRequestsEndOnceAndFreeEverything) {
  Gate gate;
  const NullModelOptions model = gated(gate);
  EngineConfig config = small_config();
  config.scheduler.max_running_requests = 2;
  Harness h(config, model);
  gate.close();
  Output& running = h.submit(greedy(prompt_of(5, 1), 400));
  Output& running2 = h.submit(greedy(prompt_of(6, 2), 400));
  Output& queued = h.submit(greedy(prompt_of(7, 3), 400));
  h.engine().cancel(running.id, FinishKind::kAbort, "the client left");
  h.engine().cancel(running.id, FinishKind::kAbort, "again");
  h.engine().cancel(queued.id, FinishKind::kAbort, "the client left");
  h.engine().cancel(running2.id, FinishKind::kStop, "");
  h.engine().cancel(12345, FinishKind::kAbort, "nobody");
  gate.open();
  running.wait();
  queued.wait();
  running2.wait();
  EXPECT_EQ(running.finish(), FinishKind::kAbort);
  EXPECT_EQ(running.last().message, "the client left");
  EXPECT_EQ(running.last().abort_code, ErrorCode::kAborted);
  EXPECT_EQ(queued.finish(), FinishKind::kAbort);
  EXPECT_TRUE(queued.tokens().empty());
  EXPECT_EQ(running2.finish(), FinishKind::kStop);
  EXPECT_EQ(running2.last().matched_token, -1);
  h.expect_clean();
  EXPECT_EQ(h.engine().stats().aborted_requests, 2u);
}

TEST(EngineControl, CancelStormLeavesNoPages) {
  EngineConfig config = small_config();
  config.scheduler.num_pages = 64;
  config.scheduler.chunked_prefill_size = 32;
  Harness h(config);
  std::vector<std::thread> clients;
  std::atomic<int> ended{0};
  for (uint32_t c = 0; c < 3; ++c) {
    clients.emplace_back([&, c] {
      std::mt19937 rng(c);
      for (int i = 0; i < 60; ++i) {
        EngineRequest r = greedy(prompt_of(static_cast<int>(rng() % 200 + 1), rng() % 5), 50);
        const auto id = h.engine().submit(std::move(r), [&](OutputEvent&& e) {
          if (e.finished) ++ended;
        });
        ASSERT_TRUE(id.ok()) << id.error().message;
        if (rng() % 4 == 0) std::this_thread::yield();
        if (rng() % 3 != 0) h.engine().cancel(*id, FinishKind::kAbort, "storm");
      }
    });
  }
  for (std::thread& t : clients) t.join();
  h.wait_idle();
  EXPECT_EQ(ended, 180);
  h.expect_clean();
}

TEST(EngineControl, CancelAllEndsEverything) {
  Gate gate;  // else the first could have ended before
  const NullModelOptions model = gated(gate);
  Harness h(small_config(), model);
  gate.close();
  std::vector<Output*> outs;
  for (uint32_t i = 0; i < 10; ++i) outs.push_back(&h.submit(greedy(prompt_of(30, i), 100000)));
  gate.wait_for_visitor();
  h.engine().cancel_all("the administrator asked for it");
  gate.open();
  for (Output* out : outs) {
    out->wait();
    EXPECT_EQ(out->finish(), FinishKind::kAbort);
    EXPECT_EQ(out->last().message, "the administrator asked for it");
  }
  h.expect_clean();
}

TEST(EngineControl, QueueLimitRefusesButNotProbes) {
  Gate gate;
  const NullModelOptions model = gated(gate);
  EngineConfig config = small_config();
  config.scheduler.max_running_requests = 1;
  config.scheduler.max_queued_requests = 1;
  Harness h(config, model);
  gate.close();
  Output& running = h.submit(greedy(prompt_of(5, 1), 10));
  gate.wait_for_visitor();
  Output& waiting = h.submit(greedy(prompt_of(5, 2), 10));
  EXPECT_EQ(h.engine().stats().scheduler.running, 1);
  EXPECT_EQ(h.engine().stats().scheduler.waiting, 1);
  const auto refused = h.engine().submit(greedy(prompt_of(5, 3), 10), [](OutputEvent&&) {});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
  EXPECT_NE(refused.error().message.find("The request queue is full."), std::string::npos);
  EngineRequest probe = greedy({1, 2}, 1);
  probe.probe = true;
  Output& health = h.submit(probe);
  gate.open();
  EXPECT_EQ(health.wait().finish(), FinishKind::kLength);
  running.wait();
  waiting.wait();
  h.expect_clean();
}

TEST(EngineControl, ProbesAreNotCounted) {
  Harness h;
  EngineRequest probe = greedy(prompt_of(40, 1), 1);
  probe.probe = true;
  for (int i = 0; i < 3; ++i) {
    Output& out = h.submit(probe).wait();
    EXPECT_EQ(out.last().cached_tokens, 0);
  }
  h.wait_idle();
  const EngineStats stats = h.engine().stats();
  EXPECT_EQ(stats.finished_requests, 0u);
  EXPECT_EQ(stats.prefill_compute_tokens, 0u);
  EXPECT_EQ(stats.decode_tokens, 0u);
  EXPECT_EQ(stats.cache_hit_rate, 0);
  EXPECT_EQ(stats.scheduler.evictable_tokens, 0);
}

TEST(EngineControl, StatisticsCountTokensExactly) {
  Harness h;
  h.submit(greedy(prompt_of(64, 1), 10)).wait();
  h.submit(greedy(prompt_of(64, 1), 10)).wait();
  h.wait_idle();
  const EngineStats stats = h.engine().stats();
  EXPECT_EQ(stats.finished_requests, 2u);
  EXPECT_EQ(stats.decode_tokens, 20u);
  EXPECT_EQ(stats.prefill_compute_tokens + stats.prefill_cached_tokens, 128u);
  EXPECT_GT(stats.prefill_cached_tokens, 0u);
  EXPECT_GT(stats.cache_hit_rate, 0);
  EXPECT_EQ(stats.gen_throughput, 0);
  EXPECT_EQ(stats.seconds_since_progress, 0);
  EXPECT_EQ(stats.scheduler.running, 0);
  EXPECT_EQ(stats.scheduler.waiting, 0);
  EXPECT_GT(stats.kv_bytes, 0u);
}

TEST(EngineControl, FailedStepsAbortTheirRequestsAndTheEngineGoesOn) {
  std::atomic<int> mode{0};  // 1: error, 2: exception
  NullModelOptions model;
  model.before_forward = [&](const model::ForwardBatch& batch) -> Status {
    // Decode steps only, so that there is something in the cache to spoil.
    if (batch.tokens.size() > 1) return {};
    const int m = mode.load();
    if (m == 1) return internal_error("a kernel failed");
    if (m == 2) throw std::runtime_error("out of luck");
    return {};
  };
  Harness h(small_config(), model);
  const auto prompt = prompt_of(30, 8);
  for (const int m : {1, 2}) {
    mode = m;
    Output& out = h.submit(greedy(prompt, 20)).wait();
    EXPECT_EQ(out.finish(), FinishKind::kAbort);
    EXPECT_EQ(out.last().abort_code, ErrorCode::kInternal);
    EXPECT_NE(out.last().message.find(m == 1 ? "a kernel failed" : "out of luck"),
              std::string::npos)
        << out.last().message;
    mode = 0;
    EXPECT_EQ(h.submit(greedy(prompt, 20)).wait().tokens(), h.expected_greedy(prompt, 20));
  }
  h.expect_clean();
}

// What a failed prefill wrote is not to be trusted: it must not be served from the cache.
TEST(EngineControl, FailedPrefillLeavesNothingInTheCache) {
  std::atomic<bool> fail{true};
  NullModelOptions model;
  model.before_forward = [&](const model::ForwardBatch&) -> Status {
    return fail ? Status(internal_error("flaky")) : Status();
  };
  Harness h(small_config(), model);
  const auto prompt = prompt_of(64, 8);
  EXPECT_EQ(h.submit(greedy(prompt, 5)).wait().finish(), FinishKind::kAbort);
  fail = false;
  Output& again = h.submit(greedy(prompt, 5)).wait();
  EXPECT_EQ(again.last().cached_tokens, 0);
  EXPECT_EQ(again.tokens(), h.expected_greedy(prompt, 5));
}

TEST(EngineControl, NotANumberAbortsOnlyItsRequest) {
  NullModelOptions model;
  model.after_forward = [](const model::ForwardBatch& batch, MatrixView logits) {
    for (size_t r = 0; r < batch.logit_rows.size(); ++r) {
      if (batch.tokens[static_cast<size_t>(batch.logit_rows[r])] != 13) continue;
      std::fill_n(logits.row(static_cast<int64_t>(r)), logits.cols, std::nanf(""));
    }
  };
  Harness h(small_config(), model);
  Output& bad = h.submit(greedy({1, 2, 13}, 10));
  EngineRequest fine = greedy(prompt_of(20, 4, 13), 10);
  fine.sampling.logit_bias = {{13, -100.0f}};
  Output& good = h.submit(fine);
  EXPECT_EQ(bad.wait().finish(), FinishKind::kAbort);
  EXPECT_EQ(bad.last().abort_code, ErrorCode::kInternal);
  EXPECT_NE(bad.last().message.find("not a number"), std::string::npos) << bad.last().message;
  EXPECT_EQ(good.wait().finish(), FinishKind::kLength);
  EXPECT_EQ(good.tokens().size(), 10u);
  h.expect_clean();
}

TEST(EngineControl, DrainRefusesNewAndFinishesOld) {
  Gate gate;
  const NullModelOptions model = gated(gate);
  Harness h(small_config(), model);
  gate.close();
  Output& old = h.submit(greedy(prompt_of(5, 1), 25));
  h.engine().begin_drain();
  const auto refused = h.engine().submit(greedy({1}, 5), [](OutputEvent&&) { FAIL(); });
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_FALSE(h.engine().idle());
  gate.open();
  EXPECT_EQ(old.wait().tokens().size(), 25u);
  h.wait_idle();
  EXPECT_TRUE(h.engine().idle());
}

TEST(EngineControl, StoppingEndsLiveRequests) {
  Output out;
  NullModelOptions model;
  model.before_forward = [](const model::ForwardBatch&) {  // else it could end before
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return Status();
  };
  {
    Harness h(small_config(), model);
    h.submit_to(out, greedy(prompt_of(10, 1), 1000000));
  }
  EXPECT_EQ(out.finish(), FinishKind::kAbort);
  EXPECT_EQ(out.last().abort_code, ErrorCode::kUnavailable);
}

TEST(EngineControl, PauseHoldsStepsAndLetsCancelThrough) {
  Harness h;
  h.engine().set_paused(true);
  Output& kept = h.submit(greedy(prompt_of(10, 1), 5));
  Output& dropped = h.submit(greedy(prompt_of(10, 2), 5));
  h.engine().cancel(dropped.id, FinishKind::kAbort, "changed my mind");
  EXPECT_EQ(dropped.wait().finish(), FinishKind::kAbort);
  EXPECT_TRUE(kept.tokens().empty());
  EXPECT_FALSE(h.engine().idle());
  h.engine().set_paused(false);
  EXPECT_EQ(kept.wait().tokens().size(), 5u);
}

TEST(EngineControl, QueueAndRunTimeouts) {
  EngineConfig config = small_config();
  config.queue_timeout = 0;
  Harness queue(config);
  queue.engine().set_paused(true);
  Output& waited = queue.submit(greedy(prompt_of(10, 1), 5)).wait();
  EXPECT_EQ(waited.finish(), FinishKind::kAbort);
  EXPECT_EQ(waited.last().abort_code, ErrorCode::kUnavailable);
  EXPECT_NE(waited.last().message.find("waited longer"), std::string::npos);

  config.queue_timeout = -1;
  config.run_timeout = 0;
  Harness run(config);
  Output& ran = run.submit(greedy(prompt_of(10, 1), 1000)).wait();
  EXPECT_EQ(ran.finish(), FinishKind::kAbort);
  EXPECT_EQ(ran.last().abort_code, ErrorCode::kUnavailable);
  EXPECT_NE(ran.last().message.find("ran longer"), std::string::npos);
  EXPECT_GE(ran.tokens().size(), 1u);
  run.expect_clean();
}

TEST(EngineControl, FlushOnlyWhenIdle) {
  Harness h;
  const auto prompt = prompt_of(64, 1);
  h.submit(greedy(prompt, 3)).wait();
  h.wait_idle();
  EXPECT_TRUE(h.engine().flush_cache());
  EXPECT_EQ(h.submit(greedy(prompt, 3)).wait().last().cached_tokens, 0);
  h.wait_idle();
  h.engine().set_paused(true);
  Output& held = h.submit(greedy(prompt, 3));
  EXPECT_FALSE(h.engine().flush_cache());
  h.engine().set_paused(false);
  EXPECT_GT(held.wait().last().cached_tokens, 0);
}

TEST(EngineControl, SaltsSeparatePrefixes) {
  Harness h;
  EngineRequest r = greedy(prompt_of(64, 1), 3);
  r.cache_salt = "a";
  h.submit(r).wait();
  r.cache_salt = "b";
  EXPECT_EQ(h.submit(r).wait().last().cached_tokens, 0);
  r.cache_salt = "";
  EXPECT_EQ(h.submit(r).wait().last().cached_tokens, 0);
  r.cache_salt = "a";
  EXPECT_GT(h.submit(r).wait().last().cached_tokens, 0);
}

TEST(EngineControl, SiblingsShareThePrefill) {
  Harness h;
  h.engine().set_paused(true);
  std::vector<Output*> outs;
  for (int c = 0; c < 3; ++c) {
    EngineRequest r;
    r.prompt = prompt_of(64, 2);
    r.sampling.seed = 4;
    r.sampling.max_new_tokens = 20;
    r.sibling_group = 9;
    r.choice_index = c;
    outs.push_back(&h.submit(r));
  }
  h.engine().set_paused(false);
  for (Output* out : outs) out->wait();
  EXPECT_NE(outs[0]->tokens(), outs[1]->tokens());
  EXPECT_NE(outs[1]->tokens(), outs[2]->tokens());
  EXPECT_GT(outs[1]->last().cached_tokens, 0);
  EngineRequest single = outs[0]->request;
  single.sibling_group = 0;
  EXPECT_EQ(h.submit(single).wait().tokens(), outs[0]->tokens());
}

TEST(EngineControl, WatchdogReportsAStuckStep) {
  Gate gate;
  const NullModelOptions model = gated(gate);
  std::promise<std::string> fatal;
  EngineConfig config = small_config();
  config.watchdog_timeout = 0.02;
  config.on_fatal = [&](const std::string& message) { fatal.set_value(message); };
  Harness h(config, model);
  gate.close();
  Output& out = h.submit(greedy(prompt_of(11, 1), 2));
  const std::string message = fatal.get_future().get();
  EXPECT_NE(message.find("11 prefill tokens of 1 requests"), std::string::npos) << message;
  EXPECT_NE(message.find("watchdog-timeout"), std::string::npos) << message;
  EXPECT_GT(h.engine().stats().seconds_since_progress, 0);
  gate.open();
  out.wait();
}

}  // namespace
}  // namespace capstan::engine
