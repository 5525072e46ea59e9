// Flags of `capstan up`: its own, and those that it hands on to every `capstan serve`.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace capstan::app {

struct UpOptions {
  enum class Isolation : uint8_t {
    kAuto,        // namespaces where they can be had, else processes
    kNamespaces,  // or an error
    kProcesses,
  };

  int nodes = 2;
  int tp_size = 1;  // ranks of all nodes together
  Isolation isolation = Isolation::kAuto;
  bool print_nodes = false;  // one line of JSON on stdout, logs on stderr
  double grace = 10;         // seconds from the first failure to the end of all by force

  // One entry per node.
  std::vector<std::vector<std::string>> node_environment;  // NAME=VALUE
  std::vector<std::vector<std::string>> node_flags;        // --flag=value
  std::vector<double> node_delay;                          // seconds

  // What the clients see.
  std::string host = "127.0.0.1";
  uint16_t port = 30000;

  std::vector<std::string> serve_args;  // of all nodes, as given

  int ranks_per_node() const { return tp_size / nodes; }
};

struct ParsedUp {
  UpOptions options;
  bool help = false;
};

/// `args`: what follows `up`. Errors are kInvalidArgument: the process exits with 2.
Result<ParsedUp> parse_up_options(const std::vector<std::string>& args);

std::string up_help_text();
std::string up_usage_text();

/// The command line of a node's `capstan serve`, without the program: those of all, what `up`
/// decides, those of this node.
struct NodeAddress {
  std::string dist_init_addr;
  std::string host;
  uint16_t port = 0;
};
std::vector<std::string> node_arguments(const UpOptions& options, int node,
                                        const NodeAddress& address);

/// The CPUs of each node: parts of `cpus` in their order, equal up to one. With more nodes than
/// CPUs, nodes share.
std::vector<std::vector<int>> share_cpus(const std::vector<int>& cpus, int nodes);

}  // namespace capstan::app
