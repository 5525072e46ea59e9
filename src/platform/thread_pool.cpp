#include "platform/thread_pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/log.h"
#include "platform/cpu.h"

namespace capstan::platform {
namespace {

// A waiter pauses this often before it yields to whoever else wants its CPU. 2000 pauses are about
// 30 us on Zen 3 and 70 us on Intel; a yield with nobody waiting costs 0.3 us.
constexpr int kPausesPerYield = 2000;
// Outside a burst the caller polls this many yield periods for its workers before it sleeps.
constexpr int kPollsBeforeSleep = 4;

inline void cpu_pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/// Subnormal operands and results count as zero: one subnormal costs about a hundred ordinary
/// operations, and none of them can matter beside an accumulator of normal size.
inline void flush_subnormals() {
#if defined(__x86_64__)
  constexpr unsigned kFtzDaz = 0x8040;
  const unsigned csr = _mm_getcsr();
  if ((csr & kFtzDaz) != kFtzDaz) _mm_setcsr(csr | kFtzDaz);
#elif defined(__aarch64__)
  uint64_t fpcr;
  __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
  __asm__ volatile("msr fpcr, %0" ::"r"(fpcr | (uint64_t{1} << 24)));
#endif
}

long futex(std::atomic<uint32_t>& word, int op, uint32_t value) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), op | FUTEX_PRIVATE_FLAG, value,
                 nullptr, nullptr, 0);
}

bool pin_current_thread(int cpu) {
  const int count = std::max(cpu + 1, CPU_SETSIZE);
  cpu_set_t* set = CPU_ALLOC(count);
  if (set == nullptr) return false;
  const size_t size = CPU_ALLOC_SIZE(count);
  CPU_ZERO_S(size, set);
  CPU_SET_S(cpu, size, set);
  const bool ok = sched_setaffinity(0, size, set) == 0;
  CPU_FREE(set);
  return ok;
}

void warn_once(const std::string& text) {
  static std::once_flag once;
  std::call_once(once, [&] { LOG_WARN("{}", text); });
}

}  // namespace

struct ThreadPool::Impl {
  // Written by the caller before `epoch` is raised, read by workers after they saw it.
  Task task = nullptr;
  void* context = nullptr;
  int size = 1;
  std::vector<int> cpus;  // of worker i; empty: not pinned
  bool oversubscribed = false;
  std::vector<std::thread> workers;

  // The caller's affinity while it takes part in a burst as a pinned thread 0.
  int burst_depth = 0;
  bool caller_pinned = false;
  cpu_set_t caller_mask;

  alignas(64) std::atomic<uint32_t> epoch{0};    // number of the task to run
  alignas(64) std::atomic<uint32_t> pending{0};  // workers that have not finished it
  alignas(64) std::atomic<uint32_t> signal{0};   // futex word of sleeping workers
  std::atomic<int> sleeping{0};
  std::atomic<bool> burst{false};
  std::atomic<bool> stop{false};
  std::atomic<bool> caller_sleeps{false};        // the caller sleeps on `pending`
  alignas(64) std::atomic<uint32_t> arrived{0};  // barrier()
  alignas(64) std::atomic<uint32_t> generation{0};
  alignas(64) std::atomic<int64_t> next{0};  // for_each()
  int64_t limit = 0;

  /// Waits a little inside a spin loop; `turn` counts the loop's rounds.
  void relax(int& turn) const {
    cpu_pause();
    if (oversubscribed || ++turn % kPausesPerYield == 0) std::this_thread::yield();
  }

  /// Returns when a task newer than `seen` is there or the pool stops.
  void await_task(uint32_t seen) {
    int turn = 0;
    while (epoch.load(std::memory_order_acquire) == seen) {
      if (burst.load(std::memory_order_relaxed)) {
        relax(turn);
        continue;
      }
      const uint32_t before = signal.load();
      sleeping.fetch_add(1);
      // The caller raises epoch or burst first and looks at `sleeping` afterwards, we the other way
      // round, all sequentially consistent: one of the two sees the other.
      if (epoch.load() == seen && !burst.load()) futex(signal, FUTEX_WAIT, before);
      sleeping.fetch_sub(1);
    }
  }

  void wake_workers() {
    if (sleeping.load() == 0) return;
    signal.fetch_add(1);
    futex(signal, FUTEX_WAKE, INT32_MAX);
  }

  void work(int index) {
    if (!cpus.empty() && !pin_current_thread(cpus[index])) {
      warn_once("cannot pin compute thread " + std::to_string(index) + " to CPU " +
                std::to_string(cpus[index]) + "; it runs unpinned");
    }
    flush_subnormals();
    uint32_t seen = 0;
    for (;;) {
      await_task(seen);
      if (stop.load(std::memory_order_relaxed)) return;
      ++seen;
      task(index, context);
      if (pending.fetch_sub(1) == 1 && caller_sleeps.load()) futex(pending, FUTEX_WAKE, 1);
    }
  }

