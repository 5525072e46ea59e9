// The mesh over UCX, for networks with RDMA.
//
// Frames go through UCX in pieces (active messages); the links of the rendezvous stay open as
// lifelines: a link that closes without a goodbye is a dead peer, at once, whatever UCX knows of
// it. The links also carried the addresses of the workers and a secret for each, so only the
// group's members are listened to.
//
// The worker is driven by the rank that waits, and by one at a time: all of it is guarded by one
// lock. What memory UCX may touch: ucx_worker.h.
//
// Credit: a channel may have so many bytes on their way to a node that its channel there has not
// consumed yet (kUcxWindow); those that come before anybody waits are kept aside, so no channel can
// block another. What was consumed goes back with the next piece, or in a message of its own when a
// quarter of the window is due. The receiver counts as well: a peer that sends beyond its credit,
// or on more channels than a group ever has that are not open here, ends the group, so the memory
// that a peer can claim is bounded whatever it does.
//
// Order: pieces of a channel may overtake each other, so their numbers are compared with how many
// have come. As soon as nothing is on its way any more, or after some seconds in which UCX brought
// nothing, a gap is an error that names what came and what was due; a repetition always is.
#pragma once

#include <chrono>
#include <deque>
#include <utility>

#include "comm/mesh.h"
#include "comm/ucx_worker.h"

namespace capstan::comm {

/// Bytes on their way from a channel to one node: eight pieces.
inline constexpr uint64_t kUcxWindow = uint64_t{8} * kUcxPieceBytes;
/// What a piece counts beside its bytes, so that empty frames are bounded as well.
inline constexpr uint64_t kUcxPieceCost = 256;
/// Channels that a peer may send on before they are open here.
inline constexpr size_t kUcxUnknownChannels = 256;

class UcxMesh final : public Mesh, private UcxHandler {
 public:
  /// Collective over all nodes of `topology`, which are connected by `links`. Owns the links, and
  /// closes them on failure too. kUnavailable, on every node, when one has no UCX or finds no way
  /// to another.
  static Result<std::shared_ptr<Mesh>> make(const Topology& topology, std::vector<NodeLink> links,
                                            bool crowded, std::shared_ptr<Fate> fate);
  /// Takes at most some seconds, whatever became of the peers.
  ~UcxMesh() override;

  std::string_view transport() const override { return "ucx"; }

 protected:
  std::shared_ptr<Channel> make_channel(uint64_t key) override;

 private:
  friend class UcxChannel;

  /// One channel's traffic with one node. Guarded by mutex_, the atomics apart.
  struct Inbox {
    struct Early {
      uint64_t length = 0;  // of its frame
      std::vector<std::byte> bytes;
      size_t used = 0;
    };
    // Receiving.
    Flow* flow = nullptr;  // of the operation that waits
    size_t expected = 0;   // bytes of that flow
    uint64_t frame = 0;    // number of the next frame, or of the one that is being taken
    uint64_t taken = 0;    // bytes of it
    bool begun = false;
    std::map<std::pair<uint64_t, uint64_t>, Early> early;  // by frame and offset
    std::atomic<uint64_t> received{0};                     // bytes of the frame for `flow`
    std::atomic<bool> complete{false};
    uint64_t consumed = 0;    // in all
    uint64_t reported = 0;    // to the sender
    uint64_t announced = 0;   // bytes and costs of the pieces that came or are coming
    uint64_t pieces = 0;      // that have come
    uint64_t pieces_due = 0;  // as many were sent at least
    // A gap that was seen: the frame and the byte that are missing, and since when.
    std::pair<uint64_t, uint64_t> gap;
    std::chrono::steady_clock::time_point gap_seen;
    bool used = false;  // its channel is open here
    // Sending.
    uint64_t frames_sent = 0;
    uint64_t pieces_sent = 0;
    uint64_t sent = 0;         // bytes and costs of pieces
    uint64_t credited = 0;     // of them: consumed there
    uint32_t outstanding = 0;  // pieces that UCX has not let go of
    // Its thread waits in poll().
    bool sleeping = false;
    int wake_fd = -1;

