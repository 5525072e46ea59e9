// `capstan bench comm`: latency and bandwidth of the collective operations between ranks of this
// machine, beside what its sockets can do at most.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "app/bench_report.h"
#include "base/result.h"

namespace capstan::app {

struct BenchCommOptions {
  int ranks = 2;  // --tp
  int nodes = 0;  // --nnodes; 0: threads of one process, then two processes
  std::string transport = "all";
  std::vector<std::string> operations = {"all_reduce", "all_gather", "reduce_scatter",
                                         "all_to_all", "broadcast",  "barrier"};
  std::vector<int64_t> elements = {64, 1536, 7168, 57344, 458752, 4194304, 16777216};
  double seconds = 0.1;  // per operation and size
  std::string json_path;
};

struct ParsedBenchComm {
  BenchCommOptions options;
  bool proceed = false;
  int exit_code = 0;
};

ParsedBenchComm parse_bench_comm_options(int argc, char** argv);

/// How the ranks are spread and how bytes go between them.
struct CommWay {
  std::string name;  // "threads", "shared_memory", "tcp", "ucx"
  int nodes = 1;     // processes
};

/// The ways that the options ask for.
std::vector<CommWay> comm_ways(const BenchCommOptions& options);

/// One row per operation and size. Starts a process per node, which end with it.
Result<std::vector<BenchRow>> bench_comm_way(const CommWay& way, const BenchCommOptions& options);

/// Two processes that send each other the bytes of each size at once and do nothing with them: what
/// loopback TCP and a Unix socket allow.
Result<std::vector<BenchRow>> bench_loopback(const BenchCommOptions& options);

/// The sub-command; argv[0] is "comm". Exit codes as run_bench().
int run_bench_comm(int argc, char** argv);

}  // namespace capstan::app
