// SIGTERM and SIGINT as events: one thread receives them, everybody else has them blocked.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

namespace capstan::app {

/// The first signal asks the process to end; a second one ends it at once with 128 + its number.
/// While loading, a process that does not end by itself within kLoadingGrace is ended as well. Make
/// one before any other thread exists, so that all inherit the mask.
class ShutdownSignals {
 public:
  explicit ShutdownSignals(bool force_on_first = false);
  ~ShutdownSignals();
  ShutdownSignals(const ShutdownSignals&) = delete;
  ShutdownSignals& operator=(const ShutdownSignals&) = delete;

  void set_force(bool force) { force_ = force; }
  bool requested() const { return requested_; }
  /// From here on an orderly end may take as long as it needs.
  void loading_done();
  /// Blocks until the first signal, or until `done`, which is asked after every notify() and at
  /// least every `interval`.
  void wait(const std::function<bool()>& done = {},
            std::chrono::milliseconds interval = std::chrono::milliseconds::max());
  /// Has wait() look again; from any thread.
  void notify();

 private:
  static constexpr double kLoadingGrace = 4;  // seconds; 5 is the promise

  void listen();

  std::atomic<bool> force_;
  std::atomic<bool> requested_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool loading_ = true;
  uint64_t notices_ = 0;  // of notify()
  std::thread thread_;
};

}  // namespace capstan::app
