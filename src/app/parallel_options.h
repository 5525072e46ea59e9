// How a server is spread over ranks and nodes, from flags and environment.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "app/environment.h"
#include "app/flags.h"
#include "base/result.h"
#include "comm/group.h"
#include "engine/dp_engine.h"

namespace capstan::app {

struct ParallelOptions {
  int ranks = 1;             // --tp-size: over all nodes
  int expert_groups = 1;     // --ep-size
  int attention_groups = 1;  // --dp-size with --enable-dp-attention
  engine::LoadBalance balance = engine::LoadBalance::kRequests;  // among them
  int nodes = 1;
  int node = 0;
  std::string dist_init_addr;
  std::string token;      // CAPSTAN_GROUP_TOKEN
  std::string interface;  // GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME
  comm::Transport transport = comm::Transport::kAuto;
  std::chrono::seconds dist_timeout{0};
  std::chrono::milliseconds heartbeat_timeout{15000};

  int ranks_per_node() const { return ranks / nodes; }
  int first_rank() const { return node * ranks_per_node(); }
  bool split() const { return ranks > 1; }
  bool leader() const { return node == 0; }
};

/// The contradictions of several nodes and ranks, each with the flag and the value; `notes` get
/// what the environment filled in. `host` is this machine's name.
Result<ParallelOptions> make_parallel_options(const FlagValues& flags, const Environment& env,
                                              const std::string& host,
                                              std::vector<std::string>& notes);

/// Compute threads of each of this node's ranks: its share of `threads` (0: of the usable CPUs), at
/// least one.
int threads_per_rank(int threads, int usable, int ranks);

}  // namespace capstan::app
