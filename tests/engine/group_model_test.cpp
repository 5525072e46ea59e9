// One engine over several ranks: the same text as from one, and an honest end when a rank fails.
#include "engine/group_model.h"

#include <gtest/gtest.h>

#include <array>

#include "engine/nextn_checkpoint.h"
#include "engine/split_engine.h"

namespace capstan::engine {
namespace {

EngineConfig config() { return split_config(32); }

std::string llama() { return model::testdata("tiny-llama3-f32"); }

/// Greedy continuations of prompts of several lengths, all in one engine.
std::vector<std::vector<int32_t>> texts(const std::string& path, int ranks, EngineConfig c,
                                        model::LoadOptions load = {}) {
  SplitEngine split(path, ranks, c, load);
  std::vector<Output*> outs;
  for (const int length : {3, 40, 17, 90}) {
    EngineRequest r = greedy(prompt_of(length, static_cast<uint32_t>(length), 100), 24);
    r.sampling.ignore_eos = true;
    outs.push_back(&split.submit(r));
  }
  std::vector<std::vector<int32_t>> out;
  for (Output* o : outs) out.push_back(o->wait().tokens());
  split.stop();
  EXPECT_TRUE(split.failures().empty());
  for (int r = 1; r < ranks; ++r) EXPECT_EQ(split.steps(r), split.steps(0)) << r;
  return out;
}

TEST(GroupModel, GreedyTextsDoNotDependOnRanks) {
  const auto one = texts(llama(), 1, config());
  EXPECT_EQ(texts(llama(), 2, config()), one);
  EXPECT_EQ(texts(llama(), 4, config()), one);
}

TEST(GroupModel, ExpertsAndMultiTokenPredictionOverRanks) {
  model::LoadOptions load;
  load.mla_form = kernels::MlaForm::kAbsorbed;
  const auto one = texts(nextn_checkpoint(), 1, config(), load);
  EngineConfig c = config();
  c.speculation.source = SpeculationConfig::Source::kNextn;
  c.speculation.adaptive = false;
  c.speculation.max_drafts = 2;
  EXPECT_EQ(texts(nextn_checkpoint(), 2, c, load), one);
  load.shard.ep_size = 2;
  EXPECT_EQ(texts(nextn_checkpoint(), 2, c, load), one);
  // Rank 0 decides for all when the prediction layer runs.
  c.speculation.adaptive = true;
  EXPECT_EQ(texts(nextn_checkpoint(), 2, c, load), one);
}

TEST(GroupModel, PromptLogprobsRunInPieces) {
  std::vector<std::vector<float>> seen;
  for (const int ranks : {1, 2}) {
    SplitEngine split(model::testdata("tiny-llama3-f32"), ranks, config());
    EngineRequest r = greedy(prompt_of(60, 3, 100), 4);
    r.sampling.logprobs = true;
    r.sampling.logprob_start = 0;
    Output& out = split.submit(r).wait();
    std::vector<float>& values = seen.emplace_back();
    for (const OutputToken& t : out.events().front().prompt_logprobs) values.push_back(t.logprob);
  }
  ASSERT_EQ(seen[0].size(), 60u);
  ASSERT_EQ(seen[1].size(), 60u);
  for (size_t i = 1; i < seen[0].size(); ++i) EXPECT_NEAR(seen[0][i], seen[1][i], 1e-3);
}

TEST(GroupModel, NgramDraftsLeaveTheTextAsItIs) {
  const auto one = texts(llama(), 1, config());
  EngineConfig c = config();
  c.speculation.source = SpeculationConfig::Source::kNgram;
  c.speculation.adaptive = false;
  EXPECT_EQ(texts(llama(), 2, c), one);
}

TEST(GroupModel, PreemptedRequestsComeBack) {
  EngineConfig c = config();
  c.scheduler.num_pages = 14;  // of 16: too few for all
  c.scheduler.context_length = 200;
  c.scheduler.conservativeness = 0;
  EXPECT_EQ(texts(llama(), 2, c), texts(llama(), 1, config()));
}

TEST(GroupModel, ReportsWhatEachRankComputes) {
  SplitEngine split(model::testdata("tiny-llama3-f32"), 2, config());
  EngineRequest r = greedy(prompt_of(5, 1, 100), 150);
  r.sampling.ignore_eos = true;
  split.submit(r).wait();
  const auto seconds = split.timings();
  ASSERT_EQ(seconds.size(), 2u);
  for (const double s : seconds) EXPECT_GT(s, 0);
}

/// Fails, or throws, at one step.
class Failing final : public model::Model {
 public:
  enum class How { kError, kException };
  Failing(std::unique_ptr<model::Model> inner, int at, How how)
      : inner_(std::move(inner)), left_(at), how_(how) {}
  const model::ModelConfig& config() const override { return inner_->config(); }
  const model::ModelConfig& local_config() const override { return inner_->local_config(); }
  size_t weight_bytes_per_token() const override { return 0; }
  size_t weight_bytes() const override { return 0; }
  Status forward(const model::ForwardBatch& batch, model::KvStore& kv, MatrixView logits) override {
    if (left_-- == 0) {
      if (how_ == How::kException) throw std::runtime_error("the shard threw");
      return resource_exhausted("the shard ran out of memory");
    }
    return inner_->forward(batch, kv, logits);
  }

