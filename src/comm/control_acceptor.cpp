#include "comm/control_acceptor.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"

namespace capstan::comm {
namespace {

constexpr auto kPause = std::chrono::milliseconds(100);
constexpr auto kLeave = std::chrono::seconds(1);
constexpr int kAcceptsPerCall = 32;

}  // namespace

Acceptor::Acceptor(Fd listener, Purpose purpose, std::string key, const Limits& limits)
    : listener_(std::move(listener)),
      purpose_(purpose),
      key_(std::move(key)),
      limits_(limits),
      refusals_(limits.log_interval) {}

void Acceptor::collect(std::vector<pollfd>& fds) const {
  if (listener_.valid() && Clock::now() >= paused_until_) {
    fds.push_back({listener_.get(), POLLIN, 0});
  }
  for (const Pending& p : pending_) {
    fds.push_back({p.opened ? p.link.fd() : p.fd.get(), POLLIN, 0});
  }
  for (const Leaving& l : leaving_) fds.push_back({l.link.fd(), l.link.events(), 0});
}

TimePoint Acceptor::next(TimePoint now) const {
  TimePoint at = now + std::chrono::hours(1);
  if (paused_until_ > now) at = paused_until_;
  for (const Pending& p : pending_) at = std::min(at, p.deadline);
  for (const Leaving& l : leaving_) at = std::min(at, l.deadline);
  return at;
}

void Acceptor::refuse(const SocketAddress& peer, const std::string& why, TimePoint now) {
  if (!refusals_.due(now)) return;
  const std::string more =
      refusals_.suppressed() > 0
          ? " (and " + std::to_string(refusals_.suppressed()) + " others since the last such line)"
          : "";
  LOG_WARN("refused a connection from {}: {}{}", peer.text(), why, more);
}

void Acceptor::accept_new(TimePoint now) {
  if (!listener_.valid() || now < paused_until_) return;
  for (int i = 0; i < kAcceptsPerCall; ++i) {
    SocketAddress peer;
    peer.length = sizeof peer.storage;
    Fd fd(accept4(listener_.get(), peer.raw(), &peer.length, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd.valid()) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        // The listener stays readable; without a pause this would spin.
        paused_until_ = now + kPause;
        if (refusals_.due(now)) {
          LOG_WARN("cannot accept connections of the group: {}", errno_text(errno));
        }
      }
      return;
    }
    if (pending_.size() >= limits_.pending) {
      refuse(pending_.front().peer, "too many unfinished openings", now);
      pending_.pop_front();
    }
    const int on = 1;
    (void)setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    const int raw = fd.get();
    pending_.push_back({std::move(fd), peer, now + limits_.opening,
                        ServerOpening(raw, purpose_, key_), ControlLink(), false});
  }
}

std::vector<Arrival> Acceptor::advance(TimePoint now) {
  accept_new(now);
  std::vector<Arrival> out;
  for (auto at = pending_.begin(); at != pending_.end();) {
    Pending& p = *at;
    bool over = false;
    if (!p.opened) {
      const ServerOpening::State state = p.opening.advance();
      if (state == ServerOpening::State::kRefused) {
        refuse(p.peer, p.opening.why(), now);
        over = true;
      } else if (state == ServerOpening::State::kOpen) {
        p.link = ControlLink(std::move(p.fd), limits_.first_body);
        p.opened = true;
        if (p.opening.other_protocol()) {
          out.push_back({std::move(p.link), p.peer, Frame(), true, p.opening.client()});
          over = true;
        }
      }
    }
    if (p.opened && !over) {
      std::vector<Frame> frames;
      p.link.receive(frames);
      if (frames.size() > 1) {
        refuse(p.peer, "it did not wait for an answer", now);
        over = true;
      } else if (frames.size() == 1) {
        out.push_back(
            {std::move(p.link), p.peer, std::move(frames.front()), false, p.opening.client()});
        over = true;
      } else if (!p.link.open()) {
        refuse(p.peer, p.link.broken(), now);
        over = true;
      }
    }
    if (!over && now >= p.deadline) {
      refuse(p.peer, "it said nothing of use within " + seconds_text(limits_.opening), now);
      over = true;
    }
    at = over ? pending_.erase(at) : std::next(at);
  }
  for (auto at = leaving_.begin(); at != leaving_.end();) {
    at->link.flush();
    std::vector<Frame> ignored;
    at->link.receive(ignored);
    // Closed by the peer, which has read all, or given up.
    at = !at->link.open() || now >= at->deadline ? leaving_.erase(at) : std::next(at);
  }
  return out;
}

void Acceptor::dismiss(ControlLink link, TimePoint now) {
  link.flush();
  // Half a close: the peer reads to the end, then closes; closing at once with unread data of the
  // peer would make the kernel send a reset.
  if (link.unsent() == 0) shutdown(link.fd(), SHUT_WR);
  leaving_.push_back({std::move(link), now + kLeave});
}

}  // namespace capstan::comm
