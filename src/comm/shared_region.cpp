#include "comm/shared_region.h"

#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <utility>

#include "comm/shared_wait.h"

namespace capstan::comm {
namespace {

constexpr size_t kPage = 4096;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

size_t lines_bytes(int ranks) {
  return round_up(sizeof(RegionHead) + sizeof(RegionLine) * static_cast<size_t>(ranks), kPage);
}

// Not FUTEX_PRIVATE_FLAG: the word may lie in memory of several processes.
void futex(std::atomic<uint32_t>& word, int op, uint32_t value) {
  static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), op, value, nullptr, nullptr, 0);
}

void ring(RegionHead& head) {
  head.bell.fetch_add(1);
  futex(head.bell, FUTEX_WAKE, INT32_MAX);
}

}  // namespace

size_t region_bytes(int ranks, size_t buffer_bytes) {
  return lines_bytes(ranks) + static_cast<size_t>(ranks) * 2 * round_up(buffer_bytes, kPage);
}

RegionView region_at(std::byte* base, int ranks, size_t buffer_bytes) {
  // Zeroes are the initial state of all members, so that every process may "construct" them.
  static_assert(std::is_trivially_destructible_v<RegionHead>);
  static_assert(std::is_trivially_destructible_v<RegionLine>);
  RegionView view;
  view.head = reinterpret_cast<RegionHead*>(base);
  view.lines = reinterpret_cast<RegionLine*>(base + sizeof(RegionHead));
  view.buffers = base + lines_bytes(ranks);
  view.buffer_bytes = round_up(buffer_bytes, kPage);
  view.ranks = ranks;
  return view;
}

RegionView make_private_region(int ranks, size_t buffer_bytes) {
  const size_t bytes = region_bytes(ranks, buffer_bytes);
  // Mapped, not from the heap: zeroed, and each rank's pages come to be where that rank runs.
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return {};
  RegionView view = region_at(static_cast<std::byte*>(base), ranks, buffer_bytes);
  view.memory = std::shared_ptr<void>(base, [bytes](void* p) { munmap(p, bytes); });
  return view;
}

Port::Port(RegionView region, int rank, std::shared_ptr<Fate> fate)
    : region_(std::move(region)), rank_(rank), fate_(std::move(fate)) {
  waker_ = fate_->add_waker([head = region_.head] { ring(*head); });
}

Port::~Port() {
  fate_->remove_waker(waker_);
  region_.lines[rank_].left.store(1);
  ring(*region_.head);
}

bool Port::begin(Patience patience) {
  if (fate_->failed()) return false;
  ++round_;
  if (met_ + 1 >= round_) return true;
  for (int r = 0; r < region_.ranks; ++r) {
    if (r != rank_ && !wait(r, round_ - 1, patience)) return false;
  }
  met_ = round_ - 1;
  return true;
}

void Port::post() {
  // Sequentially consistent, as is the load of `sleepers`: a sleeper announces itself before it
  // looks at `posted` for the last time, so one of the two sees the other.
  region_.lines[rank_].posted.store(round_);
  if (region_.head->sleepers.load() != 0) ring(*region_.head);
}

bool Port::await(int rank, Patience patience) {
  return rank == rank_ || wait(rank, round_, patience);
}

bool Port::await_all(Patience patience) {
  for (int r = 0; r < region_.ranks; ++r) {
    if (r != rank_ && !wait(r, round_, patience)) return false;
  }
  met_ = round_;
  return true;
}

bool Port::wait(int rank, uint64_t round, Patience patience) {
  const RegionLine& line = region_.lines[rank];
  if (line.posted.load(std::memory_order_acquire) >= round) return true;
  RegionHead& head = *region_.head;
  Waiter waiter(region_.crowded, patience);
  for (;;) {
    if (line.posted.load(std::memory_order_acquire) >= round) return true;
    if (fate_->failed()) return false;
    if (line.left.load(std::memory_order_acquire) != 0) {
      if (line.posted.load(std::memory_order_acquire) >= round) return true;
      fate_->fail(unavailable(region_.names[rank] + " has left the group"));
      return false;
    }
    if (!waiter.is_long()) {
      waiter.relax();
      continue;
    }
    head.sleepers.fetch_add(1);
    const uint32_t before = head.bell.load();
    if (line.posted.load() < round && !fate_->failed() && line.left.load() == 0) {
      futex(head.bell, FUTEX_WAIT, before);
    }
    head.sleepers.fetch_sub(1);
  }
}

bool Port::offer(Offer offer) {
  if (!begin()) return false;
  // Nobody reads the last operation's offer any more: it ended with a meet().
  region_.lines[rank_].offer = offer;
  post();
  return await_all();
}

bool Port::touch() {
  region_.lines[rank_].touching.store(1);
  if (!fate_->failed()) return true;
  untouch();
  return false;
}

void Port::retreat() {
  Waiter waiter(region_.crowded, Patience::kStep);
  for (int r = 0; r < region_.ranks; ++r) {
    while (r != rank_ && region_.lines[r].touching.load() != 0) waiter.relax();
  }
}

}  // namespace capstan::comm
