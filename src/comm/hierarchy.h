// Collectives among ranks of several nodes: the ranks of each node work through its memory, and one
// of them exchanges with the other nodes.
//
// Sums: the ranks of a node are added in order, then the nodes' sums in order, whatever the size.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/local_communicator.h"
#include "comm/mesh.h"

namespace capstan::comm {

/// The ranks of a group that live on one node; they follow each other.
struct NodeRanks {
  int node = 0;   // of the topology
  int first = 0;  // rank within the group
  int count = 0;
};

/// What the communicators of one process and group have in common.
struct HierarchyPlace {
  std::vector<NodeRanks> nodes;  // ascending; at least two
  size_t mine = 0;               // index of this process's
  std::vector<int> world;        // the topology's number of each rank
  std::shared_ptr<Mesh> mesh;    // before `channel`, which uses it to its end
  std::shared_ptr<Channel> channel;
  std::shared_ptr<RegionSource> source;
  std::function<std::string(int)> rank_name;  // by the topology's number
  uint64_t key = 0;
};

class alignas(128) HierarchyCommunicator final : public Communicator {
 public:
  /// `region` is that of this node's ranks; `local` this rank's place among them.
  HierarchyCommunicator(HierarchyPlace place, RegionView region, int local);

  int rank() const override { return here().first + local_.rank(); }
  int size() const override { return place_.nodes.back().first + place_.nodes.back().count; }
  std::string_view transport() const override {
    return local_.size() > 1 ? shared_transport_ : place_.mesh->transport();
  }

  Status all_reduce(void* data, int64_t count, DType dtype) override;
  Status all_gather(const void* send, void* recv, int64_t bytes) override;
  Status reduce_scatter(const void* send, void* recv, int64_t count, DType dtype) override;
  Status all_to_all(const void* send, void* recv, int64_t bytes) override;
  Status broadcast(void* data, int64_t bytes, int root) override;
  Status gather(const void* send, void* recv, std::span<const int64_t> bytes, int root) override;
  Status barrier() override;
  Status send_message(std::span<const std::byte> message) override;
  Result<std::span<const std::byte>> receive_message() override;
  void abort(const Error& why) override { fate().fail(why); }
  Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> ranks) override;

 private:
  const NodeRanks& here() const { return place_.nodes[place_.mine]; }
  bool leads() const { return local_.rank() == 0; }
  Fate& fate() const { return place_.mesh->fate(); }
  Port& port() { return local_.port(); }
  Status finish(bool ok) const;
  size_t node_of(int rank) const;  // index into nodes
  /// What a node's sum is kept and sent in.
  DType partial_type(DType dtype) const;

  // Each returns false when the group has failed.
  bool reduce_small(std::byte* data, int64_t count, DType dtype);
  bool reduce_large(std::byte* data, int64_t count, DType dtype);
  /// Of the rank that leads: the sum over nodes of `partial`, which is used up, in `out`. They may
  /// be the same memory when `type` and `dtype` are the same.
  bool sum_nodes(std::byte* partial, DType type, std::byte* out, DType dtype, int64_t count);
  bool sum_nodes_at_once(std::byte* partial, DType type, std::byte* out, DType dtype,
                         int64_t count);
  bool sum_nodes_by_slices(std::byte* partial, DType type, std::byte* out, DType dtype,
                           int64_t count);
  /// The sum over local ranks of the tensors they offered, this rank's slice of it, into `sum`.
  bool sum_local_slice(const std::function<const void*(int)>& part, int64_t count, DType dtype,
                       std::byte* sum, DType type);
  std::vector<Flow> flows() const;  // one to each other node
  size_t flow_index(size_t node) const { return node < place_.mine ? node : node - 1; }

  HierarchyPlace place_;
  std::string shared_transport_;  // "shared memory + tcp"
  SubgroupKeys keys_;
  std::vector<const void*> parts_;
  AlignedBuffer partial_;
  AlignedBuffer incoming_;
  AlignedBuffer message_;
  LocalCommunicator local_;
};

/// Makes the communicator of a group's rank on any number of nodes: `ranks` are the topology's
/// numbers, `rank` one of them and of this process.
Result<std::unique_ptr<Communicator>> make_hierarchy(std::span<const int> ranks, int rank,
                                                     int ranks_per_node, std::shared_ptr<Mesh> mesh,
                                                     std::shared_ptr<RegionSource> source,
                                                     bool crowded,
                                                     std::function<std::string(int)> rank_name,
                                                     uint64_t key);

}  // namespace capstan::comm
