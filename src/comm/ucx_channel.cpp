// The sending half and the loop that drives an exchange.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "comm/ucx_mesh.h"

namespace capstan::comm {
namespace {

using Clock = std::chrono::steady_clock;

// Turns without any progress after which the lifelines are looked at: they cost a system call each.
constexpr int kTurnsPerLook = 500;
// What a node that has left sent before comes soon or never.
constexpr auto kLeftGrace = std::chrono::milliseconds(1000);
// Between looks at a peer that has left or broken, or left a gap, while asleep.
constexpr int kWatchMilliseconds = 20;

}  // namespace

/// A flow on its way.
struct UcxChannel::Running {
  Flow* flow = nullptr;
  UcxMesh::Peer* peer = nullptr;
  UcxMesh::Inbox* inbox = nullptr;
  UcxHeader header;      // of the next piece
  size_t send_left = 0;  // bytes
  bool posted = true;    // all of it
  bool sent = true;      // and UCX has let go of it
  bool received = true;

  bool done() const { return sent && received; }
};

UcxChannel::UcxChannel(UcxMesh* mesh, uint64_t key) : mesh_(mesh), key_(key) {
  wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  waker_ = mesh_->fate().add_waker([fd = wake_fd_] {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(fd, &one, sizeof(one));
  });
}

UcxChannel::~UcxChannel() {
  mesh_->fate().remove_waker(waker_);
  {
    const std::lock_guard lock(mesh_->mutex_);
    for (const auto& peer : mesh_->peers_) {
      if (peer == nullptr) continue;
      const auto found = peer->inboxes.find(key_);
      // Pieces that UCX still has count themselves off there.
      if (found != peer->inboxes.end() && found->second->outstanding == 0) {
        if (!found->second->used) --peer->unknown;
        peer->inboxes.erase(found);
      }
    }
  }
  if (wake_fd_ >= 0) close(wake_fd_);
}

UcxMesh::Inbox& UcxChannel::open(UcxMesh::Peer& peer) {
  const bool known = peer.inboxes.contains(key_);
  UcxMesh::Inbox& inbox = mesh_->inbox(peer, key_);
  if (!std::exchange(inbox.used, true) && known) --peer.unknown;
  return inbox;
}

void UcxChannel::begin(std::span<Flow> flows, std::vector<Running>& running) {
  const std::lock_guard lock(mesh_->mutex_);
  for (size_t i = 0; i < flows.size(); ++i) {
    Flow& flow = flows[i];
    Running& run = running[i];
    run.flow = &flow;
    run.peer = mesh_->peer(flow.node);
    run.inbox = &open(*run.peer);
    flow.sent = flow.received = 0;
    UcxMesh::Inbox& inbox = *run.inbox;
    inbox.wake_fd = wake_fd_;
    if (flow.receives) {
      run.received = false;
      inbox.expected = total_bytes(flow.recv);
      inbox.received.store(0);
      inbox.complete.store(false);
      inbox.flow = &flow;
      mesh_->take_early(flow.node, inbox);
    }
    if (flow.sends) {
      run.posted = run.sent = false;
      run.send_left = total_bytes(flow.send);
      run.header.channel = key_;
      run.header.sequence = inbox.frames_sent++;
      run.header.length = run.send_left;
    }
  }
}

bool UcxChannel::send_piece(Running& run) {
  UcxMesh::Inbox& inbox = *run.inbox;
  const size_t bytes = std::min(run.send_left, kUcxPieceBytes);
  if (!inbox.may_send(bytes)) return false;
  std::unique_ptr<UcxPiece> piece = mesh_->worker_->take_piece(bytes);
  for (std::byte* to = piece->memory.data(); piece->bytes < bytes;) {
    const iovec& from = run.flow->send.front();
    const size_t n = std::min(from.iov_len, bytes - piece->bytes);
    std::memcpy(to, from.iov_base, n);
    to += n;
    piece->bytes += n;
    consume(run.flow->send, n);
  }
  piece->header = run.header;
  piece->header.number = inbox.pieces_sent++;
  piece->header.consumed = inbox.reported = inbox.consumed;
  piece->outstanding = &inbox.outstanding;
  inbox.sent += bytes + kUcxPieceCost;
  run.header.offset += bytes;
  run.send_left -= bytes;
  run.flow->sent += bytes;
  run.posted = run.send_left == 0;
  mesh_->post(*run.peer, std::move(piece));
  return true;
}

/// One turn with the worker, unless somebody else has it, who then works for us as well.
bool UcxChannel::drive(std::vector<Running>& running) {
  const std::unique_lock lock(mesh_->mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return false;
  bool any = false;
  // Sent before received: what goes out first is on its way longer.
  for (Running& run : running) {
    if (!run.posted && send_piece(run)) any = true;
  }
  any = mesh_->worker_->progress() || any;
  for (Running& run : running) {
    if (!run.received) mesh_->take_early(run.flow->node, *run.inbox);  // room allowing
    if (run.flow->receives) mesh_->credit(*run.peer, *run.inbox, key_);
    if (!run.sent && run.posted && run.inbox->outstanding == 0) {
      run.sent = true;
      any = true;
    }
  }
  return any;
}

/// Whether the flow has received anything since the last time.
bool UcxChannel::update(Running& run) {
  if (run.received) return false;
  run.received = run.inbox->complete.load(std::memory_order_acquire);
  const auto received = static_cast<size_t>(run.inbox->received.load(std::memory_order_acquire));
  const bool any = run.received || received != run.flow->received;
  run.flow->received = received;
  return any;
}

/// With the lock held: fails the group if one of the flows waits for somebody who has left.
void UcxChannel::give_up_on_left(std::vector<Running>& running) {
  for (Running& run : running) {
    UcxMesh::Peer& peer = *run.peer;
    if (!peer.left || run.done()) continue;
    const bool late = Clock::now() - peer.since > kLeftGrace;
    const bool all_here = peer.broken || peer.pieces_received >= peer.goodbye.pieces;
    if (late ||
        (all_here && (!run.posted || (!run.received && !run.inbox->complete.load() &&
                                      (run.flow->room == nullptr || run.inbox->early.empty()))))) {
      mesh_->left_group(peer.link.node);
    }
  }
}

bool UcxChannel::exchange(std::span<Flow> flows, Patience patience, const Progress& progress) {
  if (mesh_->fate().failed()) return false;
  std::vector<Running> running(flows.size());
  begin(flows, running);
  Waiter waiter(mesh_->crowded(), patience);
  int idle = 0;
  for (;;) {
    bool moved = drive(running);
    bool done = true;
    for (Running& run : running) {
      moved = update(run) || moved;
      done = done && run.done();
    }
    if (moved && progress) {
      for (Running& run : running) progress(*run.flow);
    }
    if (mesh_->fate().failed() || done) break;
    if (moved) {
      idle = 0;
      continue;
    }
    if (waiter.is_long()) {
      sleep(running);
    } else {
      waiter.relax();
      if (++idle % kTurnsPerLook != 0) continue;
      const std::lock_guard lock(mesh_->mutex_);
      mesh_->watch();
      give_up_on_left(running);
    }
  }
  const bool ok = !mesh_->fate().failed();
  const std::lock_guard lock(mesh_->mutex_);
  for (Running& run : running) {
    // The memory that the flows name is about to be the caller's again.
    if (run.inbox->flow == run.flow) run.inbox->flow = nullptr;
    if (ok && run.flow->receives) mesh_->credit(*run.peer, *run.inbox, key_);
  }
  return ok;
}

void UcxChannel::sleep(std::vector<Running>& running) {
  std::vector<pollfd> fds = {{wake_fd_, POLLIN, 0}, {mesh_->worker_->event_fd(), POLLIN, 0}};
  // Without a descriptor of its own (none left) abort() cannot wake us.
  int timeout = wake_fd_ >= 0 ? -1 : 10;
  {
    const std::lock_guard lock(mesh_->mutex_);
    for (const Running& run : running) {
      UcxMesh::Inbox& inbox = *run.inbox;
      const bool sends = !run.posted ? inbox.may_send(std::min(run.send_left, kUcxPieceBytes))
                                     : !run.sent && inbox.outstanding == 0;
      if (sends) return;
      // Another group's thread took up pieces: credit is due, or room.
      if (!run.received && (inbox.complete.load() || inbox.received.load() != run.flow->received)) {
        return;
      }
    }
    if (mesh_->worker_->progress() || !mesh_->worker_->arm()) return;
    for (Running& run : running) run.inbox->sleeping = !run.done();
    for (const auto& peer : mesh_->peers_) {
      if (peer == nullptr) continue;
      // The end of one is the end of all, also of those who wait for nothing from it.
      if (!peer->left && !peer->closed) fds.push_back({peer->link.fd, POLLIN | POLLRDHUP, 0});
      const bool gap = std::any_of(peer->inboxes.begin(), peer->inboxes.end(),
                                   [](const auto& at) { return at.second->skips_a_frame(); });
      if (peer->left || peer->broken || gap) timeout = kWatchMilliseconds;
    }
  }
  if (!mesh_->fate().failed()) poll(fds.data(), fds.size(), timeout);
  {
    const std::lock_guard lock(mesh_->mutex_);
    for (Running& run : running) run.inbox->sleeping = false;
    mesh_->worker_->progress();
    mesh_->watch();
    give_up_on_left(running);
  }
  uint64_t rung = 0;
  [[maybe_unused]] const ssize_t n = ::read(wake_fd_, &rung, sizeof(rung));
}

}  // namespace capstan::comm
