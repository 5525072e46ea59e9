// Collectives among ranks of one host, through a region of shared memory.
//
// Tensors up to a few kilobytes go through the ranks' buffers in one round, and everybody adds all
// parts itself. Large ones: ranks of one process use each other's tensors in place (Port::offer);
// ranks of several processes stream them through the buffers, each summing its slice.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/shared_region.h"
#include "tensor/tensor.h"

namespace capstan::comm {

/// Gives the members of a subgroup the same new region.
class RegionSource {
 public:
  virtual ~RegionSource() = default;
  /// `key` is the same for all members, and for no other subgroup; each of `ranks` members calls
  /// once. Names are left to the caller.
  virtual Result<RegionView> region(uint64_t key, int ranks) = 0;
};

/// Regions in the memory of this process.
class PrivateRegionSource final : public RegionSource {
 public:
  Result<RegionView> region(uint64_t key, int ranks) override;

 private:
  struct Pending {
    RegionView view;
    int missing = 0;
  };
  std::mutex mutex_;
  std::map<uint64_t, Pending> pending_;
};

/// Buffer per rank and round of groups within a process. Large tensors bypass it.
inline constexpr size_t kPrivateBufferBytes = size_t{256} << 10;

/// Numbers for RegionSource::region(): the parent's key, the members, and how often the parent has
/// seen the same members before.
class SubgroupKeys {
 public:
  explicit SubgroupKeys(uint64_t own) : own_(own) {}
  uint64_t next(std::span<const int> ranks);

 private:
  uint64_t own_;
  std::map<std::vector<int>, uint64_t> seen_;
};

/// kInvalidArgument unless `ranks` ascend within [0, size) and hold `rank`; else rank's place.
Result<int> check_subgroup(std::span<const int> ranks, int rank, int size);

/// 128: the objects of two ranks must not meet in a cache line (0.59 us instead of 0.35 us).
class alignas(128) LocalCommunicator final : public Communicator {
 public:
  LocalCommunicator(RegionView region, int rank, std::shared_ptr<Fate> fate,
                    std::shared_ptr<RegionSource> source, uint64_t key);

  int rank() const override { return port_.rank(); }
  int size() const override { return port_.ranks(); }
  std::string_view transport() const override { return "shared memory"; }

  Status all_reduce(void* data, int64_t count, DType dtype) override;
  Status all_gather(const void* send, void* recv, int64_t bytes) override;
  Status reduce_scatter(const void* send, void* recv, int64_t count, DType dtype) override;
  Status all_to_all(const void* send, void* recv, int64_t bytes) override;
  Status broadcast(void* data, int64_t bytes, int root) override;
  Status gather(const void* send, void* recv, std::span<const int64_t> bytes, int root) override;
  Status barrier() override;
  Status send_message(std::span<const std::byte> message) override;
  Result<std::span<const std::byte>> receive_message() override;
  void abort(const Error& why) override { fate_->fail(why); }
  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> ranks) override;

  // For groups of several nodes, which build on the ranks of each.

  Port& port() { return port_; }
  /// Offers addresses to the other ranks of the process, lets use() work with theirs, and returns
  /// when nobody uses ours any more. False when use() returned false or the group has failed.
  template <class F>
  bool with_offers(Offer offer, F&& use) {
    bool ok = port_.offer(offer) && port_.touch();
    if (ok) {
      ok = use();
      port_.untouch();
    }
    ok = ok && port_.meet();
    if (!ok) port_.retreat();
    return ok;
  }

 private:
  // Each returns false when the group has failed.
  bool reduce_small(std::byte* data, int64_t count, DType dtype);
  bool reduce_staged(std::byte* data, int64_t count, DType dtype);
  bool reduce_in_place(std::byte* data, int64_t count, DType dtype);
  /// all_gather, and all_to_all (`stride` is `bytes`, else 0): part r of recv comes from rank r's
  /// send at stride * rank().
  bool collect(const std::byte* send, std::byte* recv, int64_t bytes, int64_t stride);
  Status finish(bool ok) const;

  std::vector<std::string> names_;
  std::shared_ptr<Fate> fate_;
  std::shared_ptr<RegionSource> source_;
  SubgroupKeys keys_;
  std::vector<const void*> parts_;
  AlignedBuffer message_;
  Port port_;
};

}  // namespace capstan::comm
