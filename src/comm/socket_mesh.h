// Frames between this process and those of the other nodes, over one stream socket to each.
//
// Nobody owns a thread here: the rank that waits for data reads the socket, without blocking, and
// hands on what is meant for others. Several groups (channels) of the same processes share the
// sockets; each frame names its channel and its number in it, so that ranks that disagree on what
// comes next get an error and not each other's bytes. A frame for a channel that does not wait yet
// is kept aside; so no order in which groups work can block another.
//
// An operation is a set of flows, at most one frame each way with each node. All progress together:
// a frame larger than the sockets' buffers streams in both directions at once.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
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

  // Bytes of the frame that the kernel took over, and that have come.
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
};

/// Before every frame. Both ends are x86-64 or AArch64: little-endian.
struct FrameHeader {
  static constexpr uint64_t kMagic = 0x31544144'53504143;  // "CAPSDAT1"
  /// The last frame of a process that ends its communicators in order, on no channel.
  static constexpr uint64_t kGoodbye = ~uint64_t{0};
  uint64_t magic = kMagic;
  uint64_t channel = 0;
  uint64_t sequence = 0;  // frames of this channel in this direction before this one
  uint64_t length = 0;    // bytes after the header
};

/// Drops the first `bytes` bytes.
void consume(std::vector<iovec>& vectors, size_t bytes);

class Channel;

class Mesh {
 public:
  /// Connected, non-blocking sockets; `links` are closed with the mesh.
  Mesh(std::vector<NodeLink> links, int ranks_per_node, bool crowded, std::shared_ptr<Fate> fate);
  ~Mesh();
  Mesh(const Mesh&) = delete;
  Mesh& operator=(const Mesh&) = delete;

  /// The channel named `key`, which each of `users` ranks of this process asks for once.
  std::shared_ptr<Channel> channel(uint64_t key, int users);

  /// "rank 8 (node 1, host b)", by its first rank.
  std::string name(int node) const;
  int ranks_per_node() const { return ranks_per_node_; }
  bool crowded() const { return crowded_; }
  Fate& fate() { return *fate_; }
  const std::shared_ptr<Fate>& shared_fate() const { return fate_; }

 private:
  friend class Channel;

  /// Where frames of one channel from one node go. Guarded by Link::receiving, `received` apart.
  struct Inbox {
    struct Early {
      std::vector<std::byte> bytes;
      size_t filled = 0;
    };
    uint64_t arrived = 0;  // frames whose header has come
    Flow* flow = nullptr;  // of the operation that waits
    size_t expected = 0;   // bytes of that flow
    bool begun = false;    // its frame is the one being read
    std::deque<Early> early;
    std::atomic<uint64_t> received{0};  // bytes of the frame for `flow`
    std::atomic<bool> complete{false};
    bool sleeping = false;  // its thread waits in poll()
    int wake_fd = -1;
  };

  struct Link {
    NodeLink to;
    std::mutex sending;    // held from a frame's first byte to its last
    std::mutex receiving;  // all below
    std::map<uint64_t, std::unique_ptr<Inbox>> inboxes;
    std::vector<std::byte> buffer;  // read ahead of the parser: [begin, end)
    size_t begin = 0;
    size_t end = 0;
    Inbox* current = nullptr;  // receiver of the frame being read
    uint64_t current_left = 0;
    bool left = false;  // said goodbye
  };

  Link& link(int node) { return *links_[static_cast<size_t>(node)]; }
  Inbox& inbox(Link& link, uint64_t key);
  /// Reads what is there; stops early when `mine` is complete and `beyond` is not set. True if
  /// anything came. With `receiving` held.
  bool read(Link& link, const Inbox* mine, bool beyond);
  bool read_some(Link& link, void* into, size_t bytes, size_t* got);
  bool read_payload(Link& link);
  bool accept_header(Link& link, const FrameHeader& header);
  void finish_frame(Link& link);
  void take_early(Inbox& inbox);
  void complete(Inbox& inbox);
  void lost(const Link& link, const std::string& how);
  void lost(const Link& link, const char* call, int error);
  void confused(const Link& link, const std::string& what);

  std::vector<std::unique_ptr<Link>> links_;  // by node; null for this one
  const int ranks_per_node_;
  const bool crowded_;
  const std::shared_ptr<Fate> fate_;
  std::mutex channels_mutex_;
  struct Pending {
    std::shared_ptr<Channel> channel;
    int missing = 0;
  };
  std::map<uint64_t, Pending> channels_;
};

/// One group's frames. Used by one thread at a time (whose predecessor has handed over).
class Channel {
 public:
  Channel(Mesh* mesh, uint64_t key);
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  /// Called whenever a flow got on, from the thread that exchanges.
  using Progress = std::function<void(const Flow&)>;

  /// Runs all flows to their ends; at most one flow per node. False: the group has failed.
  [[nodiscard]] bool exchange(std::span<Flow> flows, Patience patience = Patience::kStep,
                              const Progress& progress = {});

 private:
  struct Running;
  bool try_send(Running& run);
  bool try_receive(Running& run, bool stuck);
  void sleep(std::vector<Running>& running);

  Mesh* const mesh_;  // its users keep it alive; the mesh keeps channels that not all have fetched
  const uint64_t key_;
  std::vector<uint64_t> sent_frames_;  // by node
  int wake_fd_ = -1;
  int waker_ = -1;
};

}  // namespace capstan::comm
