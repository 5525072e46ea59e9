// A communicator that knows how long its rank waits for the others.
//
// All ranks of a step end together, so their step times are equal; who is slow shows in how little
// of it they spend in collectives.
#pragma once

#include <atomic>
#include <memory>

#include "comm/communicator.h"

namespace capstan::engine {

/// Read by any thread.
struct WaitClock {
  std::atomic<int64_t> waited_ns{0};  // in collectives, receive_message() apart
  std::atomic<bool> inside{false};    // of one now
};

class TimedCommunicator final : public comm::Communicator {
 public:
  explicit TimedCommunicator(std::unique_ptr<comm::Communicator> inner)
      : TimedCommunicator(std::move(inner), std::make_shared<WaitClock>()) {}
  TimedCommunicator(std::unique_ptr<comm::Communicator> inner, std::shared_ptr<WaitClock> clock)
      : inner_(std::move(inner)), clock_(std::move(clock)) {}

  const WaitClock& clock() const { return *clock_; }

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::string_view transport() const override { return inner_->transport(); }
  Status all_reduce(void* data, int64_t count, DType dtype) override;
  Status all_gather(const void* send, void* recv, int64_t bytes) override;
  Status reduce_scatter(const void* send, void* recv, int64_t count, DType dtype) override;
  Status all_to_all(const void* send, void* recv, int64_t bytes) override;
  Status broadcast(void* data, int64_t bytes, int root) override;
  Status gather(const void* send, void* recv, std::span<const int64_t> bytes, int root) override;
  Status barrier() override;
  Status send_message(std::span<const std::byte> message) override {
    return inner_->send_message(message);
  }
  Result<std::span<const std::byte>> receive_message() override {
    return inner_->receive_message();
  }
  void abort(const Error& why) override { inner_->abort(why); }
  /// Its waiting counts here.
  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> ranks) override;

 private:
  const std::unique_ptr<comm::Communicator> inner_;
  const std::shared_ptr<WaitClock> clock_;
};

}  // namespace capstan::engine
