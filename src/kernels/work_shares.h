// Items of one parallel product, shared among threads: each has a contiguous share, since what a
// kernel has prefetched is the item behind it, and whoever is done takes from the others' far ends.
// So a thread whose core is slower, or shared with another process, is not waited for longer than
// one piece takes. Two Zen 3 threads, a busy loop of another process on one of their cores, fixed
// shares and these: R1-Distill-1.5B's matrices, 32 rows, Q4_K 65 and 137 GMAC/s, Q8_0 60 and 92;
// V2-Lite's experts in FP8, one token 7.6 and 16.9. Without that loop no slower, as far as a noisy
// machine shows.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace capstan::kernels {

class WorkShares {
 public:
  /// From which end threads take from their own shares.
  enum class Order { kAscending, kDescending };
  explicit WorkShares(Order order) : order_(order) {}

  /// From here on among so many threads; each has to be given its share before any takes.
  void set_threads(int threads) {
    threads_ = threads;
    if (threads <= capacity_) return;
    capacity_ = threads;
    shares_ = std::make_unique<Share[]>(static_cast<size_t>(threads));
  }

  /// Gives [begin, end) to a thread. Others must not take() at the same time, unless what the share
  /// held is used up. begin and end are below 2^32.
  void set(int thread, int64_t begin, int64_t end) {
    shares_[thread].items.store(pack(begin, end), std::memory_order_relaxed);
  }

  /// Thread `thread`'s part of [0, items), equal to within one item.
  void set_part(int thread, int64_t items) {
    set(thread, items * thread / threads_, items * (thread + 1) / threads_);
  }
  /// All threads' parts.
  void share(int64_t items, int threads) {
    set_threads(threads);
    for (int t = 0; t < threads; ++t) set_part(t, items);
  }

  struct Range {
    int64_t begin, end;
    bool empty() const { return begin >= end; }
  };
  /// Up to `most` items of the thread's own share or, once that is empty, one of another's. Empty:
  /// all are taken. Orders nothing: what items read and write is ordered by the pool's joins.
  Range take(int thread, int64_t most = 1) {
    for (int i = 0; i < threads_; ++i) {
      std::atomic<uint64_t>& share = shares_[(thread + i) % threads_].items;
      const bool front = (order_ == Order::kAscending) == (i == 0);
      uint64_t now = share.load(std::memory_order_relaxed);
      while (begin_of(now) < end_of(now)) {
        const int64_t left = end_of(now) - begin_of(now);
        const int64_t n = i != 0 ? 1 : most < left ? most : left;
        const uint64_t rest =
            front ? pack(begin_of(now) + n, end_of(now)) : pack(begin_of(now), end_of(now) - n);
        if (share.compare_exchange_weak(now, rest, std::memory_order_relaxed)) {
          return front ? Range{begin_of(now), begin_of(rest)} : Range{end_of(rest), end_of(now)};
        }
      }
    }
    return {0, 0};
  }

 private:
  /// Not yet taken: the first item in the lower half, the end in the upper.
  struct alignas(64) Share {
    std::atomic<uint64_t> items{0};
  };
  static constexpr uint64_t pack(int64_t begin, int64_t end) {
    return static_cast<uint64_t>(begin) | static_cast<uint64_t>(end) << 32;
  }
  static constexpr int64_t begin_of(uint64_t share) {
    return static_cast<int64_t>(share & 0xffffffffu);
  }
  static constexpr int64_t end_of(uint64_t share) { return static_cast<int64_t>(share >> 32); }

  Order order_;
  std::unique_ptr<Share[]> shares_;
  int threads_ = 0, capacity_ = 0;
};

}  // namespace capstan::kernels
