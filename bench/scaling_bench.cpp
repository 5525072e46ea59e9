// Decode and prefill speed of the 671B shape on 1 to 16 nodes of eight ranks, by the cost model of
// scheduler/cluster_cost.h: nothing is run. --help for what can be varied.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "scheduler/cluster_cost.h"
#include "scheduler/traces.h"

using namespace capstan;
using namespace capstan::scheduler;

namespace {

struct Options {
  std::string hardware = "h200";
  std::string split = "both";
  double between_us = 0, inside_us = 0;  // 0: the preset's
  std::vector<int> nodes = {1, 2, 4, 8, 16};
  int64_t streams = 32;  // per node, for the throughput table
  int64_t context = 2048;
  int64_t chunk = 8192;
  bool trace = false;
};

Cluster cluster_of(const Options& o, int nodes) {
  auto made = accelerator_cluster(o.hardware, nodes);
  if (!made.ok()) {
    std::fprintf(stderr, "scaling_bench: %s\n", made.error().message.c_str());
    std::exit(2);
  }
  if (o.between_us > 0) made->between.latency = o.between_us * 1e-6;
  if (o.inside_us > 0) made->inside.latency = o.inside_us * 1e-6;
  return *made;
}

struct Point {
  double ms, tokens_per_second, communication;
};

Point point(const Result<StepTime>& t, double tokens) {
  if (!t.ok()) {
    std::fprintf(stderr, "scaling_bench: %s\n", t.error().message.c_str());
    std::exit(2);
  }
  return {t->total() * 1e3, tokens / t->total(), t->communication_share() * 100};
}

void print_table(const Options& o, Split split) {
  const ModelWork model = deepseek_671b();
  std::printf("\n%s\n", split == Split::kTensor
                            ? "Tensor parallel over all ranks"
                            : "Data-parallel attention, experts over all ranks");
  std::printf("%-13s | %-22s | %-31s | %-31s\n", "", "one stream",
              (std::to_string(o.streams) + " streams per node").c_str(),
              ("prefill, " + std::to_string(o.chunk) + " tokens a step and node").c_str());
  std::printf("%5s %7s | %7s %7s %6s | %7s %9s %7s %5s | %7s %9s %7s %5s\n", "nodes", "ranks", "ms",
              "tok/s", "comm", "ms", "tok/s", "per node", "comm", "ms", "tok/s", "per node",
              "comm");
  double decode_one = 0, prefill_one = 0;
  for (const int nodes : o.nodes) {
    const Cluster c = cluster_of(o, nodes);
    const Point one = point(decode_step(c, model, split, 1, o.context), 1);
    const int64_t batch = o.streams * nodes, tokens = o.chunk * nodes;
    const Point many =
        point(decode_step(c, model, split, batch, o.context), static_cast<double>(batch));
    const Point prompt =
        point(prefill_step(c, model, split, tokens, o.context), static_cast<double>(tokens));
    if (decode_one == 0) {
      decode_one = many.tokens_per_second / nodes;
      prefill_one = prompt.tokens_per_second / nodes;
    }
    std::printf(
        "%5d %7d | %7.1f %7.1f %5.0f%% | %7.1f %9.0f %6.0f%% %5.0f%% | %7.0f %9.0f %6.0f%% "
        "%5.0f%%\n",
        nodes, c.ranks(), one.ms, one.tokens_per_second, one.communication, many.ms,
        many.tokens_per_second, 100 * many.tokens_per_second / nodes / decode_one,
        many.communication, prompt.ms, prompt.tokens_per_second,
        100 * prompt.tokens_per_second / nodes / prefill_one, prompt.communication);
  }
}

/// A load through the scheduler, with the steps of the cost model made linear.
void print_trace(const Options& o, Split split) {
  std::printf("\nThrough the scheduler: conversations of 4 turns, %s\n",
              split == Split::kTensor ? "tensor parallel" : "data-parallel attention");
  std::printf("%5s | %9s %9s %9s %9s %6s\n", "nodes", "tok/s", "TTFT p50", "ITL p50", "ITL p99",
              "comm");
  for (const int nodes : o.nodes) {
    const auto cost = linear_cost(cluster_of(o, nodes), deepseek_671b(), split, o.streams * nodes,
                                  o.context, o.chunk);
    SchedulerConfig config;
    config.num_pages = 200000;
    config.max_running_requests = static_cast<int>(o.streams) * nodes;
    config.chunked_prefill_size = static_cast<int>(o.chunk);
    const auto load = conversation_trace({.conversations = 40 * nodes, .per_second = 4.0 * nodes});
    const auto result = cost.ok() ? simulate(config, *cost, load) : cost.error();
    if (!result.ok()) {
      std::fprintf(stderr, "scaling_bench: %s\n", result.error().message.c_str());
      std::exit(1);
    }
    std::printf("%5d | %9.0f %7.0fms %7.1fms %7.1fms %5.0f%%\n", nodes,
                result->output_tokens_per_second(), result->ttft.p50 * 1e3, result->itl.p50 * 1e3,
                result->itl.p99 * 1e3, 100 * result->communication / result->busy);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App cli{"Speed of the 671B shape on several nodes by the cost model; nothing is run.",
               "scaling_bench"};
  cli.add_option("--hardware", o.hardware, "h100, h200 or h800")->capture_default_str();
  cli.add_option("--split", o.split)
      ->check(CLI::IsMember({"tensor", "data", "both"}))
      ->capture_default_str();
  cli.add_option("--between-us", o.between_us, "latency between nodes in microseconds");
  cli.add_option("--inside-us", o.inside_us, "latency inside a node in microseconds");
  cli.add_option("--nodes", o.nodes, "numbers of nodes, comma separated")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096));
  cli.add_option("--streams", o.streams, "streams per node")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  cli.add_option("--context", o.context, "positions of each stream")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  cli.add_option("--chunk", o.chunk, "prompt tokens per step and node")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  cli.add_flag("--trace", o.trace, "also a load through the scheduler");
  CLI11_PARSE(cli, argc, argv);
  const Cluster c = cluster_of(o, 2);
  std::printf(
      "%s, between nodes %.1f us and %.0f GB/s per rank, inside %.1f us and %.0f GB/s, "
      "context %lld\n",
      o.hardware.c_str(), c.between.latency * 1e6, c.between.bandwidth / 1e9,
      c.inside.latency * 1e6, c.inside.bandwidth / 1e9, static_cast<long long>(o.context));
  for (const Split split : {Split::kTensor, Split::kDataAttention}) {
    if (o.split == (split == Split::kTensor ? "data" : "tensor")) continue;
    print_table(o, split);
    if (o.trace) print_trace(o, split);
  }
  return 0;
}
