#include "engine/watchdog.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/log.h"
#include "engine/stack_dump.h"

namespace capstan::engine {
namespace {

constexpr int kExitCode = 70;  // EX_SOFTWARE of sysexits.h
// A rank that waits for another gives that one's watchdog so long to name itself.
constexpr double kBlameDelay = 3;  // seconds

}  // namespace

Watchdog::Watchdog(Options options, std::function<std::string()> describe)
    : options_(std::move(options)), describe_(std::move(describe)) {
  if (options_.timeout <= 0 && options_.soft_timeout <= 0) return;
  install_stack_dump();
  thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::step_begins() {
  if (!thread_.joinable()) return;
  std::lock_guard lock(mutex_);
  in_step_ = true;
  soft_reported_ = false;
  began_ = std::chrono::steady_clock::now();
  watched_ = static_cast<pid_t>(::syscall(SYS_gettid));
}

void Watchdog::step_ends() {
  if (!thread_.joinable()) return;
  std::lock_guard lock(mutex_);
  in_step_ = false;
}

void Watchdog::watch() {
  ::pthread_setname_np(::pthread_self(), "watchdog");
  // A step that starts right after a look is noticed an eighth late at most; waking for every step
  // instead would cost each of them a system call.
  double shortest = options_.timeout > 0 ? options_.timeout : options_.soft_timeout;
  if (options_.soft_timeout > 0) shortest = std::min(shortest, options_.soft_timeout);
  const auto interval = std::chrono::duration<double>(std::clamp(shortest / 8, 0.005, 5.0));
  std::unique_lock lock(mutex_);
  while (!stop_) {
    wake_.wait_for(lock, interval);
    if (stop_ || !in_step_) continue;
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
    const bool waits = options_.waiting && options_.waiting();
    if (options_.timeout > 0 && seconds > options_.timeout + (waits ? kBlameDelay : 0)) {
      lock.unlock();
      report("the engine is stuck: one step has been running for", seconds);
      const std::string message = "watchdog: a step exceeded --watchdog-timeout " +
                                  std::to_string(options_.timeout) + " s; " + describe_();
      if (options_.on_fatal) {
        options_.on_fatal(message);
        return;
      }
      std::_Exit(kExitCode);
    }
    if (options_.soft_timeout > 0 && seconds > options_.soft_timeout && !soft_reported_) {
      soft_reported_ = true;
      lock.unlock();
      report("a step is slow: it has been running for", seconds);
      lock.lock();
    }
  }
}

void Watchdog::report(const char* what, double seconds) {
  LOG_ERROR("Watchdog: {} {:.1f} s. {} Stacks of all threads, the stuck one first:", what, seconds,
            describe_());
  pid_t thread;
  {
    std::lock_guard lock(mutex_);
    if (!in_step_) return;  // it ended after all
    thread = watched_;
  }
  dump_stacks(thread);
}

}  // namespace capstan::engine
