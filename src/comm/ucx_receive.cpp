// The receiving half: what a peer may send, and where it goes.
#include <algorithm>
#include <cstring>

#include "comm/ucx_mesh.h"

namespace capstan::comm {

bool UcxMesh::Inbox::has_gap() const {
  if (early.empty()) return false;
  const auto& [at, kept] = *early.begin();
  return at != std::pair(frame, taken - kept.used);
}

bool UcxMesh::Inbox::skips_a_frame() const {
  return used && has_gap() && early.rbegin()->first.first > frame;
}

void UcxMesh::out_of_order(int node, const Inbox& inbox, std::pair<uint64_t, uint64_t> got) {
  if (got.first != inbox.frame) return wrong_sequence(node, got.first, inbox.frame);
  confused(node, "byte " + std::to_string(got.second) + " of frame " + std::to_string(got.first) +
                     " where byte " + std::to_string(inbox.taken) + " was due");
}

bool UcxMesh::announced(const UcxHeader& header, size_t bytes) {
  Peer* const from = peer(header.node);
  if (from == nullptr || fate().failed()) return false;
  const int node = header.node;
  if (header.kind != UcxHeader::kData) {
    if (bytes == 0 && (header.kind == UcxHeader::kCredit || header.kind == UcxHeader::kHello)) {
      return true;
    }
    confused(node, "a message of kind " + std::to_string(header.kind) + " with " +
                       std::to_string(bytes) + " bytes, which is nothing");
    return false;
  }
  if (!from->inboxes.contains(header.channel)) {
    if (from->unknown >= kUcxUnknownChannels) {
      confused(node, "frames of more than " + std::to_string(kUcxUnknownChannels) +
                         " groups that do not exist here");
      return false;
    }
    ++from->unknown;
  }
  Inbox& to = inbox(*from, header.channel);
  const uint64_t cost = bytes + kUcxPieceCost;
  // What it knows to be consumed is at most what was reported.
  if (to.announced + cost > to.reported + kUcxWindow) {
    confused(node, std::to_string(to.announced + cost - to.reported) +
                       " bytes ahead of what was taken from it, where its credit is " +
                       std::to_string(kUcxWindow));
    return false;
  }
  to.announced += cost;
  return true;
}

void UcxMesh::arrived(const UcxHeader& header, const std::byte* data, size_t bytes) {
  Peer* const from = peer(header.node);
  if (from == nullptr) return;
  ++from->pieces_received;
  if (header.kind == UcxHeader::kHello) {
    from->greeted = true;
    return;
  }
  if (!from->inboxes.contains(header.channel)) return;  // its channel was closed here
  Inbox& to = inbox(*from, header.channel);
  const int node = header.node;
  if (to.used && header.consumed > to.sent) {
    confused(node, "credit for " + std::to_string(header.consumed) + " bytes, of " +
                       std::to_string(to.sent) + " that were sent to it");
    return;
  }
  if (header.consumed > to.credited) {
    to.credited = header.consumed;
    wake(to);
  }
  if (header.kind == UcxHeader::kCredit || fate().failed()) return;
  ++to.pieces;
  to.pieces_due = std::max(to.pieces_due, header.number + 1);
  if (header.sequence < to.frame || (header.sequence == to.frame && header.offset < to.taken)) {
    out_of_order(node, to, {header.sequence, header.offset});
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
  // The place of a piece that was partly taken is the first byte that was not.
  const auto [at, is_new] =
      to.early.try_emplace({header.sequence, header.offset + used}, Inbox::Early());
  if (!is_new) {
    out_of_order(node, to, {header.sequence, header.offset});
    return;
  }
  at->second.length = header.length;
  at->second.bytes.assign(data + used, data + bytes);
  take_early(node, to);
  // Pieces may overtake each other, but none is on its way any more.
  if (to.has_gap() && to.pieces >= to.pieces_due && !fate().failed()) {
    out_of_order(node, to, to.early.begin()->first);
  }
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

}  // namespace capstan::comm