    bool may_send(uint64_t bytes) const {
      return sent - credited + bytes + kUcxPieceCost <= kUcxWindow;
    }
    /// What is due is missing, and something later is here.
    bool has_gap() const;
    bool skips_a_frame() const;
  };

  /// The last word on a link.
  struct Goodbye {
    static constexpr uint64_t kMagic = 0x31455942'53504143;  // "CAPSBYE1"
    uint64_t magic = kMagic;
    uint64_t pieces = 0;  // sent in all: so many are still to come through UCX, or have come
  };

  struct Peer {
    NodeLink link;
    std::map<uint64_t, std::unique_ptr<Inbox>> inboxes;
    uint64_t pieces_sent = 0;
    uint64_t pieces_received = 0;
    size_t unknown = 0;  // inboxes of channels that are not open here
    Goodbye goodbye;
    size_t goodbye_bytes = 0;
    bool greeted = false;  // its first message came through UCX
    bool left = false;     // said goodbye
    bool closed = false;   // nothing more can come through the link
    bool broken = false;   // UCX has lost it
    std::string why;
    std::chrono::steady_clock::time_point since;  // of `left` or `broken`
  };

  UcxMesh(const Topology& topology, std::vector<NodeLink> links, bool crowded,
          std::shared_ptr<Fate> fate);
  Status connect(const Topology& topology, const std::vector<NodeLink>& links);
  Status wire_up(const std::vector<NodeLink>& links);

  Peer* peer(int node);
  Inbox& inbox(Peer& peer, uint64_t key);
  void post(Peer& peer, std::unique_ptr<UcxPiece> piece);
  void credit(Peer& peer, Inbox& inbox, uint64_t key);
  /// Hands bytes of the frame in turn to the flow that waits, as far as there is room; how many.
  size_t take(int node, Inbox& inbox, uint64_t length, const std::byte* data, size_t bytes);
  void take_early(int node, Inbox& inbox);
  /// Fails the group: `got` is the frame and the byte that came instead of those that are due.
  void out_of_order(int node, const Inbox& inbox, std::pair<uint64_t, uint64_t> got);
  void watch_gap(int node, Inbox& inbox);
  void wake(Inbox& inbox);
  /// Reads the link: a goodbye, or a loss.
  void look(Peer& peer);
  /// look()s at all, and gives up those whom UCX has lost, or who leave gaps, for a while.
  void watch();

  bool announced(const UcxHeader& header, size_t bytes) override;
  void arrived(const UcxHeader& header, const std::byte* data, size_t bytes) override;
  void posted_done(int node, uint64_t channel) override;
  void broken(int node, const std::string& why) override;

  const int node_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Peer>> peers_;  // by node; null for this one
  std::unique_ptr<UcxWorker> worker_;
};

class UcxChannel final : public Channel {
 public:
  UcxChannel(UcxMesh* mesh, uint64_t key);
  ~UcxChannel() override;
  UcxChannel(const UcxChannel&) = delete;
  UcxChannel& operator=(const UcxChannel&) = delete;

  [[nodiscard]] bool exchange(std::span<Flow> flows, Patience patience,
                              const Progress& progress) override;

 private:
  struct Running;
  /// Its inbox of that node.
  UcxMesh::Inbox& open(UcxMesh::Peer& peer);
  void begin(std::span<Flow> flows, std::vector<Running>& running);
  bool drive(std::vector<Running>& running);
  bool send_piece(Running& run);
  bool update(Running& run);
  void give_up_on_left(std::vector<Running>& running);
  void sleep(std::vector<Running>& running);

  UcxMesh* const mesh_;
  const uint64_t key_;
  int wake_fd_ = -1;
  int waker_ = -1;
};

}  // namespace capstan::comm
