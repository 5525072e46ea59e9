#include "engine/watchdog.h"

#include <execinfo.h>
#include <semaphore.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "base/log.h"

namespace capstan::engine {
namespace {

constexpr int kExitCode = 70;  // EX_SOFTWARE of sysexits.h

sem_t dump_done;

int dump_signal() { return SIGRTMIN + 4; }

/// Runs on the hung thread: writes its call stack to stderr, one frame a line.
void write_stack(int) {
  void* frames[64];
  const int n = ::backtrace(frames, 64);
  ::backtrace_symbols_fd(frames, n, STDERR_FILENO);
  ::sem_post(&dump_done);
}

void install_dump_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    ::sem_init(&dump_done, 0, 0);
    void* frame[1];
    ::backtrace(frame, 1);  // loads libgcc now; in the handler that would not be safe
    struct sigaction action {};
    action.sa_handler = write_stack;
    action.sa_flags = SA_RESTART;
    ::sigaction(dump_signal(), &action, nullptr);
  });
}

}  // namespace

Watchdog::Watchdog(Options options, std::function<std::string()> describe)
    : options_(std::move(options)), describe_(std::move(describe)) {
  if (options_.timeout <= 0 && options_.soft_timeout <= 0) return;
  install_dump_handler();
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
  watched_ = ::pthread_self();
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
    if (options_.timeout > 0 && seconds > options_.timeout) {
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
  LOG_ERROR("Watchdog: {} {:.1f} s. {} Stack of the engine thread:", what, seconds, describe_());
  dump_stack();
}

void Watchdog::dump_stack() {
  pthread_t thread;
  {
    std::lock_guard lock(mutex_);
    if (!in_step_) return;  // it ended after all
    thread = watched_;
  }
  if (::pthread_kill(thread, dump_signal()) != 0) return;
  timespec deadline{};
  ::clock_gettime(CLOCK_REALTIME, &deadline);
  deadline.tv_sec += 2;  // a thread stuck in the kernel never gets to the handler
  while (::sem_timedwait(&dump_done, &deadline) != 0 && errno == EINTR) {
  }
}

}  // namespace capstan::engine
