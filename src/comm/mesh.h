// Frames between this process and those of the other nodes, whatever carries them: stream sockets
// (socket_mesh.h) or UCX (ucx_mesh.h).
//
// Several groups (channels) of the same processes share a mesh; each frame names its channel and
// its number in it, so that ranks that disagree on what comes next get an error and not each
// other's bytes. A frame for a channel that does not wait yet is kept aside; so no order in which
// groups work can block another.
//
// An operation is a set of flows, at most one frame each way with each node. All progress together.
// Nobody owns a thread here: the rank that waits for data drives the mesh, and hands on what is
// meant for others.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "comm/communicator_fate.h"
#include "comm/shared_wait.h"
#include "tensor/tensor.h"

namespace capstan::comm {

/// What goes to and comes from one node in an operation. Vectors are consumed from the front.
struct Flow {
  int node = -1;
  bool sends = false;  // a frame goes out, of size 0 if `send` is empty
  bool receives = false;
  std::vector<iovec> send;
  std::vector<iovec> recv;
  /// Instead of `recv`: a frame of any size, into a buffer that grows.
  AlignedBuffer* any = nullptr;
  size_t any_bytes = 0;
  /// If set: no more than this many bytes may come so far; raised by the operation's progress.
  const std::atomic<size_t>* room = nullptr;

  // Bytes of the frame that the transport took over, and that have come.
  size_t sent = 0;
  size_t received = 0;

  void add_send(const void* data, size_t bytes) {
    sends = true;
    if (bytes > 0) send.push_back({const_cast<void*>(data), bytes});
  }
  void add_recv(void* data, size_t bytes) {
    receives = true;
    if (bytes > 0) recv.push_back({data, bytes});
  }
  /// A frame of `bytes` comes for `any`.
  void make_room(size_t bytes) {
    if (any->bytes() < bytes) *any = AlignedBuffer(bytes * 2);
    any_bytes = bytes;
    recv.clear();
    if (bytes > 0) recv.push_back({any->data(), bytes});
  }
};

/// Drops the first `bytes` bytes.
void consume(std::vector<iovec>& vectors, size_t bytes);
size_t total_bytes(const std::vector<iovec>& vectors);

/// No message is as large; a length beyond is garbage, not a reason to allocate.
inline constexpr uint64_t kLongestKept = uint64_t{4} << 30;

/// One group's frames. Used by one thread at a time (whose predecessor has handed over).
class Channel {
 public:
  virtual ~Channel() = default;

  /// Called whenever a flow got on, from the thread that exchanges.
  using Progress = std::function<void(const Flow&)>;

  /// Runs all flows to their ends; at most one flow per node. False: the group has failed. Either
  /// way nothing uses the memory that the flows name any more.
  [[nodiscard]] virtual bool exchange(std::span<Flow> flows, Patience patience = Patience::kStep,
                                      const Progress& progress = {}) = 0;
};

class Mesh {
 public:
  /// Names are those of `links`.
  Mesh(const std::vector<NodeLink>& links, int ranks_per_node, bool crowded,
       std::shared_ptr<Fate> fate);
  virtual ~Mesh() = default;
  Mesh(const Mesh&) = delete;
  Mesh& operator=(const Mesh&) = delete;

  /// The channel named `key`, which each of `users` ranks of this process asks for once. They keep
  /// the mesh alive; the mesh keeps channels that not all have fetched.
  std::shared_ptr<Channel> channel(uint64_t key, int users);

  /// The way of the bytes, for logs: "tcp", "ucx".
  virtual std::string_view transport() const = 0;
  /// "rank 8 (node 1, host b)", by its first rank.
  std::string name(int node) const;
  int ranks_per_node() const { return ranks_per_node_; }
  bool crowded() const { return crowded_; }
  Fate& fate() { return *fate_; }
  const std::shared_ptr<Fate>& shared_fate() const { return fate_; }

 protected:
  virtual std::shared_ptr<Channel> make_channel(uint64_t key) = 0;
  /// The first act of a destructor: channels that not all have fetched use the mesh to their end.
  void drop_channels() { channels_.clear(); }

  // Each fails the group, in the same words for every transport.

  /// "rank 8 (node 1, host b): its connection was closed"
  void lost(int node, const std::string& how);
  void lost(int node, const char* call, int error);
  /// "rank 8 (node 1, host b) sent bytes that are no frame"
  void confused(int node, const std::string& what);
  void wrong_length(int node, uint64_t got, uint64_t due);
  void wrong_sequence(int node, uint64_t got, uint64_t due);
  void unasked(int node, uint64_t bytes);
  void left_group(int node) { lost(node, "was closed: it has left the group"); }

 private:
  struct Pending {
    std::shared_ptr<Channel> channel;
    int missing = 0;
  };

  std::vector<std::string> hosts_;  // by node
  const int ranks_per_node_;
  const bool crowded_;
  const std::shared_ptr<Fate> fate_;
  std::mutex channels_mutex_;
  std::map<uint64_t, Pending> channels_;
};

}  // namespace capstan::comm
