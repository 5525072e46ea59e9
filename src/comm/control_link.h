// One control connection: frames in, frames out, never blocking. Used by one thread at a time.
//
// On the wire: length of the body (4 bytes, little-endian), type (1 byte), body.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "comm/control_message.h"
#include "comm/control_socket.h"

namespace capstan::comm {

class ControlLink {
 public:
  ControlLink() = default;
  /// A body longer than `max_body` breaks the link before it is read.
  ControlLink(Fd fd, size_t max_body) : fd_(std::move(fd)), max_body_(max_body) {}

  bool open() const { return fd_.valid() && broken_.empty(); }
  /// Why it is not open; empty when it never was.
  const std::string& broken() const { return broken_; }
  int fd() const { return fd_.get(); }
  void set_max_body(size_t bytes) { max_body_ = bytes; }

  /// Queues a frame; flush() writes as much as the socket takes.
  void send(MessageType type, std::string_view body);
  void flush();
  size_t unsent() const { return out_.size() - sent_; }
  /// Bytes that came in since the beginning: a sign of life in the middle of a long message.
  uint64_t received() const { return received_; }
  short events() const;  // for poll()

  /// Reads what there is (at most about 1 MiB a call, so that one talker cannot starve the others)
  /// and appends the complete frames. Those that came before the end of the connection are still
  /// delivered.
  void receive(std::vector<Frame>& frames);

  /// Waits for the next frame, writing what is queued meanwhile.
  Result<Frame> wait(TimePoint deadline, const Stop& stop);

  /// The socket, when nothing is buffered: for a connection that becomes a tensor link.
  Result<Fd> take_socket();
  void close() { fd_.reset(); }

 private:
  void fail(std::string why);

  Fd fd_;
  size_t max_body_ = 0;
  std::string in_, out_;
  size_t sent_ = 0;
  uint64_t received_ = 0;
  std::vector<Frame> ready_;  // read ahead by wait()
  std::string broken_;
};

}  // namespace capstan::comm
