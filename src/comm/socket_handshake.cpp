#include "comm/socket_handshake.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace capstan::comm {
namespace {

constexpr uint64_t kMagic = 0x324f4c48'53504143;  // "CAPSHLO2"
constexpr uint32_t kLongestText = 64 << 10;

/// What all nodes must agree on, and where they are.
struct Hello {
  uint64_t magic = kMagic;
  int32_t nodes = 0;
  int32_t node = 0;
  int32_t ranks_per_node = 0;
  int32_t shared_memory = 0;
  int32_t ucx = 0;
  int32_t unused = 0;
  char segment[64] = {};  // name, cut
  char machine[40] = {};  // the kernel's boot id: equal in all containers of one machine
};

Error broke(const NodeLink& link, const char* call, int error) {
  return unavailable(node_name(link) + ": its connection broke (" + call + ": " +
                     std::strerror(error) + ")");
}

bool again(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

Status send_all(const NodeLink& link, const void* data, size_t bytes) {
  const auto* p = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const ssize_t n = send(link.fd, p, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && !again(errno)) return broke(link, "send", errno);
    if (n < 0) {
      pollfd ready = {link.fd, POLLOUT, 0};
      poll(&ready, 1, -1);
      continue;
    }
    p += n;
    bytes -= static_cast<size_t>(n);
  }
  return {};
}

Status receive_all(const NodeLink& link, void* data, size_t bytes) {
  auto* p = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const ssize_t n = recv(link.fd, p, bytes, MSG_DONTWAIT);
    if (n == 0) return unavailable(node_name(link) + ": its connection was closed");
    if (n < 0 && !again(errno)) return broke(link, "recv", errno);
    if (n < 0) {
      pollfd ready = {link.fd, POLLIN, 0};
      poll(&ready, 1, -1);
      continue;
    }
    p += n;
    bytes -= static_cast<size_t>(n);
  }
  return {};
}

std::string shape(const Hello& hello) {
  std::string text = std::to_string(hello.nodes) + " nodes of " +
                     std::to_string(hello.ranks_per_node) + " ranks, " +
                     (hello.shared_memory != 0 ? "shared memory "
                      : hello.ucx != 0         ? "UCX"
                                               : "sockets");
  if (hello.shared_memory != 0) text += std::string(hello.segment);
  return text;
}

}  // namespace

std::string node_name(const NodeLink& link) {
  return "node " + std::to_string(link.node) + " (host " + link.host + ")";
}

Status check_links(const Topology& topology, const std::vector<NodeLink>& links) {
  const auto wrong = [](const std::string& what) {
    return invalid_argument("links of a group: " + what);
  };
  if (topology.nodes < 1 || topology.ranks_per_node < 1 || topology.node < 0 ||
      topology.node >= topology.nodes) {
    return wrong("node " + std::to_string(topology.node) + " of " + std::to_string(topology.nodes) +
                 " with " + std::to_string(topology.ranks_per_node) + " ranks each is no topology");
  }
  std::vector<bool> seen(static_cast<size_t>(topology.nodes));
  for (const NodeLink& link : links) {
    if (link.node < 0 || link.node >= topology.nodes || link.node == topology.node) {
      return wrong("one to node " + std::to_string(link.node) + ", which is none of the others");
    }
    if (seen[static_cast<size_t>(link.node)]) {
      return wrong("two to node " + std::to_string(link.node));
    }
    if (link.fd < 0) return wrong("the one to " + node_name(link) + " has no descriptor");
    seen[static_cast<size_t>(link.node)] = true;
  }
  if (static_cast<int>(links.size()) != topology.nodes - 1) {
    return wrong(std::to_string(links.size()) + " for " + std::to_string(topology.nodes - 1) +
                 " other nodes");
  }
  return {};
}

Result<int> greet(const Topology& topology, const std::vector<NodeLink>& links) {
  Hello mine;
  mine.nodes = topology.nodes;
  mine.node = topology.node;
  mine.ranks_per_node = topology.ranks_per_node;
  mine.ucx = topology.ucx ? 1 : 0;
  mine.shared_memory = topology.shared_memory.empty() ? 0 : 1;
  topology.shared_memory.copy(mine.segment, sizeof(mine.segment) - 1);
  std::ifstream("/proc/sys/kernel/random/boot_id").getline(mine.machine, sizeof(mine.machine));
  for (const NodeLink& link : links) {
    // Not for AF_UNIX, which needs none.
    const int on = 1;
    setsockopt(link.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    CAPSTAN_RETURN_IF_ERROR(send_all(link, &mine, sizeof(mine)));
  }
  int here = 1;
  for (const NodeLink& link : links) {
    Hello theirs;
    CAPSTAN_RETURN_IF_ERROR(receive_all(link, &theirs, sizeof(theirs)));
    if (theirs.magic != kMagic) {
      return unavailable(node_name(link) + " does not speak this version's protocol for tensors");
    }
    if (theirs.node != link.node) {
      return unavailable(node_name(link) + " says that it is node " + std::to_string(theirs.node));
    }
    theirs.segment[sizeof(theirs.segment) - 1] = '\0';
    if (shape(theirs) != shape(mine)) {
      return invalid_argument(node_name(link) + " is set up for " + shape(theirs) +
                              ", this node (" + std::to_string(topology.node) + ") for " +
                              shape(mine));
    }
    const bool same = std::memcmp(theirs.machine, mine.machine, sizeof(mine.machine)) == 0;
    if (!same && mine.shared_memory != 0) {
      return invalid_argument(node_name(link) +
                              " runs on another machine, which shared memory does not reach; use "
                              "--comm-transport tcp");
    }
    here += same ? 1 : 0;
  }
  return here;
}

Status send_text(const NodeLink& link, const std::string& text) {
  const auto length = static_cast<uint32_t>(text.size());
  CAPSTAN_RETURN_IF_ERROR(send_all(link, &length, sizeof(length)));
  return send_all(link, text.data(), text.size());
}

Result<std::string> receive_text(const NodeLink& link) {
  uint32_t length = 0;
  CAPSTAN_RETURN_IF_ERROR(receive_all(link, &length, sizeof(length)));
  if (length > kLongestText) {
    return unavailable(node_name(link) + " sent a text of " + std::to_string(length) + " bytes");
  }
  std::string text(length, '\0');
  CAPSTAN_RETURN_IF_ERROR(receive_all(link, text.data(), length));
  return text;
}

}  // namespace capstan::comm
