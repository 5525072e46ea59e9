// One node of `capstan up`: a child process with its own CPUs and, if so, its own network.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/result.h"

namespace capstan::app {

struct NodeCommand {
  std::string program;
  std::vector<std::string> arguments;    // without the program
  std::vector<std::string> environment;  // NAME=VALUE, over those of this process
  std::vector<int> cpus;                 // empty: all
  std::string network_namespace;         // file; empty: none
  std::string host_name;                 // with a namespace
};

struct NodeProcess {
  pid_t pid = -1;
  int output = -1;  // what it writes, both streams; not blocking
};

/// Starts it in a process group of its own, stdin from /dev/null. The kernel kills it when the
/// calling thread ends. Errors name the step that failed.
Result<NodeProcess> start_node(const NodeCommand& command);

/// How a process ended, from a status of waitpid.
struct NodeExit {
  int code = 0;    // 128 + n after signal n
  int signal = 0;  // that killed it
  bool orderly() const { return code == 0; }
  std::string describe() const;  // "ended with code 1", "was killed by signal 9 (Killed)"
};
NodeExit node_exit(int wait_status);

/// Resident memory of a process in bytes, 0 when it is gone; its state as in /proc/PID/stat.
uint64_t resident_bytes(pid_t pid);
char process_state(pid_t pid);

}  // namespace capstan::app
