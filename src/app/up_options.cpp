#include "app/up_options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "app/flags.h"

namespace capstan::app {
namespace {

constexpr int kMostNodes = 200;  // addresses .2 to .201 of a /24

Error wrong(const std::string& flag, const std::string& value, const std::string& wanted) {
  return invalid_argument("--" + flag + ": '" + value + "' is not " + wanted, flag);
}

template <class T>
std::optional<T> number(const std::string& text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || at != end) return std::nullopt;
  return value;
}

/// "1:REST"
std::optional<std::pair<int, std::string>> for_node(const std::string& text) {
  const size_t colon = text.find(':');
  if (colon == std::string::npos) return std::nullopt;
  const auto node = number<int>(text.substr(0, colon));
  if (!node || *node < 0) return std::nullopt;
  return std::pair(*node, text.substr(colon + 1));
}

/// Own flags as written, before the number of nodes is known.
struct Own {
  std::vector<std::pair<int, std::string>> environment, flags;
  std::vector<std::pair<int, double>> delays;
};

Status take(UpOptions& options, Own& own, const std::string& name, const std::string& value) {
  if (name == "nodes") {
    const auto nodes = number<int>(value);
    if (!nodes || *nodes < 1 || *nodes > kMostNodes) {
      return wrong(name, value, "a number of nodes from 1 to " + std::to_string(kMostNodes));
    }
    options.nodes = *nodes;
  } else if (name == "grace") {
    const auto seconds = number<double>(value);
    if (!seconds || !(*seconds >= 0) || *seconds > 86400) {
      return wrong(name, value, "a number of seconds from 0 to 86400");
    }
    options.grace = *seconds;
  } else if (name == "print-nodes") {
    if (value != "json") return wrong(name, value, "a format; there is json");
    options.print_nodes = true;
  } else if (name == "node-env") {
    const auto entry = for_node(value);
    const size_t equal = entry ? entry->second.find('=') : std::string::npos;
    if (equal == std::string::npos || equal == 0) {
      return wrong(name, value, "of the form NODE:NAME=VALUE, e.g. 1:CAPSTAN_LOG=debug");
    }
    own.environment.push_back(*entry);
  } else if (name == "node-flag") {
    const auto entry = for_node(value);
    if (!entry || !entry->second.starts_with("--") || entry->second.size() < 3) {
      return wrong(name, value, "of the form NODE:--FLAG=VALUE, e.g. 1:--threads=2");
    }
    own.flags.push_back(*entry);
  } else {  // node-delay
    const auto entry = for_node(value);
    const auto seconds = entry ? number<double>(entry->second) : std::nullopt;
    if (!seconds || !(*seconds >= 0)) {
      return wrong(name, value, "of the form NODE:SECONDS, e.g. 0:5");
    }
    own.delays.emplace_back(entry->first, *seconds);
  }
  return {};
}

Status check_node(const UpOptions& options, const char* flag, int node) {
  if (node < options.nodes) return {};
  return invalid_argument(std::string("--") + flag + " names node " + std::to_string(node) +
                              ", but the nodes are 0 to " + std::to_string(options.nodes - 1),
                          flag);
}

/// What the flags of `serve` say that concerns the group.
Status read_serve_flags(UpOptions& options) {
  CAPSTAN_ASSIGN(const FlagValues flags, parse_flags(options.serve_args));
  for (const auto& [flag, remedy] :
       {std::pair("nnodes", "use --nodes"),
        std::pair("node-rank", "`up` starts all nodes; for flags of one use --node-flag"),
        std::pair("dist-init-addr",
                  "`up` chooses the address; to join a group that runs "
                  "elsewhere use `capstan serve`")}) {
    if (flags.given(flag)) {
      return invalid_argument(std::string("--") + flag + " is not for `capstan up`: " + remedy,
                              flag);
    }
  }
  const int64_t tp = flags.integer("tp-size").value_or(1);
  // --tp left out: one rank on each node.
  options.tp_size = flags.given("tp-size") ? static_cast<int>(tp) : options.nodes;
  if (tp < 1 || tp > 4096) {
    return invalid_argument("--tp-size: " + std::to_string(tp) + " is not in [1, 4096]", "tp-size");
  }
  if (options.tp_size % options.nodes != 0) {
    return invalid_argument("--tp-size " + std::to_string(tp) + " is not a multiple of --nodes " +
                                std::to_string(options.nodes) +
                                ": every node has the same number of ranks",
                            "tp-size");
  }
  options.host = flags.text("host");
  const int64_t port = flags.integer("port").value_or(30000);
  if (port < 0 || port > 65535) {
    return invalid_argument("--port: " + std::to_string(port) + " is not in [0, 65535]", "port");
  }
  options.port = static_cast<uint16_t>(port);
  return {};
}

}  // namespace

