// The receiving half, and what channels share.
#include "comm/socket_mesh.h"

#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace capstan::comm {
namespace {

// Read ahead at the start of a frame: header and small payloads in one call. Larger payloads are
// read into their place.
constexpr size_t kReadAhead = 16 << 10;
// One read of a large payload; see kSendPiece.
constexpr size_t kReadPiece = 512 << 10;
constexpr int kMaxVectors = 64;

}  // namespace

SocketMesh::SocketMesh(std::vector<NodeLink> links, int ranks_per_node, bool crowded,
                       std::shared_ptr<Fate> fate)
    : Mesh(links, ranks_per_node, crowded, std::move(fate)) {
  for (NodeLink& to : links) {
    if (static_cast<int>(links_.size()) <= to.node) links_.resize(static_cast<size_t>(to.node) + 1);
    auto link = std::make_unique<Link>();
    link->buffer.resize(kReadAhead);
    const auto node = static_cast<size_t>(to.node);
    link->to = std::move(to);
    links_[node] = std::move(link);
  }
}

SocketMesh::~SocketMesh() {
  drop_channels();
  FrameHeader goodbye;
  goodbye.channel = FrameHeader::kGoodbye;
  for (const auto& link : links_) {
    if (link == nullptr) continue;
    if (!fate().failed()) {
      [[maybe_unused]] const ssize_t n =
          send(link->to.fd, &goodbye, sizeof(goodbye), MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    close(link->to.fd);
  }
}

std::shared_ptr<Channel> SocketMesh::make_channel(uint64_t key) {
  return std::make_shared<SocketChannel>(this, key);
}

SocketMesh::Inbox& SocketMesh::inbox(Link& link, uint64_t key) {
  std::unique_ptr<Inbox>& place = link.inboxes[key];
  if (place == nullptr) place = std::make_unique<Inbox>();
  return *place;
}

bool SocketMesh::read_some(Link& link, void* into, size_t bytes, size_t* got) {
  const ssize_t n = recv(link.to.fd, into, bytes, MSG_DONTWAIT);
  *got = n > 0 ? static_cast<size_t>(n) : 0;
  if (n > 0) return true;
  if (link.left) return false;
  if (n == 0) {
    lost(link.to.node, "was closed");
  } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
    lost(link.to.node, "recv", errno);
  }
  return false;
}

bool SocketMesh::read(Link& link, const Inbox* mine, bool beyond) {
  bool any = false;
  while (!fate().failed()) {
    // What was read ahead must be handed on all the same: poll() would not tell its receiver.
    const bool more = link.current != nullptr ? link.begin < link.end
                                              : link.end - link.begin >= sizeof(FrameHeader);
    if (!more && !beyond && mine->complete.load(std::memory_order_relaxed)) break;
    if (link.current != nullptr) {
      if (!read_payload(link)) break;
      any = true;
      // The caller adds and sends between the pieces of a large frame.
      if (link.current != nullptr && link.begin == link.end) break;
      continue;
    }
    if (link.end - link.begin < sizeof(FrameHeader)) {
      std::memmove(link.buffer.data(), link.buffer.data() + link.begin, link.end - link.begin);
      link.end -= link.begin;
      link.begin = 0;
      size_t got = 0;
      if (!read_some(link, link.buffer.data() + link.end, link.buffer.size() - link.end, &got)) {
        break;
      }
      any = true;
      link.end += got;
      if (link.end < sizeof(FrameHeader)) continue;
    }
    FrameHeader header;
    std::memcpy(&header, link.buffer.data() + link.begin, sizeof(header));
    link.begin += sizeof(header);
    if (!accept_header(link, header)) break;
  }
  return any;
}

bool SocketMesh::accept_header(Link& link, const FrameHeader& header) {
  if (header.magic != FrameHeader::kMagic) {
    confused(link.to.node, "bytes that are no frame: the connection is out of step");
    return false;
  }
  if (header.channel == FrameHeader::kGoodbye) {
    link.left = true;
    return false;
  }
  Inbox& to = inbox(link, header.channel);
  if (header.sequence != to.arrived) {
    wrong_sequence(link.to.node, header.sequence, to.arrived);
    return false;
  }
  const bool expected = to.flow != nullptr && to.early.empty() && !to.begun;
  if (header.length > kLongestKept && (!expected || to.flow->any != nullptr)) {
    unasked(link.to.node, header.length);
    return false;
  }
  ++to.arrived;
  link.current = &to;
  link.current_left = header.length;
  if (expected) {
    Flow& flow = *to.flow;
    if (flow.any != nullptr) {
      flow.make_room(header.length);
      to.expected = header.length;
    } else if (header.length != to.expected) {
      wrong_length(link.to.node, header.length, to.expected);
      return false;
    }
    to.begun = true;
  } else {
    to.early.push_back({std::vector<std::byte>(header.length), 0});
  }
  if (header.length == 0) finish_frame(link);
  return true;
}

bool SocketMesh::read_payload(Link& link) {
  Inbox& to = *link.current;
  iovec vectors[kMaxVectors];
  int n = 0;
  const bool direct = to.begun;
  const size_t ahead = link.end - link.begin;
  auto want =
      static_cast<size_t>(std::min<uint64_t>(link.current_left, ahead > 0 ? ahead : kReadPiece));
  if (direct && to.flow->room != nullptr) {
    want = std::min(want, to.flow->room->load() - to.received.load(std::memory_order_relaxed));
    if (want == 0) return false;
  }
  if (direct) {
    size_t sum = 0;
    for (size_t i = 0; i < to.flow->recv.size() && n < kMaxVectors && sum < want; ++i) {
      vectors[n] = to.flow->recv[i];
      vectors[n].iov_len = std::min(vectors[n].iov_len, want - sum);
      sum += vectors[n++].iov_len;
    }
  } else {
    Inbox::Early& early = to.early.back();
    vectors[n++] = {early.bytes.data() + early.filled, want};
  }
  size_t got = 0;
  if (ahead > 0) {
    for (int i = 0; i < n; ++i) {
      std::memcpy(vectors[i].iov_base, link.buffer.data() + link.begin, vectors[i].iov_len);
      link.begin += vectors[i].iov_len;
      got += vectors[i].iov_len;
    }
  } else if (n == 1) {
    if (!read_some(link, vectors[0].iov_base, vectors[0].iov_len, &got)) return false;
  } else {
    msghdr message{};
    message.msg_iov = vectors;
    message.msg_iovlen = static_cast<size_t>(n);
    const ssize_t bytes = recvmsg(link.to.fd, &message, MSG_DONTWAIT);
    if (bytes == 0) lost(link.to.node, "was closed");
    if (bytes < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
      lost(link.to.node, "recvmsg", errno);
    }
    if (bytes <= 0) return false;
    got = static_cast<size_t>(bytes);
  }
  link.current_left -= got;
  if (direct) {
    consume(to.flow->recv, got);
    to.received.store(to.received.load(std::memory_order_relaxed) + got, std::memory_order_release);
  } else {
    to.early.back().filled += got;
  }
  if (link.current_left == 0) finish_frame(link);
  return true;
}

void SocketMesh::finish_frame(Link& link) {
  Inbox& to = *link.current;
  link.current = nullptr;
  if (to.begun) {
    complete(to);
  } else {
    take_early(to);
  }
}

void SocketMesh::complete(Inbox& inbox) {
  inbox.begun = false;
  inbox.flow = nullptr;
  inbox.complete.store(true, std::memory_order_release);
  if (inbox.sleeping) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(inbox.wake_fd, &one, sizeof(one));
  }
}

/// Hands the oldest frame that was kept aside, once it is whole, to the flow that waits; as much of
/// it as there is room for.
void SocketMesh::take_early(Inbox& inbox) {
  if (inbox.flow == nullptr || inbox.early.empty()) return;
  Inbox::Early& early = inbox.early.front();
  const size_t size = early.bytes.size();
  if (early.filled < size) return;
  Flow& flow = *inbox.flow;
  if (flow.any != nullptr) {
    flow.make_room(size);
  } else if (size != inbox.expected) {
    wrong_length(flow.node, size, inbox.expected);
    return;
  }
  size_t taken = inbox.received.load(std::memory_order_relaxed);
  const size_t until = flow.room != nullptr ? std::min(size, flow.room->load()) : size;
  while (taken < until) {
    const size_t n = std::min(flow.recv.front().iov_len, until - taken);
    std::memcpy(flow.recv.front().iov_base, early.bytes.data() + taken, n);
    consume(flow.recv, n);
    taken += n;
  }
  inbox.received.store(taken, std::memory_order_release);
  if (taken < size) return;
  inbox.early.pop_front();
  complete(inbox);
}

}  // namespace capstan::comm
