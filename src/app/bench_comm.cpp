#include "app/bench_comm.h"

#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <thread>

#include "app/bench_process.h"
#include "base/log.h"
#include "comm/communicator.h"
#include "comm/ucx_support.h"
#include "platform/cpu.h"
#include "tensor/tensor.h"

namespace capstan::app {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// One call of `operation` on a tensor of `count` floats: what a rank holds for all_reduce and
/// broadcast, what all ranks hold together for the others.
Status call(comm::Communicator& c, const std::string& operation, AlignedBuffer& a, AlignedBuffer& b,
            int64_t count) {
  const int64_t part = count / c.size();
  if (operation == "all_reduce") return c.all_reduce(a.data(), count, DType::kF32);
  if (operation == "all_gather") return c.all_gather(a.data(), b.data(), part * 4);
  if (operation == "reduce_scatter") return c.reduce_scatter(a.data(), b.data(), part, DType::kF32);
  if (operation == "all_to_all") return c.all_to_all(a.data(), b.data(), part * 4);
  if (operation == "broadcast") {
    // Its root need not wait for anybody: the barrier makes the time that of the whole group.
    CAPSTAN_RETURN_IF_ERROR(c.broadcast(a.data(), count * 4, 0));
  }
  return c.barrier();
}

/// Calls of each operation and size on all ranks; rank 0 writes the samples.
Status measure_rank(comm::Communicator& c, const BenchCommOptions& options,
                    const std::string& prefix, int fd) {
  for (const std::string& operation : options.operations) {
    for (const int64_t count : options.elements) {
      if (operation == "barrier" && count != options.elements.front()) continue;
      AlignedBuffer a(static_cast<size_t>(count) * 4);
      AlignedBuffer b(static_cast<size_t>(count) * 4);
      std::memset(a.data(), 0, a.bytes());
      std::memset(b.data(), 0, b.bytes());
      // Rank 0 finds out how many calls fill the time.
      int64_t calls = 0;
      const auto warm_up = Clock::now();
      for (int i = 0; i < 5; ++i) {
        CAPSTAN_RETURN_IF_ERROR(call(c, operation, a, b, count));
      }
      calls = std::clamp(static_cast<int64_t>(options.seconds / since(warm_up) * 5), int64_t{10},
                         int64_t{1000000});
      CAPSTAN_RETURN_IF_ERROR(c.broadcast(&calls, sizeof(calls), 0));
      std::vector<double> samples(static_cast<size_t>(calls));
      for (double& sample : samples) {
        // As in a model, each rank has just written its tensor, and all start together.
        std::memset(a.data(), 0, a.bytes());
        CAPSTAN_RETURN_IF_ERROR(c.barrier());
        const auto start = Clock::now();
        CAPSTAN_RETURN_IF_ERROR(call(c, operation, a, b, count));
        sample = since(start);
      }
      CAPSTAN_RETURN_IF_ERROR(c.barrier());
      if (c.rank() != 0) continue;
      BenchSample summary;
      (prefix + operation).copy(summary.name, sizeof(summary.name) - 1);
      summary.elements = operation == "barrier" ? 0 : static_cast<double>(count);
      summary.p50 = percentile(samples, 50);
      summary.p99 = percentile(std::move(samples), 99);
      CAPSTAN_RETURN_IF_ERROR(write_sample(fd, summary));
    }
  }
  return {};
}

/// All ranks of one node.
Status measure_node(std::vector<std::unique_ptr<comm::Communicator>>& ranks,
                    const BenchCommOptions& options, const std::string& prefix, int fd) {
  std::mutex mutex;
  Status first;
  std::vector<std::thread> threads;
  for (auto& rank : ranks) {
    threads.emplace_back([&] {
      const Status status = measure_rank(*rank, options, prefix, fd);
      const std::lock_guard lock(mutex);
      if (first.ok() && !status.ok()) first = status;
    });
  }
  for (std::thread& thread : threads) thread.join();
  return first;
}

BenchRow to_row(const BenchSample& s) {
  const double bytes = s.elements * 4;
  BenchRow row;
  row.name = s.name;
  if (s.elements > 0) row.name += format(", %.0f", s.elements);
  row.values = {{"elements", s.elements}, {"p50_us", s.p50 * 1e6}, {"p99_us", s.p99 * 1e6}};
  row.text = format("%10.2f us  %10.2f us", s.p50 * 1e6, s.p99 * 1e6);
  if (bytes > 0) {
    row.values.emplace_back("bytes_per_s", bytes / s.p50);
    row.text += format("  %8.2f GB/s", bytes / s.p50 / 1e9);
  }
  return row;
}

Result<std::vector<BenchRow>> to_rows(Result<std::vector<BenchSample>> samples) {
  CAPSTAN_RETURN_IF_ERROR(samples.status());
  std::vector<BenchRow> rows;
  for (const BenchSample& sample : *samples) rows.push_back(to_row(sample));
  return rows;
}

/// Both ends send `bytes` and receive as many, polling.
Status swap(int fd, const std::byte* out, std::byte* in, size_t bytes) {
  constexpr size_t kPiece = 512 << 10;  // as comm's own
  size_t sent = 0;
  size_t received = 0;
  while (sent < bytes || received < bytes) {
    if (sent < bytes) {
      const ssize_t n =
          send(fd, out + sent, std::min(kPiece, bytes - sent), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n > 0) sent += static_cast<size_t>(n);
      if (n < 0 && errno != EAGAIN) return internal_error(std::strerror(errno));
    }
    if (received < bytes) {
      const ssize_t n = recv(fd, in + received, std::min(kPiece, bytes - received), MSG_DONTWAIT);
      if (n > 0) received += static_cast<size_t>(n);
      if (n == 0) return internal_error("the other process has ended");
      if (n < 0 && errno != EAGAIN) return internal_error(std::strerror(errno));
    }
  }
  return {};
}

Status measure_swap(int fd, bool first, const std::string& name, const BenchCommOptions& options,
                    int out) {
  for (const int64_t count : options.elements) {
    const auto bytes = static_cast<size_t>(count) * 4;
    AlignedBuffer a(bytes);
    AlignedBuffer b(std::max(bytes, sizeof(int64_t)));
    std::memset(a.data(), 0, bytes);
    std::memset(b.data(), 0, bytes);
    const auto warm_up = Clock::now();
    for (int i = 0; i < 5; ++i) {
      CAPSTAN_RETURN_IF_ERROR(swap(fd, a.data(), b.data(), bytes));
    }
    int64_t calls = std::clamp(static_cast<int64_t>(options.seconds / since(warm_up) * 5),
                               int64_t{10}, int64_t{1000000});
    int64_t theirs = 0;
    CAPSTAN_RETURN_IF_ERROR(swap(fd, reinterpret_cast<std::byte*>(&calls),
                                 reinterpret_cast<std::byte*>(&theirs), sizeof(calls)));
    calls = std::min(calls, theirs);
    std::vector<double> samples(static_cast<size_t>(calls));
    for (double& sample : samples) {
      const auto start = Clock::now();
      CAPSTAN_RETURN_IF_ERROR(swap(fd, a.data(), b.data(), bytes));
      sample = since(start);
    }
    if (!first) continue;
    BenchSample summary;
    name.copy(summary.name, sizeof(summary.name) - 1);
    summary.elements = static_cast<double>(count);
    summary.p50 = percentile(samples, 50);
    summary.p99 = percentile(std::move(samples), 99);
    CAPSTAN_RETURN_IF_ERROR(write_sample(out, summary));
  }
  return {};
}

}  // namespace

