#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "server/server.h"

namespace capstan::server {

Result<Listener> Listener::bind(const std::string& host, uint16_t port) {
  const std::string shown = host + ":" + std::to_string(port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (const int rc = getaddrinfo(host.empty() ? nullptr : host.c_str(),
                                 std::to_string(port).c_str(), &hints, &found);
      rc != 0) {
    return invalid_argument("cannot resolve the address to listen on, '" + host +
                                "': " + gai_strerror(rc) +
                                "; use an address of this machine, "
                                "e.g. 127.0.0.1 or 0.0.0.0",
                            "host");
  }
  int error = 0;
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    const int fd = socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                          address->ai_protocol);
    if (fd < 0) {
      error = errno;
      continue;
    }
    const int on = 1, off = 0;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);  // restart at once after an exit
    if (address->ai_family == AF_INET6) {
      setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);  // "::" takes IPv4 as well
    }
    if (::bind(fd, address->ai_addr, address->ai_addrlen) != 0) {
      error = errno;
      close(fd);
      continue;
    }
    sockaddr_storage bound{};
    socklen_t length = sizeof bound;
    getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length);
    const uint16_t actual =
        ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                          : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
    freeaddrinfo(found);
    return Listener(fd, actual);
  }
  freeaddrinfo(found);
  return invalid_argument(
      "cannot listen on " + shown + ": " + std::strerror(error) +
          (error == EADDRINUSE ? "; stop the other program or choose another --port"
                               : "; check --host and --port"),
      error == EADDRNOTAVAIL ? "host" : "port");
}

Listener::~Listener() {
  if (fd_ >= 0) close(fd_);
}

Listener::Listener(Listener&& other) noexcept : fd_(other.release()), port_(other.port_) {}

Listener& Listener::operator=(Listener&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) close(fd_);
    fd_ = other.release();
    port_ = other.port_;
  }
  return *this;
}

int Listener::release() {
  const int fd = fd_;
  fd_ = -1;
  return fd;
}

}  // namespace capstan::server
