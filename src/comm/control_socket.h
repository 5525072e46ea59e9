// Sockets of the control plane: descriptors, waiting, connecting, listening.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>

#include "base/result.h"
#include "comm/address.h"

namespace capstan::comm {

// The monotonic clock: setting the wall clock moves no deadline.
using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;
using Duration = Clock::duration;
/// Asked at least every 50 ms while something waits; true gives up with kAborted.
using Stop = std::function<bool()>;

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~Fd() { reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

std::string errno_text(int error);
/// "3.5 s", "250 ms".
std::string seconds_text(Duration duration);

/// Waits until `fd` has one of `events` (POLLIN, POLLOUT): kUnavailable after the deadline.
Status wait_for(int fd, short events, TimePoint deadline, const Stop& stop);

/// A non-blocking, connected socket without Nagle's delay. `from`: the local address to use, with
/// port 0, or null.
Result<Fd> connect_to(const SocketAddress& to, const SocketAddress* from, TimePoint deadline,
                      const Stop& stop);

/// A non-blocking listening socket that a restarted process can bind again at once. `at` null: all
/// addresses of the machine, IPv4 and IPv6, at `port`.
Result<Fd> listen_on(const SocketAddress* at, uint16_t port);

/// Reads or writes all of it, on a non-blocking socket.
Status read_all(int fd, void* data, size_t size, TimePoint deadline, const Stop& stop);
Status write_all(int fd, const void* data, size_t size, TimePoint deadline, const Stop& stop);

}  // namespace capstan::comm
