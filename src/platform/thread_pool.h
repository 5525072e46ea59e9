// A fixed pool of pinned compute threads that join by spinning.
//
// Joining two threads costs 0.27 us when both spin and about 80 us through a condition variable,
// and a decode step joins some two hundred times; so threads spin while a step is in flight and
// sleep between steps. The calling thread takes part as thread 0.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace capstan::platform {

/// The part of the usable CPUs that one of several pools of a process has to itself.
struct CpuShare {
  int first = 0;  // place of its first CPU in affinity_cpus()
  int total = 0;  // threads of all pools; 0: there is one pool
};

class ThreadPool {
 public:
  /// `threads` includes the caller; 0 means one per usable CPU. With `pin`, worker i is bound to
  /// the i-th CPU this process may use. Every thread has FTZ and DAZ
  /// set, the calling thread from its first run() or begin_burst() on.
  explicit ThreadPool(int threads = 0, bool pin = true) : ThreadPool(threads, pin, CpuShare{}) {}
  /// Binds its threads to the CPUs from share.first on; with several pools the caller too, while a
  /// burst lasts. `threads` is at least 1.
  ThreadPool(int threads, bool pin, CpuShare share);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const;

  /// Runs fn(thread_index, context) once on every thread and returns when all are done.
  /// Not reentrant; call from one thread at a time. fn must not throw.
  using Task = void (*)(int thread, void* context);
  void run(Task task, void* context);

  /// Same for a callable f(int thread).
  template <class F>
  void run(F&& f) {
    run([](int thread, void* ctx) { (*static_cast<std::remove_reference_t<F>*>(ctx))(thread); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

  /// Barrier among all pool threads; only valid inside a task, called by every thread.
  void barrier();

  /// Workers spin between begin_burst and end_burst (a step in flight); otherwise they sleep.
  void begin_burst();
  void end_burst();

  /// Calls f(i) for i in [0, n), indices handed out dynamically. For loading and packing.
  template <class F>
  void for_each(int64_t n, F&& f);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  int64_t next_index();  // of the running for_each
  void reset_index(int64_t n);
};

template <class F>
void ThreadPool::for_each(int64_t n, F&& f) {
  reset_index(n);
  run([&](int) {
    for (int64_t i; (i = next_index()) >= 0;) f(i);
  });
}

}  // namespace capstan::platform
