#include "app/launch_env.h"

#include <charconv>

#include "comm/address.h"

namespace capstan::app {
namespace {

std::string value_of(const Environment& env, const char* name) {
  std::string text = env(name).value_or("");
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) {
    text.pop_back();
  }
  return text;
}

Result<int64_t> number(const std::string& text, const std::string& source, int64_t least,
                       int64_t most) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
    return invalid_argument(source + " is '" + text + "', which is no number from " +
                            std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

/// The index in "LEADER-INDEX", the name of a worker's pod; 0 for the leader's own; empty: neither.
std::string index_in_pod_name(const std::string& host, const std::string& leader_address) {
  const std::string leader = leader_address.substr(0, leader_address.find_first_of(".:"));
  const std::string pod = host.substr(0, host.find('.'));
  if (leader.empty() || !pod.starts_with(leader)) return "";
  if (pod.size() == leader.size()) return "0";
  return pod[leader.size()] == '-' ? pod.substr(leader.size() + 1) : "";
}

}  // namespace

Result<NodePlace> place_of_node(const NodeFlags& flags, const Environment& env,
                                const std::string& host) {
  constexpr int64_t kMostNodes = 1 << 20;
  NodePlace place;
  const std::string leader = value_of(env, "LWS_LEADER_ADDRESS");
  if (flags.nnodes) {
    place.nnodes = *flags.nnodes;
  } else if (const std::string size = value_of(env, "LWS_GROUP_SIZE"); !size.empty()) {
    CAPSTAN_ASSIGN(place.nnodes, number(size, "LWS_GROUP_SIZE", 1, kMostNodes));
    place.notes.push_back("--nnodes " + size + " from LWS_GROUP_SIZE");
  }
  const bool several = place.nnodes > 1;

  if (flags.node_rank) {
    place.node_rank = *flags.node_rank;
  } else if (several) {
    std::string source = "LWS_WORKER_INDEX";
    std::string index = value_of(env, "LWS_WORKER_INDEX");
    if (index.empty() && !leader.empty()) {
      source = "the index in this pod's name, " + host + ",";
      index = index_in_pod_name(host, leader);
    }
    if (index.empty()) {
      source = "POD_INDEX";
      index = value_of(env, "POD_INDEX");
    }
    if (!index.empty()) {
      CAPSTAN_ASSIGN(place.node_rank, number(index, source, 0, place.nnodes - 1));
      if (source.ends_with(',')) source = "this pod's name, " + host;
      place.notes.push_back("--node-rank " + index + " from " + source);
    } else if (!leader.empty()) {
      return invalid_argument("LWS_LEADER_ADDRESS is set (" + leader +
                                  "), but neither LWS_WORKER_INDEX nor this pod's name (" + host +
                                  ") says which node this is; set LWS_WORKER_INDEX from the label "
                                  "leaderworkerset.sigs.k8s.io/worker-index, or give --node-rank",
                              "node-rank");
    }
  }

  if (flags.dist_init_addr) {
    place.dist_init_addr = *flags.dist_init_addr;
  } else if (several && !leader.empty()) {
    place.dist_init_addr = comm::parse_host_port(leader).ok()
                               ? leader
                               : comm::HostPort{leader, kDefaultDistPort}.text();
    place.notes.push_back("--dist-init-addr " + place.dist_init_addr + " from LWS_LEADER_ADDRESS");
  }
  return place;
}

std::string group_token(const Environment& env) { return value_of(env, "CAPSTAN_GROUP_TOKEN"); }

std::string socket_interface(const Environment& env) {
  std::string name = value_of(env, "GLOO_SOCKET_IFNAME");
  return name.empty() ? value_of(env, "NCCL_SOCKET_IFNAME") : name;
}

}  // namespace capstan::app
