#include "engine/timed_communicator.h"

#include <chrono>

namespace capstan::engine {
namespace {

/// Two reads of the clock, 50 ns, beside collectives of microseconds.
class Waiting {
 public:
  explicit Waiting(WaitClock& clock) : clock_(clock) {
    clock_.inside.store(true, std::memory_order_relaxed);
  }
  ~Waiting() {
    const auto spent = std::chrono::steady_clock::now() - began_;
    clock_.waited_ns.fetch_add(std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count(),
                               std::memory_order_relaxed);
    clock_.inside.store(false, std::memory_order_relaxed);
  }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

 private:
  WaitClock& clock_;
  const std::chrono::steady_clock::time_point began_ = std::chrono::steady_clock::now();
};

}  // namespace

Status TimedCommunicator::all_reduce(void* data, int64_t count, DType dtype) {
  const Waiting waiting(*clock_);
  return inner_->all_reduce(data, count, dtype);
}
Status TimedCommunicator::all_gather(const void* send, void* recv, int64_t bytes) {
  const Waiting waiting(*clock_);
  return inner_->all_gather(send, recv, bytes);
}
Status TimedCommunicator::reduce_scatter(const void* send, void* recv, int64_t count, DType dtype) {
  const Waiting waiting(*clock_);
  return inner_->reduce_scatter(send, recv, count, dtype);
}
Status TimedCommunicator::all_to_all(const void* send, void* recv, int64_t bytes) {
  const Waiting waiting(*clock_);
  return inner_->all_to_all(send, recv, bytes);
}
Status TimedCommunicator::broadcast(void* data, int64_t bytes, int root) {
  const Waiting waiting(*clock_);
  return inner_->broadcast(data, bytes, root);
}
Status TimedCommunicator::gather(const void* send, void* recv, std::span<const int64_t> bytes,
                                 int root) {
  const Waiting waiting(*clock_);
  return inner_->gather(send, recv, bytes, root);
}
Status TimedCommunicator::barrier() {
  const Waiting waiting(*clock_);
  return inner_->barrier();
}
Result<std::unique_ptr<comm::Communicator>> TimedCommunicator::subgroup(
    std::span<const int> ranks) {
  CAPSTAN_ASSIGN(auto inner, inner_->subgroup(ranks));
  return std::unique_ptr<comm::Communicator>(
      std::make_unique<TimedCommunicator>(std::move(inner), clock_));
}

}  // namespace capstan::engine
