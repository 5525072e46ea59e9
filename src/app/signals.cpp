#include "app/signals.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <cstdlib>

#include "base/log.h"

namespace capstan::app {
namespace {

// Only the destructor sends it: ends the listening thread.
int wake_signal() { return SIGRTMIN + 5; }

sigset_t watched_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, wake_signal());
  return set;
}

}  // namespace

ShutdownSignals::ShutdownSignals(bool force_on_first) : force_(force_on_first) {
  const sigset_t set = watched_signals();
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);  // a closed socket is an error value, not a reason to die
  thread_ = std::thread([this] { listen(); });
}

ShutdownSignals::~ShutdownSignals() {
  ::pthread_kill(thread_.native_handle(), wake_signal());
  thread_.join();
}

void ShutdownSignals::listen() {
  ::pthread_setname_np(::pthread_self(), "signals");
  const sigset_t set = watched_signals();
  for (;;) {
    // After the first signal while loading, wait with a limit; otherwise without.
    bool limited;
    {
      std::lock_guard lock(mutex_);
      limited = requested_ && loading_;
    }
    int number = 0;
    if (limited) {
      const timespec grace{static_cast<time_t>(kLoadingGrace), 0};
      number = ::sigtimedwait(&set, nullptr, &grace);
      if (number < 0) {
        std::lock_guard lock(mutex_);
        if (!loading_ || errno != EAGAIN) continue;
        LOG_WARN("Loading did not stop in time, leaving at once");
        std::_Exit(128 + SIGTERM);
      }
    } else if (::sigwait(&set, &number) != 0) {
      continue;
    }
    if (number == wake_signal()) return;
    if (requested_ || force_) {
      LOG_WARN("Signal {}: leaving at once", number);
      std::_Exit(128 + number);
    }
    LOG_INFO("Signal {}: shutting down; a second one ends the process at once", number);
    {
      std::lock_guard lock(mutex_);
      requested_ = true;
    }
    changed_.notify_all();
  }
}

void ShutdownSignals::loading_done() {
  std::lock_guard lock(mutex_);
  loading_ = false;
}

void ShutdownSignals::wait(const std::function<bool()>& done, std::chrono::milliseconds interval) {
  std::unique_lock lock(mutex_);
  while (!requested_) {
    const uint64_t before = notices_;
    if (done) {
      lock.unlock();  // it may ask who holds locks of its own
      const bool over = done();
      lock.lock();
      if (over) return;
    }
    const auto changed = [this, before] { return requested_ || notices_ != before; };
    if (interval == std::chrono::milliseconds::max()) {
      changed_.wait(lock, changed);
    } else {
      changed_.wait_for(lock, interval, changed);
    }
  }
}

void ShutdownSignals::notify() {
  {
    std::lock_guard lock(mutex_);
    ++notices_;
  }
  changed_.notify_all();
}

}  // namespace capstan::app