std::vector<CommWay> comm_ways(const BenchCommOptions& options) {
  const auto wanted = [&](const char* name) {
    return options.transport == "all" || options.transport == name;
  };
  std::vector<CommWay> ways;
  const bool spread = options.nodes > 1 || (options.nodes == 0 && options.ranks % 2 == 0);
  const int nodes = options.nodes > 1 ? options.nodes : 2;
  if (options.nodes <= 1) ways.push_back({"threads", 1});
  if (spread && wanted("shm")) ways.push_back({"shared_memory", nodes});
  if (spread && wanted("tcp")) ways.push_back({"tcp", nodes});
  if (spread && (options.transport == "ucx" || (wanted("ucx") && comm::ucx_built_in()))) {
    ways.push_back({"ucx", nodes});
  }
  return ways;
}

Result<std::vector<BenchRow>> bench_comm_way(const CommWay& way, const BenchCommOptions& options) {
  // links[i]: of node i to the others.
  std::vector<std::vector<comm::NodeLink>> links(static_cast<size_t>(way.nodes));
  for (int a = 0; a < way.nodes; ++a) {
    for (int b = a + 1; b < way.nodes; ++b) {
      int fds[2];
      CAPSTAN_RETURN_IF_ERROR(tcp_pair(fds));
      links[static_cast<size_t>(a)].push_back({b, fds[0], "localhost"});
      links[static_cast<size_t>(b)].push_back({a, fds[1], "localhost"});
    }
  }
  const std::string segment =
      way.name == "shared_memory" ? "/capstan_bench_" + std::to_string(getpid()) : "";
  std::vector<BenchProcess> processes;
  for (int node = 0; node < way.nodes; ++node) {
    processes.push_back([&, node](int fd) -> Status {
      for (int other = 0; other < way.nodes; ++other) {
        if (other == node) continue;
        for (const comm::NodeLink& link : links[static_cast<size_t>(other)]) close(link.fd);
      }
      comm::Topology topology{way.nodes, node, options.ranks / way.nodes, segment};
      topology.ucx = way.name == "ucx";
      CAPSTAN_ASSIGN(auto ranks,
                     comm::make_group(topology, std::move(links[static_cast<size_t>(node)])));
      return measure_node(ranks, options, way.name + " ", fd);
    });
  }
  auto rows = to_rows(run_processes(processes));
  for (const auto& of_node : links) {
    for (const comm::NodeLink& link : of_node) close(link.fd);
  }
  return rows;
}

