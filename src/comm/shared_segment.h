// One piece of memory for all ranks of a group whose nodes are processes of one host.
//
// Node 0 makes it, the others map it, and then its name is taken away: whatever becomes of the
// processes, nothing is left behind. It holds the region of the whole group and room for those of
// subgroups.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "comm/communicator.h"
#include "comm/local_communicator.h"
#include "comm/shared_region.h"

namespace capstan::comm {

class SharedSegment : public RegionSource, public std::enable_shared_from_this<SharedSegment> {
 public:
  /// Collective over the nodes of `topology`, which have greeted each other over `links`. Takes the
  /// links: from now on they only tell who is alive.
  static Result<std::shared_ptr<SharedSegment>> make(const Topology& topology,
                                                     std::vector<NodeLink> links,
                                                     std::shared_ptr<Fate> fate);
  SharedSegment(void* base, size_t bytes, const Topology& topology, std::vector<NodeLink> links,
                std::shared_ptr<Fate> fate);
  ~SharedSegment() override;
  SharedSegment(const SharedSegment&) = delete;
  SharedSegment& operator=(const SharedSegment&) = delete;

  /// Of the whole group.
  RegionView region();
  Result<RegionView> region(uint64_t key, int ranks) override;
  /// What a group of so many ranks takes: 2.6 MiB per rank.
  static size_t bytes_for(int ranks);

 private:
  struct Head;
  struct Entry;

  Head* head() const { return static_cast<Head*>(base_); }
  RegionView main_region() const;
  bool lock();
  void unlock();
  void leave(Entry& entry);
  /// Waits for the end of another process, in its own thread.
  void watch();

  void* const base_;
  const size_t bytes_;
  const Topology topology_;
  const std::vector<NodeLink> links_;
  const std::shared_ptr<Fate> fate_;
  int stop_fd_ = -1;
  std::thread watcher_;
};

}  // namespace capstan::comm
