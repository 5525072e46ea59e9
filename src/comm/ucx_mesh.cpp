// The receiving half, the lifelines, and how a mesh ends.
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

void UcxMesh::arrived(const UcxHeader& header, const std::byte* data, size_t bytes) {
  Peer* const from = peer(header.node);
  if (from == nullptr) return;
  ++from->pieces_received;
  if (header.kind == UcxHeader::kHello) {
    from->greeted = true;
    return;
  }
  if (header.kind == UcxHeader::kCredit && !from->inboxes.contains(header.channel)) return;
  Inbox& to = inbox(*from, header.channel);
  if (header.consumed > to.credited) {
    to.credited = header.consumed;
    wake(to);
  }
  if (header.kind == UcxHeader::kCredit || fate().failed()) return;
  const int node = header.node;
  if (header.sequence < to.frame || (header.sequence == to.frame && header.offset < to.taken)) {
    wrong_sequence(node, header.sequence, to.frame);
    return;
  }
  // Whatever flow it is for: pieces of later frames may come first.
  const bool sized = to.flow != nullptr && to.flow->any == nullptr && header.sequence == to.frame;
  if (header.length > kLongestKept && !sized) {
    unasked(node, header.length);
    return;
  }
  if (header.offset > header.length || bytes > header.length - header.offset) {
    confused(node, "a piece beyond the end of its frame");
    return;
  }
  size_t used = 0;
  if (to.flow != nullptr && to.early.empty() && header.sequence == to.frame &&
      header.offset == to.taken) {
    used = take(node, to, header.length, data, bytes);
    if (used == bytes) {
      to.consumed += kUcxPieceCost;
      return;
    }
  }
  Inbox::Early& kept = to.early[{header.sequence, header.offset + used}];
  kept.length = header.length;
  kept.bytes.assign(data + used, data + bytes);
  kept.used = 0;
  take_early(node, to);
}

size_t UcxMesh::take(int node, Inbox& inbox, uint64_t length, const std::byte* data, size_t bytes) {
  Flow& flow = *inbox.flow;
  if (!inbox.begun) {
    if (flow.any != nullptr) {
      flow.make_room(length);
      inbox.expected = length;
    }
    inbox.begun = true;
  }
  if (length != inbox.expected) {  // also of a later piece
    wrong_length(node, length, inbox.expected);
    return bytes;
  }
  const uint64_t until =
      flow.room != nullptr ? std::min<uint64_t>(length, flow.room->load()) : length;
  size_t done = 0;
  while (done < bytes && inbox.taken < until) {
    const auto n = static_cast<size_t>(
        std::min<uint64_t>({flow.recv.front().iov_len, bytes - done, until - inbox.taken}));
    std::memcpy(flow.recv.front().iov_base, data + done, n);
    consume(flow.recv, n);
    done += n;
    inbox.taken += n;
  }
  inbox.consumed += done;
  inbox.received.store(inbox.taken, std::memory_order_release);
  if (inbox.taken < length) {
    // Whoever sleeps has to give the sender credit, and to make room.
    if (done > 0) wake(inbox);
    return done;
  }
  ++inbox.frame;
  inbox.taken = 0;
  inbox.begun = false;
  inbox.flow = nullptr;
  inbox.complete.store(true, std::memory_order_release);
  wake(inbox);
  return done;
}

void UcxMesh::take_early(int node, Inbox& inbox) {
  while (inbox.flow != nullptr && !inbox.early.empty() && !fate().failed()) {
    const auto first = inbox.early.begin();
    Inbox::Early& kept = first->second;
    if (first->first.first != inbox.frame || first->first.second + kept.used != inbox.taken) return;
    kept.used += take(node, inbox, kept.length, kept.bytes.data() + kept.used,
                      kept.bytes.size() - kept.used);
    if (kept.used < kept.bytes.size()) return;
    inbox.consumed += kUcxPieceCost;
    inbox.early.erase(first);
  }
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
  }
}

}  // namespace capstan::comm
