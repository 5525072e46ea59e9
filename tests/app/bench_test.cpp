#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "app/bench_comm.h"
#include "app/bench_model.h"
#include "app/bench_options.h"
#include "app/bench_report.h"
#include "comm/ucx_support.h"

namespace capstan::app {
namespace {

ParsedBench parse(std::vector<std::string> args) {
  args.insert(args.begin(), "bench");
  std::vector<char*> argv;
  for (std::string& a : args) argv.push_back(a.data());
  return parse_bench_options(static_cast<int>(argv.size()), argv.data());
}

std::string model(const char* name) { return std::string(CAPSTAN_TESTDATA) + "/model/" + name; }

TEST(BenchOptions, DefaultsDependOnWhatIsMeasured) {
  const ParsedBench p = parse({"--model-path", "x"});
  ASSERT_TRUE(p.proceed);
  using Kind = BenchOptions::Kind;
  EXPECT_TRUE(p.options.runs(Kind::kDecode) && p.options.runs(Kind::kServe));
  EXPECT_EQ(p.options.prompt_length(Kind::kDecode), 16);
  EXPECT_EQ(p.options.prompt_length(Kind::kPrefill), 512);
  EXPECT_EQ(p.options.batches, (std::vector<int>{1, 8, 32}));
}

TEST(BenchOptions, ReadsFlags) {
  const ParsedBench p = parse({"decode", "--model-path=m.gguf", "--batch", "2,4", "--threads", "3",
                               "--prompt-len", "7", "--load-format", "dummy"});
  ASSERT_TRUE(p.proceed);
  using Kind = BenchOptions::Kind;
  EXPECT_TRUE(p.options.runs(Kind::kDecode));
  EXPECT_FALSE(p.options.runs(Kind::kPrefill));
  EXPECT_EQ(p.options.batches, (std::vector<int>{2, 4}));
  EXPECT_EQ(p.options.threads, 3);
  EXPECT_EQ(p.options.prompt_length(Kind::kDecode), 7);
  EXPECT_TRUE(p.options.dummy_weights);
}

TEST(BenchOptions, RefusesWithExitCode2) {
  EXPECT_EQ(parse({"decode"}).exit_code, 2);  // no model
  EXPECT_EQ(parse({"train", "--model-path", "x"}).exit_code, 2);
  EXPECT_EQ(parse({"--model-path", "x", "--batch", "0"}).exit_code, 2);
  EXPECT_EQ(parse({"--model-path", "x", "--no-such-flag"}).exit_code, 2);
  const ParsedBench help = parse({"--help"});
  EXPECT_FALSE(help.proceed);
  EXPECT_EQ(help.exit_code, 0);
}

ParsedBenchComm parse_comm(std::vector<std::string> args) {
  args.insert(args.begin(), "comm");
  std::vector<char*> argv;
  for (std::string& a : args) argv.push_back(a.data());
  return parse_bench_comm_options(static_cast<int>(argv.size()), argv.data());
}

std::vector<std::string> way_names(const ParsedBenchComm& parsed) {
  std::vector<std::string> names;
  for (const CommWay& way : comm_ways(parsed.options)) {
    names.push_back(way.name + std::to_string(way.nodes));
  }
  return names;
}

TEST(BenchComm, FlagsSayHowRanksAreSpread) {
  using Names = std::vector<std::string>;
  const auto with_ucx = [](Names names, const char* ucx) {
    if (comm::ucx_built_in()) names.push_back(ucx);
    return names;
  };
  EXPECT_EQ(way_names(parse_comm({})), with_ucx({"threads1", "shared_memory2", "tcp2"}, "ucx2"));
  EXPECT_EQ(way_names(parse_comm({"--tp", "3"})), (Names{"threads1"}));
  EXPECT_EQ(way_names(parse_comm({"--tp", "8", "--nnodes", "4"})),
            with_ucx({"shared_memory4", "tcp4"}, "ucx4"));
  EXPECT_EQ(way_names(parse_comm({"--nnodes", "2", "--comm-transport", "tcp"})), (Names{"tcp2"}));
  EXPECT_EQ(way_names(parse_comm({"--nnodes", "2", "--comm-transport", "ucx"})), (Names{"ucx2"}));
  EXPECT_EQ(parse_comm({"--tp", "3", "--nnodes", "2"}).exit_code, 2);
  EXPECT_EQ(parse_comm({"--op", "all_reduc"}).exit_code, 2);
  EXPECT_EQ(parse_comm({"--elements", "0"}).exit_code, 2);
  EXPECT_EQ(parse_comm({"--help"}).exit_code, 0);
}

TEST(BenchComm, EveryWayMeasuresEveryOperation) {
  ParsedBenchComm parsed = parse_comm({"--elements", "64,70000", "--seconds", "0.001"});
  ASSERT_TRUE(parsed.proceed);
  for (const CommWay& way : comm_ways(parsed.options)) {
    const auto rows = bench_comm_way(way, parsed.options);
    ASSERT_TRUE(rows.ok()) << rows.error().message;
    ASSERT_EQ(rows->size(), 11u);  // five operations of two sizes, and the barrier
    EXPECT_EQ(rows->front().name, way.name + " all_reduce, 64");
    EXPECT_EQ(rows->back().name, way.name + " barrier");
    for (const BenchRow& row : *rows) {
      for (const auto& [key, value] : row.values) {
        if (key == "p50_us" || key == "p99_us") {
          EXPECT_GT(value, 0) << row.name;
        }
      }
    }
  }
  const auto limits = bench_loopback(parsed.options);
  ASSERT_TRUE(limits.ok()) << limits.error().message;
  EXPECT_EQ(limits->size(), 4u);
}

TEST(BenchReport, PercentileInterpolates) {
  EXPECT_EQ(percentile({}, 50), 0);
  EXPECT_DOUBLE_EQ(percentile({4, 1, 3, 2}, 50), 2.5);
  EXPECT_DOUBLE_EQ(percentile({4, 1, 3, 2}, 100), 4);
  EXPECT_DOUBLE_EQ(percentile({5}, 99), 5);
}

TEST(BenchReport, JsonHoldsEveryFigure) {
  BenchReport report;
  report.model = "a \"quoted\" name";
  report.threads = 2;
  report.roofs.read_bytes_per_s = 1e9;
  report.rows.push_back({"decode, batch 1", {{"tok_per_s", 12.5}, {"step_p50_ms", 80}}, "text"});
  const auto json = boost::json::parse(to_json(report)).as_object();
  EXPECT_EQ(json.at("model").as_string(), "a \"quoted\" name");
  EXPECT_EQ(json.at("roofs").at("read_bytes_per_s").to_number<double>(), 1e9);
  EXPECT_EQ(json.at("results").at("decode, batch 1").at("tok_per_s").to_number<double>(), 12.5);
  EXPECT_NE(to_table(report).find("decode, batch 1  text"), std::string::npos);
}

// 2 operations for every element of every matrix but the embedding, counted by hand.
TEST(BenchModel, OperationsOfTheTinyLlama) {
  BenchOptions options;
  options.model_path = model("tiny-llama3-f32");
  options.threads = 1;
  auto loaded = load_bench_model(options);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  const double layer = 32 * (64 + 2 * 32) + 64 * 32 + 3 * 32 * 96;
  EXPECT_EQ(body_ops_per_token(loaded->model->config()), 2 * 2 * layer);
  EXPECT_EQ(head_ops_per_token(loaded->model->config()), 2.0 * 32 * 288);
}

TEST(BenchModel, EveryBenchmarkRunsOnATinyModel) {
  BenchOptions options;
  options.model_path = model("tiny-qwen2-bf16");
  options.threads = 1;  // threads that wait for each other crawl on a busy machine
  options.batches = {1, 3};
  options.prompt_len = 40;
  options.output_len = 6;
  options.chunk = 16;
  options.clients = 3;
  options.shared_prefix = 32;
  auto loaded = load_bench_model(options);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  const auto decode = bench_decode(*loaded, options, {});
  ASSERT_TRUE(decode.ok()) << decode.error().message;
  ASSERT_EQ(decode->size(), 2u);
  EXPECT_EQ((*decode)[1].name, "decode, batch 3");
  EXPECT_GT((*decode)[1].values[0].second, 0);
  const auto prefill = bench_prefill(*loaded, options, {});
  ASSERT_TRUE(prefill.ok()) << prefill.error().message;
  const auto serve = bench_serve(*loaded, options);
  ASSERT_TRUE(serve.ok()) << serve.error().message;
  for (const auto& [key, value] : serve->front().values) {
    // Two pages of 16 tokens are shared by every prompt of 40.
    if (key == "cached_share") {
      EXPECT_DOUBLE_EQ(value, 0.8);
    }
  }
}

TEST(BenchModel, RefusesPromptsBeyondTheContext) {
  BenchOptions options;
  options.model_path = model("tiny-smol-f32");
  options.threads = 1;
  options.prompt_len = 600;  // the model has 512
  auto loaded = load_bench_model(options);
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  const auto rows = bench_prefill(*loaded, options, {});
  ASSERT_FALSE(rows.ok());
  EXPECT_NE(rows.error().message.find("600 tokens"), std::string::npos) << rows.error().message;
}

TEST(BenchModel, NamesAModelThatIsNotThere) {
  BenchOptions options;
  options.model_path = model("no-such-model");
  const auto loaded = load_bench_model(options);
  ASSERT_FALSE(loaded.ok());
  EXPECT_NE(loaded.error().message.find("no-such-model"), std::string::npos);
}

}  // namespace
}  // namespace capstan::app
