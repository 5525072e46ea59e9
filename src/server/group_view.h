// The nodes of a split server, as health checks and metrics see them.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace capstan::server {

// What a node tells of itself with its heartbeats.
inline constexpr char kPhaseReady[] = "ready";
inline constexpr char kPhaseDraining[] = "draining";

struct NodeView {
  int node = 0;
  std::string host;
  double heartbeat_age = 0;  // seconds; 0 for the own node
  uint64_t step = 0;         // the last one it finished, as last heard
  std::string phase;         // "loading", "ready", "draining" ...
  bool joined = false;
};

struct GroupView {
  int own_node = 0;
  int ranks_per_node = 1;
  std::vector<NodeView> nodes;
  double heartbeat_timeout = 15;        // seconds after which a silent node ends the group
  std::vector<double> compute_seconds;  // per rank and step, waiting left out; may be empty
  std::string end;                      // why the group ended; empty: it lives

  const NodeView* own() const;
  double oldest_heartbeat() const;
  /// Why the group cannot serve now; empty: it can. A node that was not heard for a third of the
  /// timeout makes it unready long before it ends it.
  std::string unready() const;
};

/// Called from IO threads.
using GroupProbe = std::function<GroupView()>;

}  // namespace capstan::server
