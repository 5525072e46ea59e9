#include "comm/address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace capstan::comm {
namespace {

Error malformed(std::string_view text, const std::string& why) {
  return invalid_argument("'" + std::string(text) + "' is no address of the group: " + why +
                              "; give HOST:PORT, such as node-a:5000, 10.0.0.1:5000 or [::1]:5000",
                          "dist-init-addr");
}

std::vector<std::string> split(std::string_view list) {
  std::vector<std::string> parts;
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string part(list.substr(0, comma));
    std::erase(part, ' ');
    if (!part.empty()) parts.push_back(std::move(part));
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return parts;
}

bool name_matches(const std::string& name, std::string_view pattern, bool all_exact) {
  bool exact = all_exact;
  if (pattern.starts_with('=')) {
    exact = true;
    pattern.remove_prefix(1);
  }
  return exact ? name == pattern : name.starts_with(pattern);
}

/// An IPv4 connection of a socket that listens for IPv4 and IPv6 shows as ::ffff:10.0.0.1.
SocketAddress unmapped(const SocketAddress& address) {
  if (address.length == 0 || address.family() != AF_INET6) return address;
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(&address.storage);
  if (!IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) return address;
  SocketAddress out;
  auto* v4 = reinterpret_cast<sockaddr_in*>(&out.storage);
  v4->sin_family = AF_INET;
  v4->sin_port = v6->sin6_port;
  std::memcpy(&v4->sin_addr, v6->sin6_addr.s6_addr + 12, 4);
  out.length = sizeof(sockaddr_in);
  return out;
}

std::string existing(const std::vector<Interface>& all) {
  std::string out;
  for (const Interface& i : all) {
    out += (out.empty() ? "" : ", ") + i.name + " (" + i.address.host() + ")";
  }
  return out.empty() ? "none" : out;
}

}  // namespace

std::string HostPort::text() const {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

Result<HostPort> parse_host_port(std::string_view text) {
  HostPort out;
  std::string_view port;
  if (text.starts_with('[')) {
    const size_t close = text.find(']');
    if (close == std::string_view::npos) return malformed(text, "the bracket is not closed");
    out.host = text.substr(1, close - 1);
    port = text.substr(close + 1);
    if (!port.starts_with(':')) return malformed(text, "the port is missing");
    port.remove_prefix(1);
  } else {
    const size_t colon = text.rfind(':');
    if (colon == std::string_view::npos) return malformed(text, "the port is missing");
    out.host = text.substr(0, colon);
    port = text.substr(colon + 1);
    if (out.host.find(':') != std::string::npos) {
      return malformed(text, "an IPv6 address stands in brackets");
    }
  }
  if (out.host.empty()) return malformed(text, "the host is missing");
  if (out.host.find_first_of(" \t/$()") != std::string::npos) {
    return malformed(text, "'" + out.host + "' is no host name");
  }
  int number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc() || end != port.data() + port.size() || number < 1 || number > 65535) {
    return malformed(text, "'" + std::string(port) + "' is no port (1 to 65535)");
  }
  out.port = static_cast<uint16_t>(number);
  return out;
}

uint16_t SocketAddress::port() const {
  if (family() == AF_INET) return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
  return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port);
}

void SocketAddress::set_port(uint16_t port) {
  if (family() == AF_INET) {
    reinterpret_cast<sockaddr_in*>(&storage)->sin_port = htons(port);
  } else {
    reinterpret_cast<sockaddr_in6*>(&storage)->sin6_port = htons(port);
  }
}

std::string SocketAddress::host() const {
  if (length == 0) return "?";
  char out[NI_MAXHOST] = "?";
  const SocketAddress plain = unmapped(*this);
  getnameinfo(plain.raw(), plain.length, out, sizeof out, nullptr, 0, NI_NUMERICHOST);
  return out;
}

std::string SocketAddress::text() const { return HostPort{host(), port()}.text(); }

Result<SocketAddress> numeric_address(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0 || found == nullptr) {
    return invalid_argument("'" + host + "' is no IP address");
  }
  SocketAddress out;
  std::memcpy(&out.storage, found->ai_addr, found->ai_addrlen);
  out.length = found->ai_addrlen;
  freeaddrinfo(found);
  out.set_port(port);
  return out;
}

SocketAddress local_address(int fd) {
  SocketAddress out;
  out.length = sizeof out.storage;
  if (getsockname(fd, out.raw(), &out.length) != 0) out.length = 0;
  return unmapped(out);
}

SocketAddress peer_address(int fd) {
  SocketAddress out;
  out.length = sizeof out.storage;
  if (getpeername(fd, out.raw(), &out.length) != 0) out.length = 0;
  return unmapped(out);
}

std::vector<Interface> list_interfaces() {
  std::vector<Interface> out;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return out;
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr || (i->ifa_flags & IFF_UP) == 0) continue;
    const int family = i->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    Interface item;
    item.name = i->ifa_name;
    item.loopback = (i->ifa_flags & IFF_LOOPBACK) != 0;
    item.address.length = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    std::memcpy(&item.address.storage, i->ifa_addr, item.address.length);
    if (family == AF_INET6) {
      const auto* v6 = reinterpret_cast<const sockaddr_in6*>(i->ifa_addr);
      item.link_local = IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr);
    }
    out.push_back(std::move(item));
  }
  freeifaddrs(list);
  return out;
}

Result<Interface> select_interface(const std::string& spec, const std::vector<Interface>& all,
                                   int family) {
  const bool exclude = spec.starts_with('^');
  // "^=a,b" and "=a,b" hold for the whole list, as in NCCL.
  const bool exact = std::string_view(spec).substr(exclude ? 1 : 0).starts_with('=');
  const std::vector<std::string> patterns = split(std::string_view(spec).substr(exclude ? 1 : 0));
  if (patterns.empty()) {
    return invalid_argument("'" + spec + "' names no interface; this machine has " + existing(all));
  }
  std::vector<const Interface*> chosen;
  if (exclude) {
    for (const Interface& i : all) {
      if (i.loopback) continue;  // not excluded by name, but never meant between hosts
      const bool out = std::any_of(patterns.begin(), patterns.end(), [&](const std::string& p) {
        return name_matches(i.name, p, exact);
      });
      if (!out) chosen.push_back(&i);
    }
  } else {
    for (const std::string& pattern : patterns) {
      for (const Interface& i : all) {
        if (i.address.host() == pattern || name_matches(i.name, pattern, exact)) {
          chosen.push_back(&i);
        }
      }
    }
  }
  const Interface* best = nullptr;
  for (const Interface* i : chosen) {
    const auto rank = [&](const Interface* c) {
      return (c->link_local ? 2 : 0) + (c->address.family() == family ? 0 : 1);
    };
    if (best == nullptr || rank(i) < rank(best)) best = i;
  }
  if (best == nullptr) {
    return invalid_argument("no interface of this machine fits '" + spec + "'; it has " +
                            existing(all) +
                            ". Set GLOO_SOCKET_IFNAME to one of them, or leave it unset");
  }
  return *best;
}

std::string host_name() {
  char name[256] = "";
  if (gethostname(name, sizeof name - 1) != 0 || name[0] == '\0') return "unknown";
  return name;
}

}  // namespace capstan::comm
