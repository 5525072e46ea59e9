// Who takes which items of a parallel product.
#include "kernels/work_shares.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace capstan::kernels {
namespace {

using Order = WorkShares::Order;

std::vector<int64_t> firsts(WorkShares& shares, int thread, int64_t most) {
  std::vector<int64_t> begins;
  for (WorkShares::Range r; !(r = shares.take(thread, most)).empty();) begins.push_back(r.begin);
  return begins;
}

TEST(WorkShares, OwnShareInOrderThenTheFarEndsOfOthers) {
  WorkShares up(Order::kAscending), down(Order::kDescending);
  up.share(10, 2);
  EXPECT_EQ(firsts(up, 0, 2), (std::vector<int64_t>{0, 2, 4, 9, 8, 7, 6, 5}));
  EXPECT_TRUE(up.take(1).empty());
  down.share(10, 2);
  EXPECT_EQ(firsts(down, 0, 1), (std::vector<int64_t>{4, 3, 2, 1, 0, 5, 6, 7, 8, 9}));
  EXPECT_TRUE(down.take(1).empty());
}

TEST(WorkShares, PiecesAreNoLargerThanAskedForAndOneOfAnothers) {
  WorkShares shares(Order::kAscending);
  shares.share(7, 2);  // 3 and 4
  WorkShares::Range r = shares.take(1, 3);
  EXPECT_EQ(r.begin, 3);
  EXPECT_EQ(r.end, 6);
  r = shares.take(1, 3);
  EXPECT_EQ(r.begin, 6);
  EXPECT_EQ(r.end, 7);
  r = shares.take(1, 3);
  EXPECT_EQ(r.begin, 2);
  EXPECT_EQ(r.end, 3);
}

TEST(WorkShares, FewerItemsThanThreads) {
  WorkShares shares(Order::kAscending);
  for (int64_t items : {0, 1, 3}) {
    shares.share(items, 8);
    int64_t taken = 0;
    for (WorkShares::Range r; !(r = shares.take(5, 4)).empty();) taken += r.end - r.begin;
    EXPECT_EQ(taken, items);
  }
}

TEST(WorkShares, EveryItemIsTakenOnceByThreadsInARace) {
  constexpr int kThreads = 4;
  constexpr int64_t kItems = 1000;
  for (const Order order : {Order::kAscending, Order::kDescending}) {
    WorkShares shares(order);
    for (int round = 0; round < 200; ++round) {
      shares.share(kItems, kThreads);
      std::vector<std::atomic<int>> taken(kItems);
      std::atomic<int> ready{0};
      std::vector<std::thread> threads;
      for (int t = 0; t < kThreads; ++t) {
        threads.emplace_back([&, t] {
          ready.fetch_add(1);
          while (ready.load() < kThreads) std::this_thread::yield();
          // Shares of unequal use: who takes less at a time is overtaken.
          for (WorkShares::Range r; !(r = shares.take(t, 1 + 3 * t)).empty();) {
            for (int64_t i = r.begin; i < r.end; ++i) taken[static_cast<size_t>(i)].fetch_add(1);
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
      for (int64_t i = 0; i < kItems; ++i)
        ASSERT_EQ(taken[static_cast<size_t>(i)].load(), 1) << "item " << i;
    }
  }
}

}  // namespace
}  // namespace capstan::kernels
