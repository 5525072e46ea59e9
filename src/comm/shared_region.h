// Memory through which ranks of one host exchange data: a line of state and two buffers per rank.
//
// Ranks work in rounds. In each round a rank may fill its buffer of the round (round % 2), posts
// the round's number, and reads the buffers of others that have posted it. Two rules make two
// buffers enough and any other handshake needless:
//   - who posts round k has read all that it wanted of the rounds before k;
//   - who fills a buffer for round k has seen that all have posted round k - 1 (begin() waits).
// So a buffer is overwritten only when all are past the round it was last filled in. All ranks post
// every round, those with nothing to give as well.
//
// The region is the heap of one process or a mapping shared by several. Ranks of one process may
// also read and write each other's tensors directly: lines carry their addresses (`offer`).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator_fate.h"

namespace capstan::comm {

/// How long a wait spins before it sleeps.
enum class Patience : uint8_t {
  kStep,  // inside a step: practically always
  kIdle,  // for the next step: sleeps soon
};

/// Addresses that a rank offers to the other ranks of its process for one operation.
struct Offer {
  const void* send = nullptr;
  void* recv = nullptr;
  void* work = nullptr;  // of the rank that speaks for its node
};

/// The state of one rank. 128 bytes: x86 prefetches lines in pairs.
struct alignas(128) RegionLine {
  std::atomic<uint64_t> posted{0};    // rounds
  std::atomic<uint32_t> left{0};      // its communicator is gone
  std::atomic<uint32_t> touching{0};  // reads or writes tensors of other ranks
  Offer offer;                        // written before the round is posted
};

/// Shared by all ranks of the region; rarely written.
struct alignas(128) RegionHead {
  std::atomic<uint32_t> sleepers{0};
  std::atomic<uint32_t> bell{0};  // futex word
};

/// What a rank needs to know of its region; the memory behind it is kept alive by `memory`.
struct RegionView {
  std::shared_ptr<void> memory;
  RegionHead* head = nullptr;
  RegionLine* lines = nullptr;   // [ranks]
  std::byte* buffers = nullptr;  // [ranks][2][buffer_bytes]
  size_t buffer_bytes = 0;       // a multiple of 4096
  int ranks = 0;
  bool one_process = true;         // addresses may be offered
  bool crowded = false;            // more ranks than CPUs on this host
  std::vector<std::string> names;  // of the ranks, for messages: "rank 3 (node 1, host b)"
};

/// Bytes of memory (aligned to 4096) that region_at() lays out.
size_t region_bytes(int ranks, size_t buffer_bytes);
/// The region at `base`, which is region_bytes() of zeroes or laid out by another process before.
RegionView region_at(std::byte* base, int ranks, size_t buffer_bytes);
/// A region in this process's own memory. Null `memory` if there is none to be had.
RegionView make_private_region(int ranks, size_t buffer_bytes);

/// One rank's way into a region. Used by one thread.
class Port {
 public:
  Port(RegionView region, int rank, std::shared_ptr<Fate> fate);
  ~Port();
  Port(const Port&) = delete;
  Port& operator=(const Port&) = delete;

  int rank() const { return rank_; }
  int ranks() const { return region_.ranks; }
  bool one_process() const { return region_.one_process; }
  bool crowded() const { return region_.crowded; }
  size_t buffer_bytes() const { return region_.buffer_bytes; }
  Fate& fate() { return *fate_; }

  // All waits return false when the group has failed; Fate::error() says why.

  /// Starts a round: the buffer may be filled.
  [[nodiscard]] bool begin(Patience patience = Patience::kStep);
  /// This round's buffer of `rank`.
  std::byte* buffer(int rank) {
    return region_.buffers + (static_cast<size_t>(rank) * 2 + (round_ & 1)) * region_.buffer_bytes;
  }
  void post();
  [[nodiscard]] bool await(int rank, Patience patience = Patience::kStep);
  [[nodiscard]] bool await_all(Patience patience = Patience::kStep);
  /// A round without data: all have come.
  [[nodiscard]] bool meet() {
    if (!begin()) return false;
    post();
    return await_all();
  }

  /// A round in which addresses are offered instead of data. The operation ends with a meet(),
  /// after which nobody may use them.
  [[nodiscard]] bool offer(Offer offer);
  const Offer& offered(int rank) const { return region_.lines[rank].offer; }
  /// Around all use of offered addresses. False: the group has failed, do not touch.
  [[nodiscard]] bool touch();
  void untouch() { region_.lines[rank_].touching.store(0, std::memory_order_release); }
  /// After a failure, before an operation returns that offered addresses: nobody uses them any
  /// more. Waits at most as long as others take to notice.
  void retreat();

 private:
  bool wait(int rank, uint64_t round, Patience patience);

  RegionView region_;
  const int rank_;
  std::shared_ptr<Fate> fate_;
  int waker_;
  uint64_t round_ = 0;
  uint64_t met_ = 0;  // the last round that all were seen to have posted
};

}  // namespace capstan::comm
