#include "platform/thread_pool.h"

#include <gtest/gtest.h>
#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "platform/cpu.h"

namespace capstan::platform {
namespace {

TEST(ThreadPool, RunsEveryThreadOnceAndSeesTheirWrites) {
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.size(), threads);
    std::vector<int> count(threads, 0);  // plain ints: run() must order the accesses
    for (int round = 0; round < 200; ++round) {
      if (round == 50) pool.begin_burst();
      if (round == 150) pool.end_burst();
      pool.run([&](int thread) { ++count[thread]; });
    }
    EXPECT_EQ(count, std::vector<int>(threads, 200));
  }
}

TEST(ThreadPool, CallerIsThreadZero) {
  ThreadPool pool(2);
  std::vector<std::thread::id> ids(2);
  pool.run([&](int thread) { ids[thread] = std::this_thread::get_id(); });
  EXPECT_EQ(ids[0], std::this_thread::get_id());
  EXPECT_NE(ids[1], std::this_thread::get_id());
}

TEST(ThreadPool, SuccessiveRunsMayComeFromDifferentThreads) {
  ThreadPool pool(2);
  int sum = 0;
  for (int i = 0; i < 5; ++i) {
    std::thread([&] {
      pool.begin_burst();
      std::atomic<int> hits{0};
      pool.run([&](int) { ++hits; });
      sum += hits;
      pool.end_burst();
    }).join();
  }
  EXPECT_EQ(sum, 10);
}

TEST(ThreadPool, BarrierSeparatesPhases) {
  for (int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    std::vector<int> value(threads, 0);
    bool ok = true;
    pool.begin_burst();
    pool.run([&](int thread) {
      for (int phase = 1; phase <= 100; ++phase) {
        value[thread] = phase;
        pool.barrier();
        const bool same = value[(thread + 1) % threads] == phase;
        pool.barrier();
        if (!same && thread == 0) ok = false;
      }
    });
    pool.end_burst();
    EXPECT_TRUE(ok);
  }
}

TEST(ThreadPool, ForEachVisitsEveryIndexOnce) {
  ThreadPool pool(3);
  std::vector<std::atomic<int>> seen(1000);
  pool.for_each(1000, [&](int64_t i) { ++seen[i]; });
  for (const auto& s : seen) EXPECT_EQ(s.load(), 1);
  pool.for_each(0, [&](int64_t) { FAIL(); });
}

TEST(ThreadPool, SubnormalsAreZeroOnEveryThreadAlsoTheCaller) {
  for (int threads : {1, 2}) {
    std::thread fresh([&] {  // a caller that never touched MXCSR
      ThreadPool pool(threads);
      std::vector<float> product(threads, 1.0f);
      std::vector<unsigned> csr(threads, 0);
      pool.run([&](int thread) {
        volatile float tiny = 1e-30f, small = 1e-10f;
        product[thread] = tiny * small;  // 1e-40: subnormal
        csr[thread] = _mm_getcsr();
      });
      for (int t = 0; t < threads; ++t) {
        EXPECT_EQ(product[t], 0.0f);
        EXPECT_EQ(csr[t] & 0x8040u, 0x8040u);
      }
    });
    fresh.join();
  }
}

TEST(ThreadPool, PinsWorkersInBurstAndRestoresTheCaller) {
  const std::vector<int> cpus = affinity_cpus();
  if (cpus.size() < 2 || usable_cpu_count() < 2) GTEST_SKIP() << "needs two CPUs";
  cpu_set_t before, after;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  ThreadPool pool(2);
  std::vector<int> cpu(2, -1);
  pool.begin_burst();
  pool.run([&](int thread) { cpu[thread] = sched_getcpu(); });
  pool.end_burst();
  EXPECT_EQ(cpu[0], cpus[0]);
  EXPECT_EQ(cpu[1], cpus[1]);
  ASSERT_EQ(sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
}

TEST(ThreadPool, RespectsAMaskWithFewerCpusThanThreads) {
  std::thread confined([] {
    const int cpu = affinity_cpus().back();
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
    EXPECT_EQ(affinity_cpus(), std::vector<int>{cpu});
    EXPECT_EQ(usable_cpu_count(), 1);
    EXPECT_EQ(ThreadPool(0).size(), 1);
    ThreadPool pool(4);
    ASSERT_EQ(pool.size(), 4);
    std::vector<int> where(4, -1);
    // With four threads on one CPU, every barrier would last three scheduler ticks (about 10 ms)
    // if waiters did not yield, and these 2,000 would exceed any test timeout.
    pool.begin_burst();
    pool.run([&](int thread) {
      for (int i = 0; i < 2000; ++i) pool.barrier();
      where[thread] = sched_getcpu();
    });
    for (int i = 0; i < 2000; ++i) pool.run([](int) {});
    pool.end_burst();
    EXPECT_EQ(where, std::vector<int>(4, cpu));
  });
  confined.join();
}

TEST(ThreadPool, SleepsOutsideBursts) {
  ThreadPool pool(2);
  std::atomic<clockid_t> clock{0};
  pool.begin_burst();
  pool.run([&](int thread) {
    if (thread == 1) {
      clockid_t id;
      pthread_getcpuclockid(pthread_self(), &id);
      clock = id;
    }
  });
  pool.end_burst();
  const auto cpu_seconds = [&] {
    timespec t{};
    clock_gettime(clock, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // time to notice the end
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_LT(cpu_seconds() - before, 0.02);  // CPU time of the worker, not wall time
  std::atomic<int> ran{0};
  pool.run([&](int) { ++ran; });
  EXPECT_EQ(ran, 2);
}

}  // namespace
}  // namespace capstan::platform
