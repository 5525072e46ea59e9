// The processes of one server: who belongs to it, whether all live, and how it ends.
//
// Node 0 listens at --dist-init-addr; the others connect to it, from minutes before until it
// answers. Every connection is authenticated with the group's secret. The control connections
// (node 0 to each other node) carry heartbeats, small exchanges and the end of the group; links for
// tensors (comm/communicator.h) are opened between all pairs of nodes at the end of join().
//
// Threads: one per process watches all control connections; callbacks come from it. The other
// calls may come from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "comm/communicator.h"

namespace capstan::comm {

/// How tensors go between nodes. kAuto: shared memory where all nodes see the same, else TCP.
enum class Transport : uint8_t { kAuto, kSharedMemory, kTcp, kUcx };

struct GroupConfig {
  int nodes = 1;
  int node = 0;
  int ranks_per_node = 1;
  std::string dist_init_addr;  // HOST:PORT, [v6]:PORT
  /// Shared secret; empty: derived from dist_init_addr, which keeps out only strays.
  std::string token;
  /// Interface names or addresses that data links bind to (GLOO_SOCKET_IFNAME,
  /// NCCL_SOCKET_IFNAME, with its ^ and = prefixes); empty: the one that reaches node 0.
  std::string interface;
  Transport transport = Transport::kAuto;
  /// Facts that must be equal on all nodes (name, value): version, model, tp size, context length
  /// ... A node that differs is refused; both sides' errors print the differing values.
  std::vector<std::pair<std::string, std::string>> facts;
  /// 0: no limit before the first successful handshake.
  std::chrono::seconds dist_timeout{0};
  std::chrono::milliseconds heartbeat_interval{500};
  std::chrono::milliseconds heartbeat_timeout{15000};
};

/// Why and where the group ended; the same on every node.
struct GroupEnd {
  bool orderly = false;  // release()
  int node = -1;         // the culprit
  int rank = -1;         // its first rank, or the rank that failed
  std::string host;
  uint64_t step = 0;  // the last step that the culprit is known to have finished
  std::string what;   // "its connection broke", "no heartbeat for 15.0 s", its own error ...

  /// "rank 8 (node 1, host b) failed at step 41: its connection broke"
  std::string describe() const;
};

/// What is known of another node.
struct NodeState {
  int node = 0;
  std::string host;
  bool joined = false;
  double seconds_since_heartbeat = 0;
  uint64_t step = 0;
  std::string phase;  // "loading", "ready", ...
};

/// Destroying a group that has not ended ends it for all: "it left the group".
class Group {
 public:
  /// Blocks until all nodes have joined. `cancelled` is asked at least every 100 ms; then kAborted.
  /// kInvalidArgument for values that differ (fatal on both sides), kUnavailable after
  /// dist_timeout.
  static Result<std::unique_ptr<Group>> join(const GroupConfig& config,
                                             const std::function<bool()>& cancelled);
  virtual ~Group() = default;

  virtual const GroupConfig& config() const = 0;
  /// The data links made by join(), to be handed to make_group() once.
  virtual Topology topology() const = 0;
  virtual std::vector<NodeLink> take_links() = 0;

  /// Every node gives a text (up to 1 MiB) under the same name and gets all of them, by node. Waits
  /// for the slowest, as long as the group lives. One exchange at a time per process. kUnavailable
  /// when the group has ended; kInternal when the nodes' exchanges have different names, which
  /// leaves the group as it is.
  virtual Result<std::vector<std::string>> exchange(const std::string& name, std::string mine) = 0;

  /// Told to the others with the next heartbeat. A member that wants node 0 to drain says so with
  /// its phase.
  virtual void set_step(uint64_t step) = 0;
  virtual void set_phase(std::string phase) = 0;
  virtual std::vector<NodeState> states() const = 0;  // all nodes, own included

  /// Called once, when the group ends, orderly or not; at once if it has ended already. It must not
  /// destroy the group, and is not called any more once the destructor has begun.
  virtual void on_end(std::function<void(const GroupEnd&)> callback) = 0;
  /// This node (its rank `rank`) can not go on: everybody ends, naming it. Returns at once; the
  /// verdict comes with on_end. The first report that node 0 hears counts.
  ///
  /// kUnavailable, what collectives return when a connection broke, is taken for a symptom: for up
  /// to a second the node that is really dead can show itself, and is named then.
  virtual void fail(int rank, const Error& why) = 0;
  /// Node 0: the group's work is done; the others' on_end gets an orderly end. Waits until they
  /// confirmed it, at most 5 s. On other nodes it does nothing.
  virtual void release() = 0;
  /// The end, if it came.
  virtual bool ended(GroupEnd* end) const = 0;
};

}  // namespace capstan::comm
