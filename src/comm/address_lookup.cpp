#include "comm/address_lookup.h"

#include <netdb.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

namespace capstan::comm {

struct AddressLookup::Question {
  std::mutex mutex;
  std::condition_variable answered;
  bool done = false;
  std::string why;  // empty: it worked
  std::vector<SocketAddress> addresses;
};

namespace {

std::string ask(const HostPort& target, std::vector<SocketAddress>& out) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int rc =
      getaddrinfo(target.host.c_str(), std::to_string(target.port).c_str(), &hints, &found);
  if (rc != 0) {
    return rc == EAI_SYSTEM ? std::generic_category().message(errno) : gai_strerror(rc);
  }
  for (const addrinfo* i = found; i != nullptr; i = i->ai_next) {
    SocketAddress address;
    std::memcpy(&address.storage, i->ai_addr, i->ai_addrlen);
    address.length = i->ai_addrlen;
    out.push_back(address);
  }
  freeaddrinfo(found);
  return out.empty() ? "it has no address" : "";
}

}  // namespace

Result<std::vector<SocketAddress>> AddressLookup::resolve(const std::function<bool()>& stop) {
  if (const auto numeric = numeric_address(target_.host, target_.port); numeric.ok()) {
    return std::vector<SocketAddress>{numeric.value()};
  }
  if (open_ == nullptr) {
    auto question = std::make_shared<Question>();
    std::thread([question, target = target_] {
      std::vector<SocketAddress> addresses;
      std::string why = ask(target, addresses);
      const std::lock_guard lock(question->mutex);
      question->addresses = std::move(addresses);
      question->why = std::move(why);
      question->done = true;
      question->answered.notify_all();
    }).detach();
    open_ = std::move(question);
  }
  const std::shared_ptr<Question> question = open_;
  std::unique_lock lock(question->mutex);
  while (!question->done) {
    if (stop()) return Error{ErrorCode::kAborted, "cancelled while looking up " + target_.host};
    question->answered.wait_for(lock, std::chrono::milliseconds(50));
  }
  open_ = nullptr;
  if (!question->why.empty()) {
    return unavailable("the name " + target_.host + " does not resolve: " + question->why);
  }
  return question->addresses;
}

}  // namespace capstan::comm
