#include "comm/control_link.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <iterator>

namespace capstan::comm {
namespace {

constexpr size_t kHeader = 5;
constexpr size_t kReadChunk = 64 << 10;
constexpr int kReadsPerCall = 16;

}  // namespace

void ControlLink::fail(std::string why) {
  if (broken_.empty()) broken_ = std::move(why);
}

void ControlLink::send(MessageType type, std::string_view body) {
  out_ += Writer().number(body.size(), 4).number(static_cast<uint8_t>(type), 1).take();
  out_ += body;
}

short ControlLink::events() const {
  return static_cast<short>(unsent() > 0 ? POLLIN | POLLOUT : POLLIN);
}

void ControlLink::flush() {
  while (open() && sent_ < out_.size()) {
    const ssize_t n =
        ::send(fd_.get(), out_.data() + sent_, out_.size() - sent_, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      sent_ += static_cast<size_t>(n);
    } else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS)) {
      return;
    } else if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) {
      // What the other side said before it went may still wait to be read: receive() sees the end.
      break;
    } else if (n < 0 && errno != EINTR) {
      return fail(errno_text(errno));
    }
  }
  out_.clear();
  sent_ = 0;
}

void ControlLink::receive(std::vector<Frame>& frames) {
  frames.insert(frames.end(), std::make_move_iterator(ready_.begin()),
                std::make_move_iterator(ready_.end()));
  ready_.clear();
  for (int reads = 0; open() && reads < kReadsPerCall;) {
    const size_t old = in_.size();
    in_.resize(old + kReadChunk);
    const ssize_t n = recv(fd_.get(), in_.data() + old, kReadChunk, MSG_DONTWAIT);
    const int error = errno;
    in_.resize(old + static_cast<size_t>(n > 0 ? n : 0));
    received_ += static_cast<uint64_t>(n > 0 ? n : 0);
    if (n == 0) {
      fail("the other side closed it");
    } else if (n < 0 && (error == EAGAIN || error == EWOULDBLOCK)) {
      break;
    } else if (n < 0 && error != EINTR) {
      fail(errno_text(error));
    }
    ++reads;
  }
  size_t at = 0;
  while (in_.size() - at >= kHeader) {
    Reader header(std::string_view(in_).substr(at, kHeader));
    const size_t length = header.number(4);
    const auto type = static_cast<MessageType>(header.number(1));
    if (length > max_body_) {
      fail("it announced a message of " + std::to_string(length) + " bytes, more than the " +
           std::to_string(max_body_) + " allowed");
      break;
    }
    if (in_.size() - at - kHeader < length) break;
    frames.push_back({type, in_.substr(at + kHeader, length)});
    at += kHeader + length;
  }
  in_.erase(0, at);
}

Result<Frame> ControlLink::wait(TimePoint deadline, const Stop& stop) {
  while (true) {
    flush();
    if (ready_.empty()) {
      std::vector<Frame> frames;
      receive(frames);
      ready_ = std::move(frames);
    }
    if (!ready_.empty()) {
      Frame frame = std::move(ready_.front());
      ready_.erase(ready_.begin());
      return frame;
    }
    if (!open()) return unavailable(broken_);
    CAPSTAN_RETURN_IF_ERROR(wait_for(fd_.get(), events(), deadline, stop));
  }
}

Result<Fd> ControlLink::take_socket() {
  if (!in_.empty() || !ready_.empty() || unsent() > 0) {
    return internal_error("a link was handed over with data on its way");
  }
  return std::move(fd_);
}

}  // namespace capstan::comm
