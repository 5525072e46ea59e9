// Notices a step that does not end.
//
// A hung step cannot be interrupted, so the only cure is to end the process and let its supervisor
// start another; what can be done is to say first what was running and where it stands.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <sys/types.h>

namespace capstan::engine {

class Watchdog {
 public:
  struct Options {
    double timeout = 0;       // seconds; 0 = off: report, then call on_fatal
    double soft_timeout = 0;  // seconds; 0 = off: only report, once per step
    std::function<void(const std::string&)> on_fatal;  // unset: leave the process with code 70
    /// Whether the step is held up by another rank, which then has a little longer; may be unset.
    std::function<bool()> waiting = {};
  };

  /// `describe` says what runs; it is called on the watchdog's thread while the step hangs.
  Watchdog(Options options, std::function<std::string()> describe);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// Bracket a step; called by the thread that is watched.
  void step_begins();
  void step_ends();

 private:
  void watch();
  void report(const char* what, double seconds);

  Options options_;
  std::function<std::string()> describe_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  bool in_step_ = false;
  bool soft_reported_ = false;
  std::chrono::steady_clock::time_point began_;
  pid_t watched_ = 0;
  std::thread thread_;
};

}  // namespace capstan::engine
