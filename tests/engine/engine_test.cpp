#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "engine/engine_harness.h"
#include "engine/reference_sampling.h"

namespace capstan::engine {
namespace {

TEST(Engine, GreedyFollowsTheModel) {
  Harness h;
  const auto prompt = prompt_of(37, 1);
  Output& out = h.submit(greedy(prompt, 50));
  out.wait();
  EXPECT_EQ(out.tokens(), h.expected_greedy(prompt, 50));
  EXPECT_EQ(out.finish(), FinishKind::kLength);
  EXPECT_EQ(out.last().prompt_tokens, 37);
}

// Case 66 of server-api.md: alone, in a batch, cold, warm, any chunk, any page.
TEST(Engine, GreedyDoesNotDependOnCompany) {
  for (const int page_size : {1, 4, 16}) {
    for (const int chunk : {16, 48, -1}) {
      EngineConfig config = small_config();
      config.scheduler.page_size = page_size;
      config.scheduler.num_pages = 4096 / page_size;
      config.scheduler.chunked_prefill_size = chunk;
      Harness h(config);
      for (int round = 0; round < 2; ++round) {  // second round: warm
        std::vector<Output*> outs;
        for (uint32_t i = 0; i < 8; ++i) {
          // Three prompts share a long prefix.
          auto prompt =
              prompt_of(i % 3 == 0 ? 90 : 20 + static_cast<int>(i) * 13, i % 3 == 0 ? 5 : i);
          if (i % 3 == 0) prompt.push_back(static_cast<int32_t>(i));
          outs.push_back(&h.submit(greedy(prompt, 30)));
        }
        for (Output* out : outs) {
          out->wait();
          EXPECT_EQ(out->tokens(), h.expected_greedy(out->request.prompt, 30))
              << "page " << page_size << ", chunk " << chunk << ", round " << round;
        }
        if (round == 1) {
          EXPECT_GT(outs[0]->last().cached_tokens, 0);
        }
      }
      h.expect_clean();
    }
  }
}

TEST(Engine, SeedsReproduceUnderLoad) {
  EngineRequest sampled;
  sampled.prompt = prompt_of(20, 3);
  sampled.sampling.max_new_tokens = 40;
  sampled.sampling.seed = 1;
  std::vector<int32_t> alone;
  {
    Harness h;
    alone = h.submit(sampled).wait().tokens();
  }
  EngineConfig config = small_config();
  config.scheduler.chunked_prefill_size = 16;
  config.random_seed = 77;  // must not matter for a seeded request
  Harness h(config);
  std::vector<Output*> others;
  for (uint32_t i = 0; i < 6; ++i) {
    EngineRequest noise;
    noise.prompt = prompt_of(50 + static_cast<int>(i), i + 10);
    noise.sampling.max_new_tokens = 60;
    others.push_back(&h.submit(noise));
  }
  EXPECT_EQ(h.submit(sampled).wait().tokens(), alone);
  sampled.sampling.seed = 2;
  EXPECT_NE(h.submit(sampled).wait().tokens(), alone);
  sampled.sampling.seed = 1;
  sampled.choice_index = 1;
  EXPECT_NE(h.submit(sampled).wait().tokens(), alone);
  for (Output* o : others) o->wait();
}

TEST(Engine, UnseededRequestsDifferButRepeatWithTheProcessSeed) {
  const auto run = [](uint64_t process_seed) {
    EngineConfig config = small_config();
    config.random_seed = process_seed;
    Harness h(config);
    EngineRequest r;
    r.prompt = prompt_of(10, 1);
    r.sampling.max_new_tokens = 30;
    auto first = h.submit(r).wait().tokens();
    auto second = h.submit(r).wait().tokens();
    EXPECT_NE(first, second);
    first.insert(first.end(), second.begin(), second.end());
    return first;
  };
  EXPECT_EQ(run(5), run(5));
  EXPECT_NE(run(5), run(6));
}

TEST(Engine, EosAndStopIdsEndTheRequest) {
  NullModelOptions model;
  model.vocab_size = 12;
  model.eos_token_ids = {3};
  Harness h(small_config(), model);
  for (uint32_t seed = 0; seed < 12; ++seed) {
    EngineRequest r = greedy(prompt_of(9, seed, 12), 60);
    r.sampling.stop_token_ids = {7};
    const auto free_run = h.expected_greedy(r.prompt, 60);
    auto stop =
        std::find_if(free_run.begin(), free_run.end(), [](int32_t t) { return t == 3 || t == 7; });
    Output& out = h.submit(r).wait();
    if (stop == free_run.end()) {
      EXPECT_EQ(out.finish(), FinishKind::kLength);
      EXPECT_EQ(out.tokens(), free_run);
      continue;
    }
    const std::vector<int32_t> until(free_run.begin(), stop + 1);
    EXPECT_EQ(out.tokens(), until);  // the stop token is counted
    // On the last permitted token length comes first.
    const bool last = until.size() == 60;
    EXPECT_EQ(out.finish(), last ? FinishKind::kLength : FinishKind::kStop);
    if (!last) {
      EXPECT_EQ(out.last().matched_token, *stop);
    }

    r.sampling.ignore_eos = true;
    EXPECT_EQ(h.submit(r).wait().tokens(), free_run);

    r.sampling.ignore_eos = false;
    r.sampling.min_new_tokens = 40;
    Output& longer = h.submit(r).wait();
    EXPECT_GE(longer.tokens().size(), 40u);
    for (size_t i = 0; i < 40; ++i) {
      EXPECT_NE(longer.tokens()[i], 3);
      EXPECT_NE(longer.tokens()[i], 7);
    }
  }
}

TEST(Engine, ContextEndIsLength) {
  EngineConfig config = small_config();
  config.scheduler.context_length = 50;
  Harness h(config);
  Output& out = h.submit(greedy(prompt_of(40, 1), 1000)).wait();
  EXPECT_EQ(out.tokens().size(), 10u);
  EXPECT_EQ(out.finish(), FinishKind::kLength);
}

TEST(Engine, PrefillOnlyRequestFillsTheCache) {
  Harness h;
  const auto prompt = prompt_of(100, 4);
  Output& out = h.submit(greedy(prompt, 0)).wait();
  EXPECT_TRUE(out.tokens().empty());
  EXPECT_EQ(out.finish(), FinishKind::kLength);
  Output& second = h.submit(greedy(prompt, 5)).wait();
  EXPECT_GT(second.last().cached_tokens, 0);
  EXPECT_EQ(second.tokens(), h.expected_greedy(prompt, 5));
}

TEST(Engine, PenaltiesChangeWhatIsGenerated) {
  Harness h;
  EngineRequest r = greedy(prompt_of(12, 2), 40);
  r.sampling.frequency_penalty = 1.1;
  r.sampling.presence_penalty = 0.6;
  r.sampling.repetition_penalty = 1.4;
  r.sampling.logit_bias = {{5, 0.9f}};
  Output& out = h.submit(r).wait();
  std::vector<int32_t> context = r.prompt, generated;
  for (int step = 0; step < 40; ++step) {
    const auto x = reference::adjust(h.model().expected_logits(context), r.sampling, generated);
    const auto best = static_cast<int32_t>(std::max_element(x.begin(), x.end()) - x.begin());
    generated.push_back(best);
    context.push_back(best);
  }
  EXPECT_EQ(out.tokens(), generated);
  EXPECT_NE(generated, h.expected_greedy(r.prompt, 40));
}

TEST(Engine, PromptLogprobsAcrossChunksAndCache) {
  EngineConfig config = small_config();
  config.scheduler.chunked_prefill_size = 16;
  Harness h(config);
  EngineRequest r = greedy(prompt_of(75, 6), 3);
  h.submit(r).wait();  // warms the cache, which must not swallow rows
  for (const int32_t start : {0, 20, 74}) {
    r.sampling.logprob_start = start;
    r.sampling.logprobs = true;
    r.sampling.top_logprobs = 2;
    Output& out = h.submit(r).wait();
    const auto& entries = out.events().front().prompt_logprobs;
    ASSERT_EQ(entries.size(), 75u - static_cast<size_t>(start));
    EXPECT_TRUE(std::isnan(entries[0].logprob));
    for (size_t i = 0; i < entries.size(); ++i) {
      const auto position = static_cast<size_t>(start) + i;
      EXPECT_EQ(entries[i].token, r.prompt[position]);
      if (i == 0) continue;
      const auto logits = h.model().expected_logits(std::span(r.prompt).first(position));
      const auto p = reference::softmax({logits.begin(), logits.end()}, 1);
      EXPECT_NEAR(entries[i].logprob, std::log(p[static_cast<size_t>(entries[i].token)]), 2e-5);
      EXPECT_EQ(entries[i].top.size(), 2u);
    }
    EXPECT_EQ(out.tokens(), h.expected_greedy(r.prompt, 3));
  }
}

TEST(Engine, RefusalsNameTheFieldAndTheNumbers) {
  EngineConfig config = small_config();
  config.scheduler.context_length = 100;
  Harness h(config);
  const auto refused = [&](EngineRequest r, const char* param, const char* text) {
    const auto result = h.engine().submit(std::move(r), [](OutputEvent&&) { FAIL(); });
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().param, param);
    EXPECT_NE(result.error().message.find(text), std::string::npos) << result.error().message;
  };
  refused(greedy({}, 5), "input_ids", "empty");
  refused(greedy(prompt_of(100, 1), 5), "input_ids", "is longer than the model's context length");
  refused(greedy({1, 64}, 5), "input_ids", "64");
  refused(greedy({1, -1}, 5), "input_ids", "-1");
  EngineRequest r = greedy({1}, 5);
  r.sampling.top_p = 0;
  refused(r, "top_p", "0");
}

TEST(Engine, PromptBeyondThePoolIsRefusedAtOnce) {
  EngineConfig config = small_config();
  config.scheduler.num_pages = 8;
  config.scheduler.page_size = 4;
  Harness h(config);
  const auto result = h.engine().submit(greedy(prompt_of(40, 1), 5), [](OutputEvent&&) {});
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().message.find("40"), std::string::npos);
  EXPECT_NE(result.error().message.find("32"), std::string::npos);
  // A prompt that fits runs, and ends when the pool does.
  Output& out = h.submit(greedy(prompt_of(20, 1), 500)).wait();
  EXPECT_EQ(out.finish(), FinishKind::kLength);
  EXPECT_EQ(out.tokens().size(), 12u);
}

