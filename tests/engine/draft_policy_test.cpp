// For whom the draft layer runs, on simulated time: nothing here depends on the machine's speed.
#include "engine/draft_policy.h"

#include "engine/draft_simulation.h"

namespace capstan::engine {
namespace {

using Figures = DraftSimulation::Figures;

std::function<double(int32_t)> always(double p) {
  return [p](int32_t) { return p; };
}

/// Eight layers of DeepSeek-V3's width on a CPU: a second row costs more than half of the first,
/// and keeping rows 8% of a step.
SimulatedCosts dear_costs() {
  SimulatedCosts c;
  c.step = [](int rows) { return 0.043 + 0.025 * (rows - 1); };
  c.draft = [](int texts) { return 0.0065 + 0.0005 * texts; };
  c.keep = 0.0035;
  return c;
}

/// How often drafts must hold to pay, when all times are known.
double needed(const SimulatedCosts& costs, int texts) {
  DraftDepth depth(true);
  StepTimes pass;
  for (int round = 0; round < 3; ++round) {
    for (int rows = 1; rows <= 4 * texts; ++rows) depth.observe(rows, 0, costs.step(rows));
    pass.observe(texts, costs.draft(texts));
  }
  return depth.needed(texts, 3, pass, 0);
}

/// Every text is what the model writes on its own.
void expect_own_texts(DraftSimulation& sim, int prompt) {
  for (const auto& [id, tokens] : sim.finished()) {
    std::vector<int32_t> context(tokens.begin(), tokens.begin() + prompt);
    while (context.size() < tokens.size()) {
      const std::vector<float> logits = sim.model().expected_logits(context);
      context.push_back(row_max(logits.data(), DraftSimulation::kVocab).index);
    }
    ASSERT_EQ(context, tokens) << "text " << id;
  }
}

TEST(DraftPolicy, WhereNothingHoldsTheLayerRarelyRuns) {
  for (const int clients : {1, 2, 4, 8, 16}) {
    DraftSimulation sim(costs_of(8, 6)), plain(costs_of(8, 6), false);
    sim.serve(clients, 300);
    const Figures first = sim.figures();
    EXPECT_LT(first.passes, 60) << clients;
    sim.serve(clients, 6000);
    plain.serve(clients, 6000);
    const Figures f = sim.figures();
    EXPECT_LT(f.passes, f.steps * 6 / 100) << clients;
    EXPECT_GT(f.passes, 0) << "nothing would ever be learnt";
    EXPECT_LT(f.layer_seconds, 0.004 * f.seconds) << clients;
    EXPECT_LT(f.drafted, f.steps / 100);
    EXPECT_GT(f.speed(), 0.995 * plain.figures().speed()) << clients;
    expect_own_texts(sim, 20);
  }
}

TEST(DraftPolicy, ThatHoldsForAModelOf61LayersToo) {
  for (const int clients : {1, 16}) {
    DraftSimulation sim(costs_of(61, 6)), plain(costs_of(61, 6), false);
    sim.serve(clients, 4000);
    plain.serve(clients, 4000);
    EXPECT_GT(sim.figures().speed(), 0.99 * plain.figures().speed()) << clients;
  }
}

// Nothing is known at the start, and what is learnt there must be cheap too: a server's first three
// answers of 64 tokens, where a pass of the layer takes a third of a step.
TEST(DraftPolicy, LearningThatNothingHoldsIsCheap) {
  SimulatedCosts costs = dear_costs();
  costs.draft = [](int texts) { return 0.014 + 0.001 * texts; };
  for (const int clients : {1, 2, 4, 8, 16}) {
    for (const double holds : {0.0, 0.2, 0.4}) {
      DraftSimulation sim(costs), plain(costs, false);
      sim.acceptance = always(holds);
      sim.serve(clients, 3 * 64, 64);
      plain.serve(clients, 3 * 64, 64);
      const Figures f = sim.figures();
      EXPECT_GE(f.passes, 2) << "nothing was learnt";
      EXPECT_GT(f.speed(), (holds == 0 ? 0.985 : 0.975) * plain.figures().speed())
          << clients << " texts, " << holds;
    }
  }
}

// A few drafts that fail end a trial, a few that hold do not decide it.
TEST(DraftPolicy, HopelessMeansUnlikelyWithDraftsThatPay) {
  DraftDepth depth(true);
  for (int i = 0; i < 4; ++i) {
    depth.observe(1, 0, 1.0);
    depth.observe(2, 0, 1.3);
    depth.observe(4, 0, 1.9);
  }
  DraftPolicy policy(3);
  EXPECT_FALSE(policy.hopeless(0, 16)) << "while it is not known what is needed";
  policy.begin_step(depth, 1, 1);  // 1.15 * 1.3: half of the drafts must hold
  EXPECT_FALSE(policy.hopeless(0, 4)) << "0.505^4 = 0.065";
  EXPECT_TRUE(policy.hopeless(0, 5));
  EXPECT_FALSE(policy.hopeless(1, 7)) << "0.505^7 + 7 * 0.495 * 0.505^6 = 0.066";
  EXPECT_TRUE(policy.hopeless(1, 8)) << "0.037";
  EXPECT_FALSE(policy.hopeless(8, 16));
}

// Where drafts hold about as often as they must, they are made or not, but little is lost.
TEST(DraftPolicy, DraftsThatHardlyPayCostLittle) {
  for (const SimulatedCosts& costs : {dear_costs(), costs_of(8, 6), costs_of(8, 20)}) {
    for (const int clients : {1, 2, 4, 8, 16}) {
      // Texts that end one after the other: when they begin together, prompts cost less.
      const auto serve = [&](DraftSimulation& sim) {
        for (int i = 1; i <= clients; ++i) sim.add(sim.prompt_of(20), 160 * i / clients);
        sim.serve(clients, 2000);
        return sim.figures();
      };
      DraftSimulation plain(costs, false);
      const double speed = serve(plain).speed(), enough = needed(costs, clients);
      for (const double holds : {0.5, 0.8 * enough, 0.9 * enough, enough, 1.1 * enough}) {
        for (const double noise : {0.0, 0.1}) {
          DraftSimulation sim(costs);
          sim.acceptance = always(std::min(1.0, holds));
          sim.noise = noise;
          const Figures f = serve(sim);
          EXPECT_GE(f.speed(), 0.985 * speed)
              << clients << " texts, " << holds << " of " << enough << ", noise " << noise;
        }
      }
    }
  }
}

// The machine gets faster or slower: what is not done at the time is still known well enough.
TEST(DraftPolicy, ChangesOfTheMachinesSpeedAreSurvived) {
  for (const bool dear : {true, false}) {
    const SimulatedCosts costs = dear ? dear_costs() : costs_of(8, 20);
    for (const int clients : {1, 2, 4}) {
      for (const double holds : {0.3, 0.6, 0.95}) {
        const auto speed = [&](bool drafts, double slower) {
          DraftSimulation sim(costs, drafts);
          sim.acceptance = always(holds);
          sim.noise = 0.1;
          sim.serve(clients, 2000);
          sim.slower = slower;
          sim.serve(clients, 200);
          sim.figures();
          sim.serve(clients, 4000);
          return sim.figures().speed() * slower;
        };
        const double plain = speed(false, 1), drafted = speed(true, 1);
        for (const double slower : {1 / 1.6, 1.6}) {
          const double after = speed(true, slower);
          EXPECT_GE(after, 0.98 * plain)
              << dear << ", " << clients << " texts, " << holds << ", " << slower;
          // Gains differ by 4% with the seed.
          EXPECT_GE(after, 0.95 * drafted)
              << dear << ", " << clients << " texts, " << holds << ", " << slower;
        }
      }
    }
  }
}

TEST(DraftPolicy, GoodDraftsAreFoundAgain) {
  for (const int clients : {1, 4}) {
    DraftSimulation sim(costs_of(8, 20));
    sim.serve(clients, 4000);
    sim.figures();
    sim.acceptance = always(0.9);  // another kind of text
    sim.serve(clients, 4000);
    sim.figures();
    sim.serve(clients, 500);
    const Figures f = sim.figures();
    EXPECT_GT(f.tokens_per_step(), 2) << clients;
    EXPECT_GT(f.followed, f.items * 9 / 10) << clients;
    expect_own_texts(sim, 20);
  }
}

TEST(DraftPolicy, WithinALongTextToo) {
  DraftSimulation sim(costs_of(8, 20));
  sim.serve(1, 6000, 16000);
  EXPECT_EQ(sim.texts(), 1);
  sim.figures();
  sim.acceptance = always(0.9);
  sim.serve(1, 3000, 16000);
  EXPECT_EQ(sim.finished().size(), 0u) << "still the same text";
  EXPECT_GT(sim.figures().tokens_per_step(), 1.1);
}

TEST(DraftPolicy, DraftsAgainWhenTheLoadFalls) {
  DraftSimulation sim(costs_of(8, 6));  // 16 texts leave no room for drafts
  sim.acceptance = always(0.85);
  sim.serve(16, 2000, 400);
  sim.figures();
  sim.serve(16, 1000, 400);
  const Figures busy = sim.figures();
  EXPECT_LT(busy.drafted, busy.verified / 50);
  EXPECT_LT(busy.layer_seconds, 0.005 * busy.seconds);
  // The one that stays was not followed, and is: from its next page on.
  const RequestId last = sim.add(sim.prompt_of(20), 2000);
  while (sim.texts() > 1) {
    for (RequestId id = 1; id < last; ++id) {
      if (!sim.finished().contains(id)) sim.cancel(id);
    }
    sim.step();
  }
  sim.figures();
  for (int i = 0; i < 100; ++i) sim.step();
  EXPECT_GT(sim.figures().tokens_per_step(), 1.8);
  for (int i = 0; i < 500; ++i) sim.step();
  const Figures alone = sim.figures();
  // Everything that was drafted of the right states held as often as it should: a row that is not
  // the text's own would be a wrong guess.
  EXPECT_GT(alone.accepted, alone.drafted * 7 / 10);
  sim.serve(1, 1000, 200);
  EXPECT_GT(sim.figures().tokens_per_step(), 1.8);
  expect_own_texts(sim, 20);
}

TEST(DraftPolicy, RowsAreKeptWhereThatIsCheap) {
  SimulatedCosts costs = costs_of(61, 6);
  DraftSimulation sim(costs);
  sim.acceptance = always(0.85);
  for (int i = 0; i < 2; ++i) sim.add(sim.prompt_of(20), 3000);
  for (int i = 0; i < 50; ++i) sim.step();
  EXPECT_GT(sim.figures().tokens_per_step(), 1.5);
  sim.serve(16, 200);
  sim.figures();
  sim.serve(16, 200);
  const Figures busy = sim.figures();
  EXPECT_EQ(busy.followed, 2 * 200) << "the two that began before, and no other";
  EXPECT_LT(busy.drafted, 10);
}

TEST(DraftPolicy, MakingDraftsIsPartOfTheirCost) {
  SimulatedCosts costs = costs_of(8, 20);
  const auto drafted = [&](double seconds) {
    costs.draft = [=](int) { return seconds; };
    DraftSimulation sim(costs);
    sim.acceptance = always(0.6);
    sim.serve(1, 500);
    sim.figures();
    sim.serve(1, 2000);
    const Figures f = sim.figures();
    return static_cast<double>(f.drafted) / f.verified;
  };
  EXPECT_GT(drafted(0.0004), 0.9);
  EXPECT_LT(drafted(0.0040), 0.05);
}

// Long prompts and short answers: what drafts gain is less than the layer takes on the prompts, so
// it begins behind them.
TEST(DraftPolicy, SoIsTheLayerOnPrompts) {
  SimulatedCosts costs = costs_of(8, 20);
  const auto serve = [&](double seconds, bool drafts) {
    costs.followed_prompt_row = seconds;
    DraftSimulation sim(costs, drafts, 4096);
    sim.acceptance = always(0.7);
    sim.serve(1, 4000, 20, 2000);
    sim.figures();
    sim.serve(1, 2000, 20, 2000);
    return sim.figures();
  };
  const Figures plain = serve(0, false), cheap = serve(0.000001, true), dear = serve(0.0002, true);
  EXPECT_LT(cheap.layer_seconds, 0.03 * cheap.seconds);
  EXPECT_GT(cheap.speed(), 1.02 * plain.speed());
  EXPECT_LT(dear.layer_seconds, 0.03 * dear.seconds);
  EXPECT_GT(dear.speed(), plain.speed());
}

TEST(DraftPolicy, TextsAreToldApart) {
  DraftSimulation sim(costs_of(8, 20));
  sim.acceptance = [](int32_t first) { return first % 2 == 0 ? 0.9 : 0.0; };
  sim.serve(4, 3000);
  sim.figures();
  sim.serve(4, 3000);
  const Figures f = sim.figures();
  EXPECT_GT(f.followed, f.items / 4);
  EXPECT_LT(f.followed, f.items * 3 / 4);
  EXPECT_GT(f.accepted, f.drafted * 6 / 10);
  expect_own_texts(sim, 20);
}

// The null model's layer knows the next token if, and only if, every row of its window is the
// text's own. Prompts share prefixes that were computed by texts which it followed, by others which
// it did not, and by some which it followed in part.
TEST(DraftPolicy, RowsOfOthersAreNeverRead) {
  DraftSimulation sim(costs_of(8, 20));
  std::vector<std::vector<int32_t>> prompts;
  for (int i = 0; i < 4; ++i) prompts.push_back(sim.prompt_of(100));
  int drafted = 0;
  for (int round = 0; round < 40; ++round) {
    sim.acceptance = always(round % 4 < 2 ? 0.0 : 1.0);
    for (int i = 0; i < 200; ++i) {
      while (sim.texts() < 3) {
        std::vector<int32_t> prompt = prompts[sim.random() % prompts.size()];
        prompt.resize(20 + sim.random() % 80);
        for (int tail = 0; tail < 3; ++tail)
          prompt.push_back(static_cast<int32_t>(sim.random() % 64));
        sim.add(std::move(prompt), 100);
      }
      sim.step();
    }
    const Figures f = sim.figures();
    if (round % 4 < 2) continue;
    drafted += f.drafted;
    // But for the first after a cached prompt, whose last row was made with another's next token,
    // and those made before the round.
    EXPECT_GE(f.accepted, f.drafted * 9 / 10) << round;
  }
  EXPECT_GT(drafted, 2000);
}

}  // namespace
}  // namespace capstan::engine