Result<std::vector<BenchRow>> bench_loopback(const BenchCommOptions& options) {
  std::vector<BenchRow> rows;
  for (const std::string name : {"tcp exchange", "unix exchange"}) {
    int fds[2];
    if (name == "tcp exchange") {
      CAPSTAN_RETURN_IF_ERROR(tcp_pair(fds));
    } else if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
      return internal_error(std::string("socketpair: ") + std::strerror(errno));
    }
    std::vector<BenchProcess> processes;
    for (int i = 0; i < 2; ++i) {
      processes.push_back([&, i](int fd) {
        close(fds[1 - i]);
        return measure_swap(fds[i], i == 0, name, options, fd);
      });
    }
    auto measured = to_rows(run_processes(processes));
    close(fds[0]);
    close(fds[1]);
    CAPSTAN_RETURN_IF_ERROR(measured.status());
    rows.insert(rows.end(), measured->begin(), measured->end());
  }
  return rows;
}

ParsedBenchComm parse_bench_comm_options(int argc, char** argv) {
  ParsedBenchComm parsed;
  BenchCommOptions& o = parsed.options;
  CLI::App cli{
      "Measures the collective operations among ranks on this machine, and what its loopback\n"
      "sockets can do at most. Ranks busy-wait: figures mean something while ranks <= CPUs.",
      "capstan bench comm"};
  cli.add_option("--tp,--tp-size,--tensor-parallel-size", o.ranks, "ranks in all")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  cli.add_option("--nnodes", o.nodes,
                 "processes that the ranks are spread over; 0 for threads of one process, then two "
                 "processes")
      ->check(CLI::Range(0, 16))
      ->capture_default_str();
  cli.add_option("--comm-transport", o.transport,
                 "between processes: shm, tcp, ucx (as UCX_TLS says), all")
      ->check(CLI::IsMember({"shm", "tcp", "ucx", "all"}))
      ->capture_default_str();
  const std::vector<std::string> all = o.operations;
  cli.add_option("--op", o.operations, "operations, e.g. all_reduce,all_gather")
      ->delimiter(',')
      ->check(CLI::IsMember(all))
      ->capture_default_str();
  cli.add_option("--elements", o.elements, "sizes in float32 elements, e.g. 64,7168")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  cli.add_option("--seconds", o.seconds, "per operation and size")
      ->check(CLI::Range(0.001, 60.0))
      ->capture_default_str();
  cli.add_option("--json", o.json_path, "write the figures to this file as well");
  try {
    cli.parse(argc, argv);
    if (o.nodes > 1 && o.ranks % o.nodes != 0) {
      throw CLI::ValidationError("--tp " + std::to_string(o.ranks) +
                                 " ranks do not spread evenly over --nnodes " +
                                 std::to_string(o.nodes));
    }
  } catch (const CLI::ParseError& e) {
    parsed.exit_code = cli.exit(e) == 0 ? 0 : 2;
    return parsed;
  }
  parsed.proceed = true;
  return parsed;
}