 private:
  std::unique_ptr<model::Model> inner_;
  int left_;
  How how_;
};

TEST(GroupModel, AFailingRankEndsTheRequestsWithItsReason) {
  using How = Failing::How;
  for (const auto& [who, how] : {std::pair(1, How::kError), std::pair(1, How::kException),
                                 std::pair(0, How::kError), std::pair(2, How::kException)}) {
    SplitEngine split(
        model::testdata("tiny-llama3-f32"), 4, config(), {},
        [who = who, how = how](int rank, std::unique_ptr<model::Model> shard) {
          if (rank != who) return shard;
          return std::unique_ptr<model::Model>(std::make_unique<Failing>(std::move(shard), 5, how));
        });
    EngineRequest r = greedy(prompt_of(5, 1, 100), 100);
    r.sampling.ignore_eos = true;
    Output& out = split.submit(r).wait();
    EXPECT_EQ(out.finish(), FinishKind::kAbort);
    EXPECT_EQ(out.last().abort_code, ErrorCode::kUnavailable);
    const std::string reason = how == How::kError ? "ran out of memory" : "the shard threw";
    EXPECT_NE(out.last().message.find(reason), std::string::npos) << out.last().message;
    // Whoever comes now is told as well, and nothing hangs.
    Output& next = split.submit(greedy(prompt_of(5, 1, 100), 5)).wait();
    EXPECT_EQ(next.last().abort_code, ErrorCode::kUnavailable);
    split.stop();
    bool named = false;
    for (const auto& f : split.failures())
      named |= f.rank == who && f.message.find(reason) != std::string::npos;
    EXPECT_TRUE(named);
  }
}

TEST(GroupModel, AWrongBatchHarmsNobody) {
  auto group = comm::make_local_group(1);
  TimedCommunicator comm(std::move(group[0]));
  auto loaded = model::load(model::testdata("tiny-llama3-f32"), {});
  auto kv = model::KvStore::create(loaded.model->config(), 8, 16, DType::kF32);
  ASSERT_TRUE(kv.ok());
  const int64_t vocab = loaded.model->config().vocab_size;
  int failures = 0;
  GroupModelOptions options;
  options.page_size = 16;
  options.on_failure = [&](const Error& e) {
    ++failures;
    return e;
  };
  GroupModel model(std::move(loaded.model), comm, options);
  std::vector<int32_t> tokens = {1}, positions = {0}, rows = {0}, pages = {3};
  std::vector<int64_t> slots = {3 * 16};
  std::vector<kernels::SequenceSlice> sequences = {{0, 1, 1, pages.data()}};
  std::vector<float> out(static_cast<size_t>(vocab));
  const MatrixView logits{out.data(), 1, vocab, vocab};
  model::ForwardBatch batch{tokens, positions, slots, sequences, rows};
  for (auto [array, wrong] :
       {std::pair(&tokens, static_cast<int32_t>(vocab)), std::pair(&pages, 99)}) {
    const int32_t right = std::exchange(array->front(), wrong);
    EXPECT_FALSE(model.forward(batch, *kv, logits).ok());
    array->front() = right;
  }
  EXPECT_TRUE(model.forward(batch, *kv, logits).ok());
  EXPECT_EQ(failures, 0);
}

TEST(Engine, FailTellsEverybody) {
  Gate gate;
  NullModelOptions options;
  options.before_forward = [&](const model::ForwardBatch&) {
    gate.pass();
    return Status();
  };
  Harness h(small_config(), options);
  gate.close();
  Output& out = h.submit(greedy(prompt_of(5, 1), 100));
  gate.wait_for_visitor();
  h.engine().fail(unavailable("rank 3 is gone"));
  h.engine().fail(unavailable("rank 4 is gone"));
  const auto refused = h.engine().submit(greedy(prompt_of(5, 1), 1), [](OutputEvent&&) {});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().message, "rank 3 is gone");
  gate.open();
  EXPECT_EQ(out.wait().last().message, "rank 3 is gone");
  EXPECT_EQ(out.last().abort_code, ErrorCode::kUnavailable);
}

TEST(GroupCheck, PassesAmongHealthyRanks) {
  for (const int ranks : {1, 2, 4}) {
    auto group = comm::make_local_group(ranks);
    std::vector<std::thread> threads;
    for (int r = 0; r < ranks; ++r) {
      threads.emplace_back([comm = group[static_cast<size_t>(r)].get()] {
        const Status status = check_collectives(*comm);
        EXPECT_TRUE(status.ok()) << status.error().message;
      });
    }
    for (std::thread& t : threads) t.join();
  }
}

}  // namespace
}  // namespace capstan::engine
