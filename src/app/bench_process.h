// Short-lived processes of a benchmark, each of which sends figures to the one that started it.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace capstan::app {

/// A figure: which row, and its samples' summary in seconds.
struct BenchSample {
  char name[64] = {};
  double elements = 0;
  double p50 = 0;
  double p99 = 0;
};

/// What a process does; it writes samples to `fd`, its standard error is ours. Its error ends the
/// whole run.
using BenchProcess = std::function<Status(int fd)>;

/// Runs all at the same time, from a program without other threads, and collects what they wrote.
/// They die with this process.
Result<std::vector<BenchSample>> run_processes(const std::vector<BenchProcess>& processes);

/// What `question` answers in a process of its own, which leaves no trace in this one.
Result<std::string> ask_process(const std::function<std::string()>& question);

/// For a BenchProcess.
Status write_sample(int fd, const BenchSample& sample);

/// Two connected TCP sockets of this host.
Status tcp_pair(int fds[2]);

}  // namespace capstan::app