static std::string comm_json(const BenchCommOptions& options, const std::vector<BenchRow>& rows) {
  boost::json::object results;
  for (const BenchRow& row : rows) {
    boost::json::object values;
    for (const auto& [key, value] : row.values) values[key] = value;
    results[row.name] = std::move(values);
  }
  boost::json::object document;
  document["ranks"] = options.ranks;
  document["cpu"] = platform::cpu_model_name();
  document["usable_cpus"] = platform::usable_cpu_count();
  document["results"] = std::move(results);
  return boost::json::serialize(document) + "\n";
}

int run_bench_comm(int argc, char** argv) {
  const ParsedBenchComm parsed = parse_bench_comm_options(argc, argv);
  if (!parsed.proceed) return parsed.exit_code;
  if (const Status s = init_logging("warning"); !s.ok()) return 1;
  const BenchCommOptions& options = parsed.options;
  const int cpus = platform::usable_cpu_count();
  std::printf("%s, %d ranks, %d usable CPUs\n", platform::cpu_model_name().c_str(), options.ranks,
              cpus);
  if (options.ranks > cpus) {
    std::printf("more ranks than CPUs: they take turns, and the figures are those of the turns\n");
  }
  std::printf("  %-34s  %13s  %13s  %13s\n", "operation, float32 elements", "p50", "p99",
              "bytes / p50");
  std::vector<BenchRow> rows;
  const auto add = [&](const Result<std::vector<BenchRow>>& more) {
    if (!more.ok()) {
      std::fprintf(stderr, "capstan bench: %s\n", more.error().message.c_str());
      return false;
    }
    for (const BenchRow& row : *more) {
      std::printf("  %-34s  %s\n", row.name.c_str(), row.text.c_str());
      rows.push_back(row);
    }
    std::fflush(stdout);
    return true;
  };
  const std::vector<CommWay> ways = comm_ways(options);
  for (const CommWay& way : ways) {
    if (way.name == "ucx") {
      const auto lack = ask_process([] { return comm::ucx_support(comm::Transport::kUcx).lack; });
      if (!lack.ok() || (!lack->empty() && options.transport == "ucx")) {
        std::fprintf(stderr, "capstan bench: --comm-transport ucx: %s\n",
                     (lack.ok() ? *lack : lack.error().message).c_str());
        return 1;
      }
      if (!lack->empty()) {
        std::printf("  ucx: skipped: %s\n", lack->c_str());
        continue;
      }
    }
    if (!add(bench_comm_way(way, options))) return 1;
  }
  const bool sockets =
      std::any_of(ways.begin(), ways.end(), [](const CommWay& way) { return way.name == "tcp"; });
  if (sockets && !add(bench_loopback(options))) return 1;
  const std::string json = comm_json(options, rows);
  if (options.json_path.empty()) return 0;
  if (const Status s = write_file(options.json_path, json); !s.ok()) {
    std::fprintf(stderr, "capstan bench: --json: %s\n", s.error().message.c_str());
    return 1;
  }
  return 0;
}

}  // namespace capstan::app
