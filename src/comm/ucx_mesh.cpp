// Credit that is given, the lifelines, and how a mesh ends.
#include "comm/ucx_mesh.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

namespace capstan::comm {
namespace {

using Clock = std::chrono::steady_clock;

// A peer's end shows on its link, too; only a network that UCX has lost alone does not.
constexpr auto kBrokenGrace = std::chrono::milliseconds(300);
// UCX delivers or breaks; a piece that it let go of comes long before.
constexpr auto kGapGrace = std::chrono::seconds(5);
// For the others to say goodbye as well.
constexpr auto kFarewell = std::chrono::milliseconds(20);
// For what was sent to leave this process: a slow network or peer must not lose the end of it.
constexpr auto kFlushing = std::chrono::milliseconds(2000);
constexpr auto kClosing = std::chrono::milliseconds(2000);

}  // namespace

UcxMesh::UcxMesh(const Topology& topology, std::vector<NodeLink> links, bool crowded,
                 std::shared_ptr<Fate> fate)
    : Mesh(links, topology.ranks_per_node, crowded, std::move(fate)), node_(topology.node) {
  peers_.resize(static_cast<size_t>(topology.nodes));
  for (NodeLink& link : links) {
    auto& place = peers_[static_cast<size_t>(link.node)];
    place = std::make_unique<Peer>();
    place->link = std::move(link);
  }
}

UcxMesh::~UcxMesh() {
  drop_channels();
  const auto close_links = [this] {
    for (const auto& peer : peers_) {
      if (peer == nullptr || peer->link.fd < 0) continue;
      ::close(std::exchange(peer->link.fd, -1));
      peer->closed = true;
    }
  };
  if (worker_ != nullptr && !fate().failed()) {
    for (const auto& peer : peers_) {
      if (peer == nullptr || peer->closed) continue;
      Goodbye goodbye;
      goodbye.pieces = peer->pieces_sent;
      [[maybe_unused]] const ssize_t n =
          send(peer->link.fd, &goodbye, sizeof(goodbye), MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    const auto start = Clock::now();
    bool flushed = false;
    for (bool waits = true; waits;) {
      worker_->progress();
      flushed = flushed || worker_->flushed();
      bool gone = true;
      for (const auto& peer : peers_) {
        if (peer == nullptr) continue;
        look(*peer);
        gone = gone && (peer->left || peer->closed);
      }
      const auto passed = Clock::now() - start;
      waits = (!flushed && passed < kFlushing) || (!gone && passed < kFarewell);
      std::this_thread::yield();
    }
  } else {
    close_links();  // the others need not wait for what follows
  }
  if (worker_ != nullptr) worker_->close(kClosing);
  close_links();
}

std::shared_ptr<Channel> UcxMesh::make_channel(uint64_t key) {
  return std::make_shared<UcxChannel>(this, key);
}

UcxMesh::Peer* UcxMesh::peer(int node) { return peers_[static_cast<size_t>(node)].get(); }

UcxMesh::Inbox& UcxMesh::inbox(Peer& peer, uint64_t key) {
  std::unique_ptr<Inbox>& place = peer.inboxes[key];
  if (place == nullptr) place = std::make_unique<Inbox>();
  return *place;
}

void UcxMesh::wake(Inbox& inbox) {
  if (!inbox.sleeping) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(inbox.wake_fd, &one, sizeof(one));
}

void UcxMesh::post(Peer& peer, std::unique_ptr<UcxPiece> piece) {
  ++peer.pieces_sent;
  piece->node = peer.link.node;
  piece->header.node = node_;
  worker_->post(std::move(piece));
}

void UcxMesh::credit(Peer& peer, Inbox& inbox, uint64_t key) {
  if (inbox.consumed - inbox.reported < kUcxWindow / 4) return;
  std::unique_ptr<UcxPiece> piece = worker_->take_piece(0);
  piece->header.kind = UcxHeader::kCredit;
  piece->header.channel = key;
  piece->header.consumed = inbox.reported = inbox.consumed;
  post(peer, std::move(piece));
}

void UcxMesh::posted_done(int node, uint64_t channel) {
  auto& inboxes = peer(node)->inboxes;
  if (const auto found = inboxes.find(channel); found != inboxes.end()) wake(*found->second);
}

void UcxMesh::broken(int node, const std::string& why) {
  Peer* const lost_one = peer(node);
  if (lost_one == nullptr) return;
  lost_one->broken = true;
  lost_one->why = why;
  lost_one->since = Clock::now();
  // Whoever sleeps has to see when the grace is over.
  for (const auto& [key, inbox] : lost_one->inboxes) wake(*inbox);
}

void UcxMesh::look(Peer& peer) {
  if (peer.closed) return;
  auto* const into = reinterpret_cast<std::byte*>(&peer.goodbye);
  std::byte surplus;
  const bool whole = peer.goodbye_bytes == sizeof(Goodbye);
  const ssize_t n = recv(peer.link.fd, whole ? &surplus : into + peer.goodbye_bytes,
                         whole ? 1 : sizeof(Goodbye) - peer.goodbye_bytes, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
  if (n <= 0) {
    const int error = errno;
    peer.closed = true;
    if (peer.left) return;
    if (n == 0) {
      lost(peer.link.node, "was closed");
    } else {
      lost(peer.link.node, "recv", error);
    }
    return;
  }
  peer.goodbye_bytes += whole ? 0 : static_cast<size_t>(n);
  if (whole || (peer.goodbye_bytes == sizeof(Goodbye) && peer.goodbye.magic != Goodbye::kMagic)) {
    confused(peer.link.node, "bytes that are no frame: the connection is out of step");
    return;
  }
  if (peer.goodbye_bytes < sizeof(Goodbye)) return;
  peer.left = true;
  peer.since = Clock::now();
  for (const auto& [key, inbox] : peer.inboxes) wake(*inbox);
}

void UcxMesh::watch() {
  for (const auto& peer : peers_) {
    if (peer == nullptr) continue;
    look(*peer);
    if (peer->broken && !peer->left && Clock::now() - peer->since > kBrokenGrace) {
      lost(peer->link.node, "broke (UCX: " + peer->why + ")");
    }
    for (const auto& [key, inbox] : peer->inboxes) watch_gap(peer->link.node, *inbox);
  }
}

/// A frame begins when UCX has let go of all of the one before, so one that lacks pieces while the
/// next has come has lost them. Pieces of one frame wait for the sender's CPU and may take long.
void UcxMesh::watch_gap(int node, Inbox& inbox) {
  if (!inbox.skips_a_frame()) {
    inbox.gap_seen = {};
    return;
  }
  const std::pair due(inbox.frame, inbox.taken);
  if (inbox.gap_seen == Clock::time_point() || inbox.gap != due) {
    inbox.gap = due;
    inbox.gap_seen = Clock::now();
    return;
  }
  // This process may have been stopped meanwhile, and what is missing may be here.
  if (Clock::now() - inbox.gap_seen < kGapGrace || worker_->progress()) return;
  if (inbox.skips_a_frame() && inbox.gap == std::pair(inbox.frame, inbox.taken)) {
    out_of_order(node, inbox, inbox.early.begin()->first);
  }
}

}  // namespace capstan::comm