// Case 109: memory for a few of them only; outputs as if alone.
TEST(Engine, RetractionKeepsOutputs) {
  EngineConfig config = small_config();
  config.scheduler.page_size = 4;
  config.scheduler.num_pages = 40;
  config.scheduler.conservativeness = 0;  // admit more than fits
  config.scheduler.clip_max_new_tokens = 1;
  Harness h(config);
  std::vector<Output*> outs;
  for (uint32_t i = 0; i < 6; ++i) {
    EngineRequest r = greedy(prompt_of(15, i), 60);
    r.sampling.frequency_penalty = 0.5;  // counts must survive the recomputation
    if (i % 2 == 1) {
      r.sampling.temperature = 1;
      r.sampling.seed = 9;
    }
    outs.push_back(&h.submit(r));
  }
  int retractions = 0;
  for (Output* out : outs) {
    out->wait();
    EXPECT_EQ(out->finish(), FinishKind::kLength);
    EXPECT_EQ(out->tokens().size(), 60u);
    retractions += out->last().retractions;
  }
  EXPECT_GT(retractions, 0);
  for (Output* out : outs) {
    Harness alone;
    EXPECT_EQ(alone.submit(out->request).wait().tokens(), out->tokens());
  }
  h.expect_clean();
}

TEST(Engine, CancelledRequestsEndOnceAndFreeEverything) {
  Gate gate;
  NullModelOptions model;
  model.before_forward = [&](const model::ForwardBatch&) {
    gate.pass();
    return Status();
  };
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

TEST(Engine, CancelStormLeavesNoPages) {
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

TEST(Engine, CancelAllEndsEverything) {
  Harness h;
  std::vector<Output*> outs;
  for (uint32_t i = 0; i < 10; ++i) outs.push_back(&h.submit(greedy(prompt_of(30, i), 100000)));
  h.engine().cancel_all("the administrator asked for it");
  for (Output* out : outs) {
    out->wait();
    EXPECT_EQ(out->finish(), FinishKind::kAbort);
    EXPECT_EQ(out->last().message, "the administrator asked for it");
  }
  h.expect_clean();
}

TEST(Engine, QueueLimitRefusesButNotProbes) {
  Gate gate;
  NullModelOptions model;
  model.before_forward = [&](const model::ForwardBatch&) {
    gate.pass();
    return Status();
  };
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

TEST(Engine, ProbesAreNotCounted) {
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

TEST(Engine, StatisticsCountTokensExactly) {
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

TEST(Engine, FailedStepsAbortTheirRequestsAndTheEngineGoesOn) {
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
TEST(Engine, FailedPrefillLeavesNothingInTheCache) {
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

TEST(Engine, NotANumberAbortsOnlyItsRequest) {
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

TEST(Engine, DrainRefusesNewAndFinishesOld) {
  Gate gate;
  NullModelOptions model;
  model.before_forward = [&](const model::ForwardBatch&) {
    gate.pass();
    return Status();
  };
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

TEST(Engine, StoppingEndsLiveRequests) {
  Output out;
  {
    Harness h;
    h.submit_to(out, greedy(prompt_of(10, 1), 1000000));
  }
  EXPECT_EQ(out.finish(), FinishKind::kAbort);
  EXPECT_EQ(out.last().abort_code, ErrorCode::kUnavailable);
}

TEST(Engine, PauseHoldsStepsAndLetsCancelThrough) {
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

TEST(Engine, QueueAndRunTimeouts) {
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

TEST(Engine, FlushOnlyWhenIdle) {
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

TEST(Engine, SaltsSeparatePrefixes) {
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

TEST(Engine, SiblingsShareThePrefill) {
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

TEST(Engine, WatchdogReportsAStuckStep) {
  Gate gate;
  NullModelOptions model;
  model.before_forward = [&](const model::ForwardBatch&) {
    gate.pass();
    return Status();
  };
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
