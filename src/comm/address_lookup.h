// Name lookup that does not block its caller: getaddrinfo() may take half a minute with a DNS
// server that is silent, and cannot be interrupted.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/address.h"

namespace capstan::comm {

class AddressLookup {
 public:
  explicit AddressLookup(HostPort target) : target_(std::move(target)) {}

  /// Asks the resolver anew, or goes on waiting for a question that is still open. kUnavailable
  /// with the resolver's reason; kAborted as soon as `stop`, asked every 50 ms, says so.
  /// The question itself runs in a thread of its own, which outlives a lookup that was given up.
  Result<std::vector<SocketAddress>> resolve(const std::function<bool()>& stop);

 private:
  struct Question;
  HostPort target_;
  std::shared_ptr<Question> open_;
};

}  // namespace capstan::comm
