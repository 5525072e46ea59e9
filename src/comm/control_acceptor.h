// Connections that come in at a listening socket, up to the point where they have proved that they
// belong to the group and said what they want. Strangers, slow and silent ones cost a descriptor
// for a few seconds and nobody's time.
#pragma once

#include <poll.h>

#include <list>
#include <string>
#include <vector>

#include "comm/control_link.h"
#include "comm/control_opening.h"
#include "comm/control_throttle.h"

namespace capstan::comm {

/// An authenticated connection and its first message.
struct Arrival {
  ControlLink link;
  SocketAddress peer;
  Frame first;
  /// It speaks another protocol (`hello` says which): `first` is empty, and nothing that it says
  /// would be understood.
  bool other_protocol = false;
  Hello hello;
};

class Acceptor {
 public:
  struct Limits {
    Duration opening{std::chrono::seconds(5)};  // from accept to the first message
    Duration log_interval{std::chrono::seconds(30)};
    size_t pending = 64;           // then the oldest that has proved nothing gives way
    size_t first_body = 64 << 10;  // bytes of the first message
  };

  Acceptor() : refusals_(Duration::zero()) {}
  Acceptor(Fd listener, Purpose purpose, std::string key, const Limits& limits);

  bool listening() const { return listener_.valid(); }
  uint16_t port() const { return local_address(listener_.get()).port(); }

  /// Adds what poll() shall watch.
  void collect(std::vector<pollfd>& fds) const;
  /// Goes on with everything; returns those that have arrived.
  std::vector<Arrival> advance(TimePoint now);
  /// Sends what is queued on `link`, then closes it, without waiting for a peer that does not read.
  void dismiss(ControlLink link, TimePoint now);
  /// advance() is due then at the latest.
  TimePoint next(TimePoint now) const;
  /// Something that was dismissed has not been sent yet.
  bool busy() const { return !leaving_.empty(); }

 private:
  struct Pending {
    Fd fd;  // until the opening is over, then `link` has it
    SocketAddress peer;
    TimePoint deadline;
    ServerOpening opening;
    ControlLink link;
    bool opened = false;
  };
  struct Leaving {
    ControlLink link;
    TimePoint deadline;
  };

  void accept_new(TimePoint now);
  void refuse(const SocketAddress& peer, const std::string& why, TimePoint now);

  Fd listener_;
  Purpose purpose_ = Purpose::kControl;
  std::string key_;
  Limits limits_;
  std::list<Pending> pending_;
  std::list<Leaving> leaving_;
  TimePoint paused_until_{};  // out of descriptors
  LogThrottle refusals_;
};

}  // namespace capstan::comm
