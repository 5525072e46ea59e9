// The mesh over one stream socket to each other node.
//
// The rank that waits for data reads the sockets, without blocking. A frame larger than their
// buffers streams in both directions at once.
#pragma once

#include <deque>

#include "comm/mesh.h"

namespace capstan::comm {

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

class SocketMesh final : public Mesh {
 public:
  /// Connected, non-blocking sockets; `links` are closed with the mesh.
  SocketMesh(std::vector<NodeLink> links, int ranks_per_node, bool crowded,
             std::shared_ptr<Fate> fate);
  ~SocketMesh() override;

  std::string_view transport() const override { return "tcp"; }

 protected:
  std::shared_ptr<Channel> make_channel(uint64_t key) override;

 private:
  friend class SocketChannel;

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

  std::vector<std::unique_ptr<Link>> links_;  // by node; null for this one
};

class SocketChannel final : public Channel {
 public:
  SocketChannel(SocketMesh* mesh, uint64_t key);
  ~SocketChannel() override;
  SocketChannel(const SocketChannel&) = delete;
  SocketChannel& operator=(const SocketChannel&) = delete;

  [[nodiscard]] bool exchange(std::span<Flow> flows, Patience patience,
                              const Progress& progress) override;

 private:
  struct Running;
  bool try_send(Running& run);
  bool try_receive(Running& run, bool stuck);
  void sleep(std::vector<Running>& running);

  SocketMesh* const mesh_;
  const uint64_t key_;
  std::vector<uint64_t> sent_frames_;  // by node
  int wake_fd_ = -1;
  int waker_ = -1;
};

}  // namespace capstan::comm
