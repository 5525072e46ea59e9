// Hosts that are not there: one network namespace per node, joined by veth pairs and a bridge.
//
// The bridge lives in a namespace of its own, so that the machine's firewall and bridge settings
// do not matter; one more veth pair joins it to the machine. A network has a slot, 0 to 255: names
// are capstan-SLOT-*, addresses 198.18.SLOT.0/24 (RFC 2544, networks under test), .1 this machine,
// .2 the first node. A lock on a file of /run/capstan, held as long as the process lives, says that
// a slot is in use; what is found under a slot nobody holds is left over from a process that was
// killed, and is removed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace capstan::app {

struct UpPlace {
  std::string name;       // of the namespace, and the node's host name; empty: none
  std::string path;       // file of the namespace
  std::string address;    // IPv4
  std::string interface;  // the node's own end
  std::string link;       // the other end, in the bridge's namespace
};

class UpNetwork {
 public:
  /// Makes the network and removes what others left behind. kUnavailable when this process may not
  /// or `ip` is missing: the message says so.
  static Result<std::unique_ptr<UpNetwork>> create(int nodes);
  ~UpNetwork();  // takes it down
  UpNetwork(const UpNetwork&) = delete;
  UpNetwork& operator=(const UpNetwork&) = delete;

  const UpPlace& place(int node) const { return places_[static_cast<size_t>(node)]; }
  const std::string& bridge_namespace() const { return bridge_namespace_; }
  const std::string& bridge() const { return bridge_; }
  const std::string& host_interface() const { return host_interface_; }
  const std::string& host_address() const { return host_address_; }
  /// Names of namespaces that were left over and are gone now.
  const std::vector<std::string>& removed() const { return removed_; }

  /// A stream socket that lives in the node's namespace; -1 when it can not be had. Called from one
  /// thread, which is in the machine's own namespace before and after.
  int stream_socket(int node) const;

 private:
  UpNetwork() = default;
  Status build(int nodes, int slot);

  int lock_ = -1;
  std::vector<UpPlace> places_;
  std::string bridge_namespace_, bridge_ = "br0", host_interface_, host_address_;
  std::vector<std::string> removed_;
};

/// Names below `folder` that belong to the slot, sorted; and whether an IPv4 network 198.18.SLOT.0
/// is reachable by a route of the machine's (text of /proc/net/route) other than by default.
std::vector<std::string> namespaces_of_slot(const std::string& folder, int slot);
bool slot_is_routed(const std::string& routes, int slot);

}  // namespace capstan::app
