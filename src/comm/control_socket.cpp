#include "comm/control_socket.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <system_error>

namespace capstan::comm {
namespace {

constexpr auto kStopInterval = std::chrono::milliseconds(50);
constexpr int kBacklog = 128;

void set_option(int fd, int level, int name, int value) {
  // Each of these is a preference; the connection works without it.
  (void)setsockopt(fd, level, name, &value, sizeof value);
}

}  // namespace

void Fd::reset(int fd) {
  if (fd_ >= 0) close(fd_);
  fd_ = fd;
}

std::string errno_text(int error) { return std::generic_category().message(error); }

std::string seconds_text(Duration duration) {
  const double seconds = std::chrono::duration<double>(duration).count();
  char out[32];
  if (seconds < 0.95) {
    std::snprintf(out, sizeof out, "%.0f ms", seconds * 1000);
  } else {
    std::snprintf(out, sizeof out, "%.1f s", seconds);
  }
  return out;
}

Status wait_for(int fd, short events, TimePoint deadline, const Stop& stop) {
  while (true) {
    if (stop()) return Error{ErrorCode::kAborted, "cancelled"};
    const auto left = deadline - Clock::now();
    if (left <= Duration::zero()) return unavailable("no answer in time");
    const auto slice = std::min<Duration>(left, kStopInterval);
    pollfd item{fd, events, 0};
    const int ready = poll(
        &item, 1,
        static_cast<int>(std::chrono::duration_cast<std::chrono::milliseconds>(slice).count()) + 1);
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return unavailable(errno_text(errno));
  }
}

Result<Fd> connect_to(const SocketAddress& to, const SocketAddress* from, TimePoint deadline,
                      const Stop& stop) {
  Fd fd(socket(to.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return unavailable(errno_text(errno));
  set_option(fd.get(), IPPROTO_TCP, TCP_NODELAY, 1);
  if (from != nullptr && from->family() == to.family()) {
    SocketAddress local = *from;
    local.set_port(0);
    if (bind(fd.get(), local.raw(), local.length) != 0) {
      return unavailable("cannot use the local address " + local.host() + ": " + errno_text(errno));
    }
  }
  if (connect(fd.get(), to.raw(), to.length) != 0) {
    if (errno != EINPROGRESS) return unavailable(errno_text(errno));
    if (const Status ready = wait_for(fd.get(), POLLOUT, deadline, stop); !ready.ok()) {
      return ready.error();
    }
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) error = errno;
    if (error != 0) return unavailable(errno_text(error));
  }
  // TCP connects to itself when the kernel happens to pick the target's port on the same host.
  const SocketAddress self = local_address(fd.get());
  if (self.port() == to.port() && self.host() == to.host()) {
    return unavailable(errno_text(ECONNREFUSED));
  }
  return fd;
}

Result<Fd> listen_on(const SocketAddress* at, uint16_t port) {
  const auto open = [](const SocketAddress& address) -> std::pair<Fd, int> {
    Fd fd(socket(address.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd.valid()) return {Fd(), errno};
    set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
    if (address.family() == AF_INET6) set_option(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
    if (bind(fd.get(), address.raw(), address.length) != 0) return {Fd(), errno};
    if (listen(fd.get(), kBacklog) != 0) return {Fd(), errno};
    return {std::move(fd), 0};
  };
  std::pair<Fd, int> result;
  if (at != nullptr) {
    SocketAddress address = *at;
    address.set_port(port);
    result = open(address);
  } else {
    result = open(*numeric_address("::", port));
    // A kernel without IPv6; a taken port is taken for IPv4 as well.
    if (result.second != 0 && result.second != EADDRINUSE) {
      result = open(*numeric_address("0.0.0.0", port));
    }
  }
  if (!result.first.valid()) {
    const std::string where = at != nullptr ? at->host() + " port " : "port ";
    const std::string what =
        "cannot listen on " + where + std::to_string(port) + ": " + errno_text(result.second);
    return result.second == EADDRINUSE ? Error{ErrorCode::kInvalidArgument, what}
                                       : unavailable(what);
  }
  return std::move(result.first);
}

Status read_all(int fd, void* data, size_t size, TimePoint deadline, const Stop& stop) {
  char* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t n = recv(fd, at, size, MSG_DONTWAIT);
    if (n > 0) {
      at += n;
      size -= static_cast<size_t>(n);
    } else if (n == 0) {
      return unavailable("the other side closed the connection");
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      CAPSTAN_RETURN_IF_ERROR(wait_for(fd, POLLIN, deadline, stop));
    } else if (errno != EINTR) {
      return unavailable(errno_text(errno));
    }
  }
  return {};
}

Status write_all(int fd, const void* data, size_t size, TimePoint deadline, const Stop& stop) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = send(fd, at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0) {
      at += n;
      size -= static_cast<size_t>(n);
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      CAPSTAN_RETURN_IF_ERROR(wait_for(fd, POLLOUT, deadline, stop));
    } else if (errno != EINTR) {
      return unavailable(errno_text(errno));
    }
  }
  return {};
}

}  // namespace capstan::comm
