// Addresses of the group: HOST:PORT, the machine's interfaces, and which one carries tensors.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace capstan::comm {

struct HostPort {
  std::string host;  // a name or an address, without brackets
  uint16_t port = 0;

  std::string text() const;
};

/// "HOST:PORT", "[v6]:PORT". kInvalidArgument with the value and the form that is meant.
Result<HostPort> parse_host_port(std::string_view text);

/// An IP address with a port, as the kernel takes it.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  const sockaddr* raw() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* raw() { return reinterpret_cast<sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
  uint16_t port() const;
  void set_port(uint16_t port);
  std::string host() const;  // "10.0.0.1", "fe80::1%eth0"; v4-mapped as v4
  std::string text() const;  // "10.0.0.1:5000", "[::1]:5000"
};

/// From a numeric address; no name lookup.
Result<SocketAddress> numeric_address(const std::string& host, uint16_t port);
SocketAddress local_address(int fd);
SocketAddress peer_address(int fd);

struct Interface {
  std::string name;
  SocketAddress address;
  bool loopback = false;
  bool link_local = false;
};

/// All addresses of interfaces that are up.
std::vector<Interface> list_interfaces();

/// The interface meant by `spec`, which is a comma list of
/// - an IP address of this machine, or
/// - name prefixes ("eth" means eth0 and eth1), exact after "=" ("=eth0"), or
/// - after "^", prefixes of those that are not meant ("^docker,lo"; "^=docker0" for exact names).
/// Of several, the first in the order of `spec`, then of the machine; addresses of `family`
/// (AF_INET, AF_INET6) before others. kInvalidArgument names those that exist.
Result<Interface> select_interface(const std::string& spec, const std::vector<Interface>& all,
                                   int family);

/// This machine's name.
std::string host_name();

}  // namespace capstan::comm
