#include "app/parallel_options.h"

#include <algorithm>

#include "app/launch_env.h"
#include "comm/address.h"

namespace capstan::app {
namespace {

constexpr int64_t kMostRanks = 4096;

Error refuse(std::string_view flag, const std::string& message) {
  return invalid_argument("--" + std::string(flag) + ": " + message, std::string(flag));
}

Result<NodePlace> place(const FlagValues& f, const Environment& env, const std::string& host) {
  NodeFlags given;
  if (f.given("nnodes")) given.nnodes = f.integer("nnodes");
  if (f.given("node-rank")) given.node_rank = f.integer("node-rank");
  if (f.given("dist-init-addr")) given.dist_init_addr = f.text("dist-init-addr");
  return place_of_node(given, env, host);
}

Status check_nodes(int64_t tp, int64_t pp, const NodePlace& at) {
  if (at.nnodes < 1 || at.nnodes > kMostRanks) {
    return refuse("nnodes", std::to_string(at.nnodes) + " is not in 1 to 4096");
  }
  if ((tp * pp) % at.nnodes != 0) {
    return refuse("tp-size", "tp x pp = " + std::to_string(tp * pp) +
                                 " is not divisible by --nnodes " + std::to_string(at.nnodes) +
                                 ": every node has the same number of ranks");
  }
  if (at.node_rank < 0 || at.node_rank >= at.nnodes) {
    return refuse("node-rank", std::to_string(at.node_rank) + " is outside 0 to " +
                                   std::to_string(at.nnodes - 1) + " (--nnodes " +
                                   std::to_string(at.nnodes) + ")");
  }
  if (at.nnodes == 1) return {};
  if (at.dist_init_addr.empty()) {
    return refuse("nnodes", "several nodes need --dist-init-addr HOST:PORT of rank 0");
  }
  if (const auto parsed = comm::parse_host_port(at.dist_init_addr); !parsed.ok()) {
    return refuse("dist-init-addr", parsed.error().message);
  }
  return {};
}

Status check_replicas(const FlagValues& f, int64_t tp, int64_t dp, int64_t nodes) {
  const bool dp_attention = f.boolean("enable-dp-attention");
  if (nodes > 1 && dp > 1 && !dp_attention) {
    return refuse("dp-size", "replicas over several nodes need --enable-dp-attention");
  }
  if (dp_attention && dp > 1 && tp % dp != 0) {
    return refuse("dp-size", "with --enable-dp-attention, --tp-size " + std::to_string(tp) +
                                 " must be divisible by --dp-size " + std::to_string(dp));
  }
  if (dp > 1 && !dp_attention) {
    return refuse("dp-size", std::to_string(dp) +
                                 ": replicas in one server are not available in this version; add "
                                 "--enable-dp-attention, which divides the ranks of --tp-size in "
                                 "groups, or start several servers behind one address");
  }
  return {};
}

engine::LoadBalance load_balance(const std::string& method) {
  if (method == "total_tokens" || method == "minimum_tokens") return engine::LoadBalance::kTokens;
  if (method == "auto" || method == "total_requests" || method == "shortest_queue") {
    return engine::LoadBalance::kRequests;
  }
  return engine::LoadBalance::kRoundRobin;
}

Result<int> expert_groups(const FlagValues& f, int64_t tp) {
  int64_t ep = *f.integer("ep-size");
  // Older releases had a switch in its place.
  if (f.boolean("enable-ep-moe") && !f.given("ep-size")) ep = tp;
  if (ep < 1) return refuse("ep-size", f.text("ep-size") + " is not at least 1");
  if (tp % ep != 0) {
    return refuse("ep-size", std::to_string(ep) + " does not divide --tp-size " +
                                 std::to_string(tp) +
                                 ": each of the groups that hold different experts has the same "
                                 "number of ranks");
  }
  return static_cast<int>(ep);
}

}  // namespace

Result<ParallelOptions> make_parallel_options(const FlagValues& f, const Environment& env,
                                              const std::string& host,
                                              std::vector<std::string>& notes) {
  const int64_t tp = *f.integer("tp-size"), dp = *f.integer("dp-size"), pp = *f.integer("pp-size");
  for (const std::string_view flag : {"tp-size", "dp-size", "pp-size"}) {
    const int64_t value = *f.integer(flag);
    if (value < 1 || value > kMostRanks) {
      return refuse(flag, f.text(flag) + " is not in 1 to " + std::to_string(kMostRanks));
    }
  }
  CAPSTAN_ASSIGN(NodePlace at, place(f, env, host));
  CAPSTAN_RETURN_IF_ERROR(check_nodes(tp, pp, at));
  CAPSTAN_RETURN_IF_ERROR(check_replicas(f, tp, dp, at.nnodes));
  if (pp > 1) {
    return refuse("pp-size", std::to_string(pp) +
                                 ": pipeline parallelism is not available in this version; use "
                                 "--pp-size 1 and split by --tp-size");
  }
  ParallelOptions o;
  CAPSTAN_ASSIGN(o.expert_groups, expert_groups(f, tp));
  o.ranks = static_cast<int>(tp);
  o.attention_groups = static_cast<int>(dp);
  o.balance = load_balance(f.text("load-balance-method"));
  o.nodes = static_cast<int>(at.nnodes);
  o.node = static_cast<int>(at.node_rank);
  if (o.nodes > 1) {
    o.dist_init_addr = at.dist_init_addr;
    notes.insert(notes.end(), at.notes.begin(), at.notes.end());
  } else if (f.given("dist-init-addr")) {
    notes.emplace_back("--dist-init-addr has no effect: there is one node");
  }
  o.token = group_token(env);
  o.interface = socket_interface(env);
  const std::string transport = f.text("comm-transport");
  if (transport == "shm") o.transport = comm::Transport::kSharedMemory;
  if (transport == "tcp") o.transport = comm::Transport::kTcp;
  if (transport == "ucx") o.transport = comm::Transport::kUcx;
  o.dist_timeout = std::chrono::seconds(f.integer("dist-timeout").value_or(0));
  o.heartbeat_timeout =
      std::chrono::milliseconds(static_cast<int64_t>(*f.number("heartbeat-timeout") * 1000));
  return o;
}

int threads_per_rank(int threads, int usable, int ranks) {
  return std::max(1, (threads > 0 ? threads : usable) / ranks);
}

}  // namespace capstan::app
