// Where a process stands in its group, as far as the environment tells: a LeaderWorkerSet or a
// StatefulSet gives every pod the same command line and says in variables which pod it is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/environment.h"
#include "base/result.h"

namespace capstan::app {

/// --nnodes, --node-rank and --dist-init-addr; empty when the flag was not given.
struct NodeFlags {
  std::optional<int64_t> nnodes, node_rank;
  std::optional<std::string> dist_init_addr;
};

struct NodePlace {
  int64_t nnodes = 1;
  int64_t node_rank = 0;
  std::string dist_init_addr;      // may still be empty: the caller checks the flags as a whole
  std::vector<std::string> notes;  // "--nnodes 2 from LWS_GROUP_SIZE", to be logged
};

/// The rendezvous port where LWS_LEADER_ADDRESS gives none; the well-known DeepSeek-R1 manifest has
/// it.
inline constexpr int kDefaultDistPort = 20000;

/// Flags that were given win. Of the others
/// - nnodes is LWS_GROUP_SIZE;
/// - node-rank, with several nodes, is LWS_WORKER_INDEX; or, since LeaderWorkerSet 0.5 does not set
///   it, follows from the pod's name, which is the leader's (the first label of LWS_LEADER_ADDRESS)
///   or the leader's with "-INDEX"; or is POD_INDEX, which manifests of StatefulSets fill;
/// - dist-init-addr, with several nodes, is LWS_LEADER_ADDRESS, port 20000.
/// Variables that are empty count as not set. kInvalidArgument for one that is no number or out of
/// range, and for a pod of a LeaderWorkerSet whose index nothing tells.
Result<NodePlace> place_of_node(const NodeFlags& flags, const Environment& env,
                                const std::string& host);

/// The group's secret: CAPSTAN_GROUP_TOKEN, without the line end that files of secrets have.
std::string group_token(const Environment& env);
/// The interfaces for tensors: GLOO_SOCKET_IFNAME, else NCCL_SOCKET_IFNAME.
std::string socket_interface(const Environment& env);

}  // namespace capstan::app
