// The sending half and the loop that drives an exchange.
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "comm/socket_mesh.h"

namespace capstan::comm {
namespace {

// One send of a large frame: reading must take turns with writing, but each turn has its price.
// all_reduce of 458,752 floats between two cores on loopback, with as large reads: 64 KiB 896 us,
// 128 KiB 765 us, 256 KiB 757 us, 512 KiB 715 us, where an exchange without a sum takes 650 us.
constexpr size_t kSendPiece = 512 << 10;
constexpr int kMaxVectors = 64;

}  // namespace

/// A flow on its way.
struct SocketChannel::Running {
  Flow* flow = nullptr;
  SocketMesh::Link* link = nullptr;
  SocketMesh::Inbox* inbox = nullptr;
  FrameHeader header;
  size_t header_left = 0;
  size_t send_left = 0;  // of the payload
  std::unique_lock<std::mutex> sending;
  bool sent = true;
  bool received = true;
};

SocketChannel::SocketChannel(SocketMesh* mesh, uint64_t key) : mesh_(mesh), key_(key) {
  sent_frames_.resize(mesh_->links_.size());
  wake_fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  waker_ = mesh_->fate().add_waker([fd = wake_fd_] {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(fd, &one, sizeof(one));
  });
}

SocketChannel::~SocketChannel() {
  mesh_->fate().remove_waker(waker_);
  for (const auto& link : mesh_->links_) {
    if (link == nullptr) continue;
    const std::lock_guard lock(link->receiving);
    const auto found = link->inboxes.find(key_);
    if (found == link->inboxes.end() || link->current == found->second.get()) continue;
    link->inboxes.erase(found);
  }
  if (wake_fd_ >= 0) close(wake_fd_);
}

bool SocketChannel::try_send(Running& run) {
  if (!run.sending.owns_lock() && !run.sending.try_lock()) return false;
  iovec vectors[kMaxVectors];
  int n = 0;
  size_t sum = 0;
  if (run.header_left > 0) {
    auto* header = reinterpret_cast<std::byte*>(&run.header);
    vectors[n++] = {header + sizeof(FrameHeader) - run.header_left, run.header_left};
  }
  for (size_t i = 0; i < run.flow->send.size() && n < kMaxVectors && sum < kSendPiece; ++i) {
    vectors[n] = run.flow->send[i];
    vectors[n].iov_len = std::min(vectors[n].iov_len, kSendPiece - sum);
    sum += vectors[n++].iov_len;
  }
  msghdr message{};
  message.msg_iov = vectors;
  message.msg_iovlen = static_cast<size_t>(n);
  const ssize_t bytes = sendmsg(run.link->to.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (bytes < 0) {
    if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR && errno != ENOBUFS) {
      mesh_->lost(run.link->to.node, "sendmsg", errno);
    }
    return false;
  }
  auto gone = static_cast<size_t>(bytes);
  const size_t of_header = std::min(gone, run.header_left);
  run.header_left -= of_header;
  gone -= of_header;
  consume(run.flow->send, gone);
  run.flow->sent += gone;
  run.send_left -= gone;
  if (run.header_left == 0 && run.send_left == 0) {
    run.sent = true;
    run.sending.unlock();
  }
  return true;
}

bool SocketChannel::try_receive(Running& run, bool stuck) {
  bool any = false;
  {
    std::unique_lock lock(run.link->receiving, std::try_to_lock);
    // Whoever holds it reads for us as well.
    if (lock.owns_lock()) {
      if (!run.received) mesh_->take_early(*run.inbox);  // the rest of a frame, room allowing
      any = mesh_->read(*run.link, run.inbox, stuck);
      if (run.link->left && !run.received && !run.inbox->complete.load()) {
        mesh_->left_group(run.link->to.node);
      }
    }
  }
  if (run.received) return any;
  const auto received = static_cast<size_t>(run.inbox->received.load(std::memory_order_acquire));
  any = any || received != run.flow->received;
  run.flow->received = received;
  run.received = run.inbox->complete.load(std::memory_order_acquire);
  if (run.received) {
    run.flow->received = static_cast<size_t>(run.inbox->received.load(std::memory_order_acquire));
    any = true;
  }
  return any;
}

bool SocketChannel::exchange(std::span<Flow> flows, Patience patience, const Progress& progress) {
  if (mesh_->fate().failed()) return false;
  std::vector<Running> running(flows.size());
  for (size_t i = 0; i < flows.size(); ++i) {
    Flow& flow = flows[i];
    Running& run = running[i];
    run.flow = &flow;
    run.link = &mesh_->link(flow.node);
    run.sending = std::unique_lock(run.link->sending, std::defer_lock);
    flow.sent = flow.received = 0;
    {
      const std::lock_guard lock(run.link->receiving);
      run.inbox = &mesh_->inbox(*run.link, key_);
      if (flow.receives) {
        run.received = false;
        run.inbox->expected = total_bytes(flow.recv);
        run.inbox->received.store(0);
        run.inbox->complete.store(false);
        run.inbox->flow = &flow;
        run.inbox->wake_fd = wake_fd_;
        mesh_->take_early(*run.inbox);
      }
    }
    if (flow.sends) {
      run.sent = false;
      run.send_left = total_bytes(flow.send);
      run.header.channel = key_;
      run.header.sequence = sent_frames_[static_cast<size_t>(flow.node)]++;
      run.header.length = run.send_left;
      run.header_left = sizeof(FrameHeader);
    }
  }

  Waiter waiter(mesh_->crowded(), patience);
  bool ok = true;
  for (;;) {
    bool done = true;
    bool moved = false;
    for (Running& run : running) {
      if (run.sent && run.received) continue;
      const bool sent = !run.sent && try_send(run);
      // With the send stuck, frames for others may be what the peer is stuck with.
      const bool received =
          (!run.received || !sent) && try_receive(run, !run.sent && !sent && run.received);
      if (sent || received) {
        moved = true;
        if (progress) progress(*run.flow);
      }
      done = done && run.sent && run.received;
    }
    if (mesh_->fate().failed()) {
      ok = false;
      break;
    }
    if (done) break;
    if (moved) continue;
    if (waiter.is_long()) {
      sleep(running);
    } else {
      waiter.relax();
    }
  }
  if (!ok) {
    // The memory that the flows name is about to be the caller's again.
    for (Running& run : running) {
      const std::lock_guard lock(run.link->receiving);
      if (run.inbox->flow == run.flow) run.inbox->flow = nullptr;
      if (run.inbox->begun && run.link->current == run.inbox) run.link->current = nullptr;
      run.inbox->begun = false;
    }
  }
  return ok;
}

void SocketChannel::sleep(std::vector<Running>& running) {
  std::vector<pollfd> fds = {{wake_fd_, POLLIN, 0}};
  bool ready = false;
  int timeout =
      wake_fd_ >= 0 ? -1 : 10;  // without one (no descriptors left) abort() cannot wake us
  for (Running& run : running) {
    if (run.sent && run.received) continue;
    const std::lock_guard lock(run.link->receiving);
    run.inbox->sleeping = true;
    ready = ready || (!run.received && run.inbox->complete.load());
    short events = POLLIN;
    if (!run.sent && run.sending.owns_lock()) events |= POLLOUT;
    // Another group's frame is going out; its thread does not know of us.
    if (!run.sent && !run.sending.owns_lock()) timeout = 1;
    fds.push_back({run.link->to.fd, events, 0});
  }
  // Nothing is due from the others, but the end of one is the end of all.
  std::vector<SocketMesh::Link*> idle;
  const size_t first_idle = fds.size();
  for (const auto& link : mesh_->links_) {
    const auto uses = [&](const Running& run) {
      return run.link == link.get() && !(run.sent && run.received);
    };
    if (link == nullptr || std::any_of(running.begin(), running.end(), uses)) continue;
    const std::lock_guard lock(link->receiving);
    if (link->left) continue;
    idle.push_back(link.get());
    fds.push_back({link->to.fd, POLLRDHUP, 0});
  }
  if (!ready && !mesh_->fate().failed()) poll(fds.data(), fds.size(), timeout);
  for (size_t i = 0; i < idle.size(); ++i) {
    if (fds[first_idle + i].revents == 0) continue;
    const std::lock_guard lock(idle[i]->receiving);
    mesh_->read(*idle[i], nullptr, true);  // to its end: a goodbye or a loss
  }
  for (Running& run : running) {
    const std::lock_guard lock(run.link->receiving);
    run.inbox->sleeping = false;
  }
  uint64_t rung = 0;
  [[maybe_unused]] const ssize_t n = ::read(wake_fd_, &rung, sizeof(rung));
}

}  // namespace capstan::comm