  void join() {
    int turn = 0;
    while (pending.load(std::memory_order_acquire) != 0) {
      if (burst.load(std::memory_order_relaxed) || turn < kPollsBeforeSleep * kPausesPerYield) {
        relax(turn);
        if (oversubscribed) turn += kPausesPerYield / 16;  // each round was a yield
        continue;
      }
      caller_sleeps.store(true);
      if (const uint32_t left = pending.load(); left != 0) futex(pending, FUTEX_WAIT, left);
      caller_sleeps.store(false);
    }
  }
};

ThreadPool::ThreadPool(int threads, bool pin, CpuShare share) : impl_(std::make_unique<Impl>()) {
  const std::vector<int> cpus = affinity_cpus();
  const int usable = usable_cpu_count();
  if (threads <= 0) threads = usable;
  const int total = std::max(threads, share.total);
  impl_->oversubscribed = total > usable;
  if (impl_->oversubscribed) {
    warn_once(std::to_string(total) + " compute threads share " + std::to_string(usable) +
              " usable CPU" + (usable == 1 ? "" : "s") +
              " (affinity mask and cgroup quota): they run unpinned and yield instead of spinning; "
              "use at most " +
              std::to_string(usable) + " for full speed");
  }
  // A lone CPU needs no pinning, and threads above the mask's CPUs must be free to move.
  const auto end = static_cast<size_t>(share.first + threads);
  if (pin && total > 1 && end <= cpus.size() && !impl_->oversubscribed) {
    impl_->cpus.assign(cpus.begin() + share.first, cpus.end());
  }
  impl_->size = threads;
  impl_->workers.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) {
    try {
      impl_->workers.emplace_back([impl = impl_.get(), i] { impl->work(i); });
    } catch (const std::system_error& error) {
      warn_once("cannot start compute thread " + std::to_string(i) + " of " +
                std::to_string(threads) + " (" + error.what() + "); going on with " +
                std::to_string(i));
      impl_->size = i;
      break;
    }
  }
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true);
  impl_->epoch.fetch_add(1);
  impl_->wake_workers();
  for (std::thread& worker : impl_->workers) worker.join();
}

int ThreadPool::size() const { return impl_->size; }

void ThreadPool::run(Task task, void* context) {
  Impl& p = *impl_;
  flush_subnormals();
  if (p.size > 1) {
    p.task = task;
    p.context = context;
    p.pending.store(static_cast<uint32_t>(p.size - 1), std::memory_order_relaxed);
    p.epoch.fetch_add(1);
    p.wake_workers();
  }
  task(0, context);
  if (p.size > 1) p.join();
}

void ThreadPool::barrier() {
  Impl& p = *impl_;
  if (p.size == 1) return;
  const uint32_t generation = p.generation.load(std::memory_order_relaxed);
  if (p.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(p.size)) {
    p.arrived.store(0, std::memory_order_relaxed);
    p.generation.store(generation + 1, std::memory_order_release);
    return;
  }
  int turn = 0;
  while (p.generation.load(std::memory_order_acquire) == generation) p.relax(turn);
}

void ThreadPool::begin_burst() {
  Impl& p = *impl_;
  flush_subnormals();
  if (p.burst_depth++ > 0) return;
  if (!p.cpus.empty()) {
    // Without this the kernel may put the caller on a CPU where a pinned worker spins. Undone in
    // end_burst: a mask outliving the step would be inherited by every thread the caller starts.
    p.caller_pinned = sched_getaffinity(0, sizeof(p.caller_mask), &p.caller_mask) == 0 &&
                      pin_current_thread(p.cpus[0]);
  }
  if (p.size == 1) return;
  p.burst.store(true);
  p.wake_workers();
}

void ThreadPool::end_burst() {
  Impl& p = *impl_;
  if (p.burst_depth == 0 || --p.burst_depth > 0) return;
  p.burst.store(false);
  if (p.caller_pinned) {
    sched_setaffinity(0, sizeof(p.caller_mask), &p.caller_mask);
    p.caller_pinned = false;
  }
}

int64_t ThreadPool::next_index() {
  const int64_t i = impl_->next.fetch_add(1, std::memory_order_relaxed);
  return i < impl_->limit ? i : -1;
}

void ThreadPool::reset_index(int64_t n) {
  impl_->limit = n;
  impl_->next.store(0, std::memory_order_relaxed);
}

}  // namespace capstan::platform
