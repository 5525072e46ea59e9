#include "comm/communicator.h"

#include <algorithm>
#include <utility>

#include "comm/local_communicator.h"
#include "platform/cpu.h"

namespace capstan::comm {
namespace {

/// FNV-1a over whole numbers.
uint64_t mix(uint64_t hash, uint64_t value) { return (hash ^ value) * 0x100000001b3; }

}  // namespace

uint64_t SubgroupKeys::next(std::span<const int> ranks) {
  const uint64_t nth = seen_[std::vector<int>(ranks.begin(), ranks.end())]++;
  uint64_t key = mix(mix(0xcbf29ce484222325, own_), nth);
  for (const int r : ranks) key = mix(key, static_cast<uint64_t>(r) + 1);
  return key ^ (key >> 29);
}

Result<int> check_subgroup(std::span<const int> ranks, int rank, int size) {
  std::string list;
  bool fine = true;
  int place = -1;
  for (size_t i = 0; i < ranks.size(); ++i) {
    list += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
    fine = fine && ranks[i] >= 0 && ranks[i] < size && (i == 0 || ranks[i] > ranks[i - 1]);
    if (ranks[i] == rank) place = static_cast<int>(i);
  }
  if (fine && place >= 0) return place;
  return invalid_argument(
      "rank " + std::to_string(rank) + " of " + std::to_string(size) + " asked for the subgroup {" +
      list + "}: " +
      (fine ? "it must be a member itself"
            : "ranks must ascend and lie between 0 and " + std::to_string(size - 1)));
}

Result<RegionView> PrivateRegionSource::region(uint64_t key, int ranks) {
  const std::lock_guard lock(mutex_);
  auto found = pending_.find(key);
  if (found == pending_.end()) {
    RegionView view = make_private_region(ranks, kPrivateBufferBytes);
    if (view.memory == nullptr) {
      return resource_exhausted("no memory for the exchange buffers of " + std::to_string(ranks) +
                                " ranks");
    }
    found = pending_.emplace(key, Pending{std::move(view), ranks}).first;
  }
  RegionView view = found->second.view;
  if (--found->second.missing == 0) pending_.erase(found);
  return view;
}

std::vector<std::unique_ptr<Communicator>> make_local_group(int ranks) {
  RegionView region = make_private_region(ranks, kPrivateBufferBytes);
  if (region.memory == nullptr) throw std::bad_alloc();
  region.crowded = ranks > platform::usable_cpu_count();
  for (int r = 0; r < ranks; ++r) region.names.push_back("rank " + std::to_string(r));
  const auto fate = std::make_shared<Fate>();
  const auto source = std::make_shared<PrivateRegionSource>();
  std::vector<std::unique_ptr<Communicator>> group;
  for (int r = 0; r < ranks; ++r) {
    group.push_back(std::make_unique<LocalCommunicator>(region, r, fate, source, 0));
  }
  return group;
}

}  // namespace capstan::comm
