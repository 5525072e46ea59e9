// How the nodes of a group find each other: from --dist-init-addr to one authenticated control
// connection between node 0 and every other node, and then a tensor link between every pair.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/control_acceptor.h"
#include "comm/control_link.h"
#include "comm/group.h"

namespace capstan::comm {

/// Limits of time, with the values of production; tests shorten them.
struct GroupTiming {
  Duration connect{std::chrono::seconds(3)};  // one attempt to connect to one address
  Duration opening{std::chrono::seconds(5)};  // greeting, proof and first message
  Duration backoff{std::chrono::milliseconds(100)};
  Duration backoff_limit{std::chrono::seconds(2)};
  Duration log_interval{std::chrono::seconds(30)};
  /// From the first node that joined to the last, when dist_timeout sets no limit: pods of one
  /// group come up to half an hour apart when images are pulled. Time in which a process was
  /// stopped does not count.
  Duration forming{std::chrono::minutes(30)};
  Duration links{std::chrono::seconds(30)};  // tensor links between all pairs
  /// After a report that a connection broke, the time in which the end of the guilty node itself
  /// shows.
  Duration grace{std::chrono::seconds(1)};
  Duration farewell{std::chrono::seconds(1)};  // to tell everybody of a failure
  Duration release{std::chrono::seconds(5)};   // to tell everybody of the orderly end
};

/// The control connections of a group that is complete.
struct Formed {
  std::string session;             // of this incarnation, random
  std::vector<std::string> hosts;  // by node
  /// Node 0: by node, its own closed. Others: one, to node 0.
  std::vector<ControlLink> links;
  /// Node 0: goes on listening, to tell latecomers that the group is complete.
  Acceptor acceptor;
  /// This node's address on a control connection.
  SocketAddress local;
  SocketAddress leader;  // others: where node 0 was reached
};

/// The facts that are compared: the configured ones and those that the group itself needs.
Facts all_facts(const GroupConfig& config);

/// "tp-size is 8, here it is 16; model is absent, here it is 'r1'": what `theirs` has differently;
/// empty when nothing. `here` introduces the other value ("here it", "node 0 (host a)").
std::string describe_difference(const Facts& theirs, const Facts& ours, const std::string& here);

/// "node 1 (host b)"
std::string describe_node(int node, const std::string& host);

/// Errors: kInvalidArgument (values differ, malformed address, port taken), kUnavailable
/// (dist_timeout or GroupTiming::forming passed), kAborted (`stop`).
Result<Formed> form_as_leader(const GroupConfig& config, const GroupTiming& timing,
                              const Stop& stop);
Result<Formed> form_as_member(const GroupConfig& config, const GroupTiming& timing,
                              const Stop& stop);

struct Links {
  std::vector<NodeLink> links;
  std::string shared_memory;  // see Topology, as the others
  bool ucx = false;
  std::string interface;
};

/// Group::exchange() that also gives up when join() is cancelled.
using Exchange = std::function<Result<std::vector<std::string>>(const std::string&, std::string)>;

/// Opens the tensor links of a formed group; every node calls it. `formed` gives session, hosts and
/// addresses. `stop` also says that the group has ended.
Result<Links> open_links(const GroupConfig& config, const GroupTiming& timing, const Formed& formed,
                         const Exchange& exchange, const Stop& stop);

}  // namespace capstan::comm