Result<ParsedUp> parse_up_options(const std::vector<std::string>& args) {
  ParsedUp parsed;
  UpOptions& options = parsed.options;
  Own own;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& word = args[i];
    if (word == "-h" || word == "--help") {
      parsed.help = true;
      return parsed;
    }
    const size_t equal = word.find('=');
    const std::string name = word.starts_with("--") ? word.substr(2, equal - 2) : "";
    if (name == "no-namespaces" || name == "namespaces") {
      if (equal != std::string::npos) {
        return wrong(name, word.substr(equal + 1), "wanted: it is a switch and takes no value");
      }
      options.isolation = name == "namespaces" ? UpOptions::Isolation::kNamespaces
                                               : UpOptions::Isolation::kProcesses;
      continue;
    }
    const bool mine = name == "nodes" || name == "grace" || name == "print-nodes" ||
                      name == "node-env" || name == "node-flag" || name == "node-delay";
    if (!mine) {
      options.serve_args.push_back(word);
      continue;
    }
    if (equal == std::string::npos && i + 1 == args.size()) {
      return invalid_argument("--" + name + " needs a value", name);
    }
    CAPSTAN_RETURN_IF_ERROR(
        take(options, own, name, equal == std::string::npos ? args[++i] : word.substr(equal + 1)));
  }
  options.node_environment.resize(static_cast<size_t>(options.nodes));
  options.node_flags.resize(static_cast<size_t>(options.nodes));
  options.node_delay.resize(static_cast<size_t>(options.nodes), 0.0);
  for (auto& [node, text] : own.environment) {
    CAPSTAN_RETURN_IF_ERROR(check_node(options, "node-env", node));
    options.node_environment[static_cast<size_t>(node)].push_back(text);
  }
  for (auto& [node, text] : own.flags) {
    CAPSTAN_RETURN_IF_ERROR(check_node(options, "node-flag", node));
    options.node_flags[static_cast<size_t>(node)].push_back(text);
  }
  for (const auto& [node, seconds] : own.delays) {
    CAPSTAN_RETURN_IF_ERROR(check_node(options, "node-delay", node));
    options.node_delay[static_cast<size_t>(node)] = seconds;
  }
  CAPSTAN_RETURN_IF_ERROR(read_serve_flags(options));
  return parsed;
}

std::vector<std::string> node_arguments(const UpOptions& options, int node,
                                        const NodeAddress& address) {
  std::vector<std::string> args = {"serve"};
  const auto add = [&](const std::vector<std::string>& more) {
    args.insert(args.end(), more.begin(), more.end());
  };
  add({"--enable-metrics"});  // for the table; --enable-metrics=false among the others wins
  add(options.serve_args);
  add({"--tp-size", std::to_string(options.tp_size), "--host", address.host, "--port",
       std::to_string(address.port)});
  if (options.nodes > 1) {
    add({"--nnodes", std::to_string(options.nodes), "--node-rank", std::to_string(node),
         "--dist-init-addr", address.dist_init_addr});
  }
  add(options.node_flags[static_cast<size_t>(node)]);
  return args;
}

std::vector<std::vector<int>> share_cpus(const std::vector<int>& cpus, int nodes) {
  std::vector<std::vector<int>> shares(static_cast<size_t>(nodes));
  if (cpus.empty()) return shares;
  for (size_t node = 0; node < shares.size(); ++node) {
    if (cpus.size() < shares.size()) {
      shares[node] = {cpus[node % cpus.size()]};
      continue;
    }
    const size_t from = node * cpus.size() / shares.size();
    const size_t to = (node + 1) * cpus.size() / shares.size();
    for (size_t i = from; i < to; ++i) shares[node].push_back(cpus[i]);
  }
  return shares;
}

std::string up_usage_text() {
  return "usage: capstan up [--nodes N] [--tp RANKS] [--model-path PATH] [FLAG...]\n"
         "       capstan up --help lists its flags, capstan serve --help those handed on\n";
}

std::string up_help_text() {
  return R"(usage: capstan up [--nodes N] [--tp RANKS] [FLAG...]

Starts one server out of several `capstan serve` processes on this machine, as they would run
on several hosts, shows their state, and takes everything down again.

As root each node gets a network namespace of its own, joined to the others by veth pairs and
a bridge (addresses 198.18.N.0/24, names capstan-N-*), a host name and a private /dev/shm:
links can be cut, delayed and throttled. Otherwise, nodes are processes that talk over
loopback. Each node gets its share of the CPUs, its --node-rank, --dist-init-addr, port and a
random group token. The API is at --host:--port either way.

Flags of its own
  --nodes N
      number of nodes (default 2); more nodes than CPUs share them
  --no-namespaces
      plain processes even as root
  --namespaces
      an error instead of plain processes where namespaces can not be had
  --grace SECONDS
      after the first node failed, how long the others may take to end by themselves before
      they are ended (default 10)
  --node-env NODE:NAME=VALUE
      an environment variable of one node; may be repeated
  --node-flag NODE:--FLAG=VALUE
      a flag of one node's `serve`, after all others; may be repeated
  --node-delay NODE:SECONDS
      starts a node later than the others; may be repeated
  --print-nodes json
      once all nodes run, one line of JSON on stdout: pids, namespaces, links, addresses; log
      lines then go to stderr
  -h, --help
      this text

All other flags go to every node's `capstan serve`. --tp-size is the number of ranks of all
nodes together, a multiple of --nodes (default: one on each node). --enable-metrics is on
unless --enable-metrics=false is given. --nnodes, --node-rank and --dist-init-addr are set by
`up`.

Ctrl-C (or SIGTERM) drains: all nodes get SIGTERM together, running requests finish. The
second one ends them at once. Exit code: 0 after an orderly end, 2 for wrong usage, 1 when the
group could not be started, otherwise that of the node that failed first (128 + n when signal
n killed it).

Examples
  capstan up --nodes 2 --tp 4 --model-path DIR
  capstan up --nodes 2 --no-namespaces --model-path DIR --port 8000
  capstan up --nodes 3 --tp 3 --node-delay 2:10 --node-env 1:GLOO_SOCKET_IFNAME=lo
)";
}

}  // namespace capstan::app
