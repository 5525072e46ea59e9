// Collective operations among the ranks of one server.
//
// A rank is one shard of the model: a thread with its own op table and compute threads. Ranks
// [node * per_node, (node + 1) * per_node) live in the process of that node. All ranks call the
// same operations in the same order with the same sizes; each rank uses its Communicator from one
// thread (abort() apart).
//
// Sums are reproducible: every rank gets the same bits, and the order in which an element's parts
// are added depends on the topology alone, never on the position of the element, the size of the
// call or on who came first. The batch invariance of kernels/ops.h rests on it.
//
// Waiting spins while a step is in flight; receive_message() sleeps when nothing comes for a while.
// There are no timeouts here: a slow rank is waited for. Who is dead is the business of
// comm/group.h, which calls abort().
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace capstan::comm {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// The way the bytes go, for logs: "shared memory", "shared memory + tcp", "ucx" ...
  virtual std::string_view transport() const = 0;

  // Errors of all operations: kUnavailable when a peer's connection broke or abort() was called,
  // with the rank and host in the message; the communicator is of no use afterwards. Counts may be
  // 0; sizes that do not fit each other are the caller's bug and undefined between ranks.

  /// data[i] becomes the sum over ranks, in place. F32, F16, BF16 (added in float32, rounded once),
  /// I32, I64. `count` elements, any alignment that the type has.
  virtual Status all_reduce(void* data, int64_t count, DType dtype) = 0;
  /// Each rank gives `bytes`; recv holds size() * bytes, in the order of ranks. send may be this
  /// rank's place in recv.
  virtual Status all_gather(const void* send, void* recv, int64_t bytes) = 0;
  /// send holds size() * count elements; recv gets the sum over ranks of part rank(). Types as
  /// all_reduce.
  virtual Status reduce_scatter(const void* send, void* recv, int64_t count, DType dtype) = 0;
  /// Part r of send (size() * bytes) goes to rank r; recv gets one part of each rank. No overlap.
  virtual Status all_to_all(const void* send, void* recv, int64_t bytes) = 0;
  virtual Status broadcast(void* data, int64_t bytes, int root) = 0;
  /// Parts of different sizes come together at `root`, in the order of ranks: bytes[r] from rank r,
  /// known to all. recv is used at the root alone.
  virtual Status gather(const void* send, void* recv, std::span<const int64_t> bytes, int root) = 0;
  virtual Status barrier() = 0;

  /// Rank 0 sends a message of any size to all others, which wait for it in receive_message(): the
  /// start of a step. Receivers spin for a while and then sleep; the span is valid until the next
  /// call of any operation.
  virtual Status send_message(std::span<const std::byte> message) = 0;
  virtual Result<std::span<const std::byte>> receive_message() = 0;

  /// Ends all operations of this process's ranks, running and later, with `why`, at once. From any
  /// thread; the first call counts.
  virtual void abort(const Error& why) = 0;

  /// A communicator among some of the ranks (ascending, this one among them), who all call it
  /// together. Its ranks are numbered by place in `ranks`. It shares the fate of this one.
  virtual Result<std::unique_ptr<Communicator>> subgroup(std::span<const int> ranks) = 0;
};

/// Ranks of one process that talk through its memory; element i is rank i's.
std::vector<std::unique_ptr<Communicator>> make_local_group(int ranks);

/// Connected byte streams to the other nodes' processes, as the rendezvous made them.
struct NodeLink {
  int node = -1;
  int fd = -1;       // a stream socket; the communicator owns and closes it
  std::string host;  // for messages
};

struct Topology {
  int nodes = 1;
  int node = 0;            // this process
  int ranks_per_node = 1;  // of every node
  /// Not empty when all nodes are processes of one host and agreed to use shared memory: the name
  /// of the segment (shm_open), made by node 0, the same on all.
  std::string shared_memory;
  /// Instead, whether tensors go through UCX; the links are its lifelines. The same on all nodes.
  bool ucx = false;
  /// For UCX: the network interface that the links were bound to; empty: none was chosen.
  std::string interface;
};

/// The communicators of this process's ranks, in their order. Collective over all nodes. Takes the
/// links, one to each other node. kInvalidArgument when the nodes' topologies differ or ask for UCX
/// where it was not built in; kUnavailable when a connection broke or UCX does not work.
Result<std::vector<std::unique_ptr<Communicator>>> make_group(const Topology& topology,
                                                              std::vector<NodeLink> links);

}  // namespace capstan::comm
