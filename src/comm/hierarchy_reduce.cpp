// Sums over nodes.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "comm/hierarchy.h"
#include "comm/local_slices.h"
#include "comm/reduce.h"
#include "comm/shared_copy.h"

namespace capstan::comm {
namespace {

// Up to this many bytes, ranks of a node hand their parts to the one that leads through buffers.
constexpr int64_t kSmallReduceBytes = 32 << 10;
// Sending everything to every node takes one exchange instead of two, and up to this many bytes
// more than each node summing a slice are worth it: about 10 us at 10 Gbit/s.
constexpr int64_t kExtraBytesForOneExchange = 16 << 10;
// Sums follow the bytes that come in, in steps of this size.
constexpr int64_t kPieceBytes = 64 << 10;

// What comes from the other of two nodes goes round in so much memory and stays in the cache.
// all_reduce of 4 Mi floats between two cores on loopback: 7.0 ms, with memory for all of it 7.6
// ms; an exchange without a sum takes 6.3 ms.
constexpr int64_t kRingBytes = 1 << 20;

void need(AlignedBuffer& buffer, int64_t bytes) {
  if (buffer.bytes() < static_cast<size_t>(bytes))
    buffer = AlignedBuffer(static_cast<size_t>(bytes));
}

}  // namespace

DType HierarchyCommunicator::partial_type(DType dtype) const {
  // A lone rank's part is its node's sum: sent as it is. All nodes must choose alike.
  for (const NodeRanks& node : place_.nodes) {
    if (node.count > 1) return sum_type(dtype);
  }
  return dtype;
}

Status HierarchyCommunicator::all_reduce(void* data, int64_t count, DType dtype) {
  CAPSTAN_RETURN_IF_ERROR(check_reduce(count, dtype));
  if (count == 0) return finish(true);
  auto* const bytes = static_cast<std::byte*>(data);
  // Where nothing is shared, there is one way only.
  const bool small =
      local_.size() == 1 || static_cast<int64_t>(dtype_bytes(dtype, count)) <= kSmallReduceBytes;
  return finish(small ? reduce_small(bytes, count, dtype) : reduce_large(bytes, count, dtype));
}

bool HierarchyCommunicator::reduce_small(std::byte* data, int64_t count, DType dtype) {
  const DType type = partial_type(dtype);
  const size_t bytes = dtype_bytes(dtype, count);
  const int n = local_.size();
  if (!leads()) {
    if (!port().begin()) return false;
    copy_out(port().buffer(local_.rank()), data, bytes);
    port().post();
    if (!port().begin()) return false;
    port().post();
    if (!port().await(0)) return false;
    std::memcpy(data, port().buffer(0), bytes);
    return true;
  }
  std::byte* sum = data;
  if (n > 1 || type != dtype) {
    if (n > 1) {
      if (!port().begin()) return false;
      port().post();
      if (!port().await_all()) return false;
    }
    parts_[0] = data;
    for (int r = 1; r < n; ++r) parts_[r] = port().buffer(r);
    if (type != dtype) {
      need(partial_, static_cast<int64_t>(dtype_bytes(type, count)));
      sum = partial_.data();
    }
    add_parts(parts_.data(), n, dtype, sum, type, count);
  }
  if (!sum_nodes(sum, type, data, dtype, count)) return false;
  if (n == 1) return true;
  if (!port().begin()) return false;
  copy_out(port().buffer(0), data, bytes);
  port().post();
  return true;
}

bool HierarchyCommunicator::sum_local_slice(const std::function<const void*(int)>& part,
                                            int64_t count, DType dtype, std::byte* sum,
                                            DType type) {
  const auto width = static_cast<int64_t>(dtype_bytes(dtype, 1));
  const auto sum_width = static_cast<int64_t>(dtype_bytes(type, 1));
  const Slice slice = slice_of(count, width, local_.rank(), local_.size());
  for (int64_t from = slice.begin; from < slice.end; from += kPieceBytes / width) {
    if (fate().failed()) return false;
    const int64_t n = std::min(kPieceBytes / width, slice.end - from);
    for (int r = 0; r < local_.size(); ++r) {
      parts_[r] = static_cast<const std::byte*>(part(r)) + from * width;
    }
    add_parts(parts_.data(), local_.size(), dtype, sum + from * sum_width, type, n);
  }
  return true;
}

bool HierarchyCommunicator::reduce_large(std::byte* data, int64_t count, DType dtype) {
  const DType type = partial_type(dtype);
  std::byte* work = data;
  if (leads() && type != dtype) {
    need(partial_, static_cast<int64_t>(dtype_bytes(type, count)));
    work = partial_.data();
  }
  return local_.with_offers({nullptr, data, leads() ? work : nullptr}, [&] {
    auto* const sum = static_cast<std::byte*>(port().offered(0).work);
    const auto part = [&](int r) { return port().offered(r).recv; };
    if (!sum_local_slice(part, count, dtype, sum, type)) return false;
    if (!port().meet()) return false;
    if (leads() && !sum_nodes(sum, type, data, dtype, count)) return false;
    if (!port().meet()) return false;
    if (!leads()) std::memcpy(data, port().offered(0).recv, dtype_bytes(dtype, count));
    return true;
  });
}

bool HierarchyCommunicator::sum_nodes(std::byte* partial, DType type, std::byte* out, DType dtype,
                                      int64_t count) {
  const auto nodes = static_cast<int64_t>(place_.nodes.size());
  const auto bytes = static_cast<int64_t>(dtype_bytes(type, count));
  const int64_t extra = bytes * (nodes - 1) * (nodes - 2) / nodes;
  return extra <= kExtraBytesForOneExchange ? sum_nodes_at_once(partial, type, out, dtype, count)
                                            : sum_nodes_by_slices(partial, type, out, dtype, count);
}

bool HierarchyCommunicator::sum_nodes_at_once(std::byte* partial, DType type, std::byte* out,
                                              DType dtype, int64_t count) {
  const size_t nodes = place_.nodes.size();
  const auto width = static_cast<int64_t>(dtype_bytes(type, 1));
  const auto out_width = static_cast<int64_t>(dtype_bytes(dtype, 1));
  const int64_t bytes = count * width;
  // The nodes cannot both wait for room: one that does has received more than it has sent, and so
  // the other has sent more than it has received.
  const bool ring = nodes == 2 && bytes > kRingBytes;
  const int64_t space = ring ? kRingBytes : bytes;
  need(incoming_, space * static_cast<int64_t>(nodes - 1));
  std::vector<Flow> all = flows();
  std::vector<const std::byte*> sources(nodes);
  std::atomic<size_t> room{static_cast<size_t>(space)};
  for (size_t node = 0; node < nodes; ++node) {
    sources[node] = partial;
    if (node == place_.mine) continue;
    std::byte* const into = incoming_.data() + static_cast<int64_t>(flow_index(node)) * space;
    Flow& flow = all[flow_index(node)];
    flow.add_send(partial, static_cast<size_t>(bytes));
    for (int64_t from = 0; from < bytes; from += space) {
      flow.add_recv(into, static_cast<size_t>(std::min(space, bytes - from)));
    }
    if (ring) flow.room = &room;
    sources[node] = into;
  }
  int64_t done = 0;  // bytes summed
  const auto add_up_to = [&](int64_t end) {
    while (done < end) {
      const int64_t n = std::min(end, (done / space + 1) * space) - done;
      for (size_t node = 0; node < nodes; ++node) {
        parts_[node] = sources[node] + (node == place_.mine ? done : done % space);
      }
      add_parts(parts_.data(), static_cast<int>(nodes), type, out + done / width * out_width, dtype,
                n / width);
      done += n;
    }
    room.store(static_cast<size_t>(done + space));
  };
  // What came from everybody and has gone to everybody is added while the rest is on its way.
  const auto follow = [&](const Flow&) {
    auto common = static_cast<size_t>(bytes);
    for (const Flow& flow : all) common = std::min({common, flow.sent, flow.received});
    const int64_t end = static_cast<int64_t>(common) / width * width;
    if (end - done >= kPieceBytes) add_up_to(end);
  };
  const bool ok = bytes >= 2 * kPieceBytes ? place_.channel->exchange(all, Patience::kStep, follow)
                                           : place_.channel->exchange(all);
  if (!ok) return false;
  add_up_to(bytes);
  return true;
}

bool HierarchyCommunicator::sum_nodes_by_slices(std::byte* partial, DType type, std::byte* out,
                                                DType dtype, int64_t count) {
  const size_t nodes = place_.nodes.size();
  const auto width = static_cast<int64_t>(dtype_bytes(type, 1));
  const auto out_width = static_cast<int64_t>(dtype_bytes(dtype, 1));
  const auto slice = [&](size_t node) {
    return slice_of(count, width, static_cast<int>(node), static_cast<int>(nodes));
  };
  const Slice mine = slice(place_.mine);
  const int64_t bytes = (mine.end - mine.begin) * width;
  need(incoming_, bytes * static_cast<int64_t>(nodes - 1));
  std::vector<Flow> all = flows();
  for (size_t node = 0; node < nodes; ++node) {
    parts_[node] = partial + mine.begin * width;
    if (node == place_.mine) continue;
    const Slice theirs = slice(node);
    std::byte* const into = incoming_.data() + static_cast<int64_t>(flow_index(node)) * bytes;
    all[flow_index(node)].add_send(partial + theirs.begin * width,
                                   static_cast<size_t>((theirs.end - theirs.begin) * width));
    all[flow_index(node)].add_recv(into, static_cast<size_t>(bytes));
    parts_[node] = into;
  }
  if (!place_.channel->exchange(all)) return false;
  add_parts(parts_.data(), static_cast<int>(nodes), type, out + mine.begin * out_width, dtype,
            mine.end - mine.begin);
  std::vector<Flow> spread = flows();
  for (size_t node = 0; node < nodes; ++node) {
    if (node == place_.mine) continue;
    const Slice theirs = slice(node);
    spread[flow_index(node)].add_send(out + mine.begin * out_width,
                                      static_cast<size_t>((mine.end - mine.begin) * out_width));
    spread[flow_index(node)].add_recv(out + theirs.begin * out_width,
                                      static_cast<size_t>((theirs.end - theirs.begin) * out_width));
  }
  return place_.channel->exchange(spread);
}

Status HierarchyCommunicator::reduce_scatter(const void* send, void* recv, int64_t count,
                                             DType dtype) {
  CAPSTAN_RETURN_IF_ERROR(check_reduce(count, dtype));
  if (count == 0) return finish(true);
  const DType type = partial_type(dtype);
  const auto width = static_cast<int64_t>(dtype_bytes(dtype, 1));
  const auto sum_width = static_cast<int64_t>(dtype_bytes(type, 1));
  const size_t nodes = place_.nodes.size();
  const int64_t own = here().count * count;  // elements of this node's ranks
  // Of the rank that leads: the node's sums of all parts, then the result for its ranks.
  const int64_t result_at = (size() * count * sum_width + 63) / 64 * 64;
  const bool alone = local_.size() == 1 && type == dtype;
  std::byte* work = nullptr;
  if (leads()) {
    need(partial_, result_at + own * width);
    need(incoming_, static_cast<int64_t>(nodes - 1) * own * sum_width);
    work = partial_.data();
  }
  return finish(local_.with_offers({send, nullptr, work}, [&] {
    auto* sum = static_cast<std::byte*>(port().offered(0).work);
    std::byte* const result = sum + result_at;
    if (alone) {
      sum = static_cast<std::byte*>(const_cast<void*>(send));
    } else {
      const auto part = [&](int r) { return port().offered(r).send; };
      if (!sum_local_slice(part, size() * count, dtype, sum, type)) return false;
    }
    if (!port().meet()) return false;
    if (leads()) {
      std::vector<Flow> all = flows();
      for (size_t node = 0; node < nodes; ++node) {
        const NodeRanks& there = place_.nodes[node];
        parts_[node] = sum + here().first * count * sum_width;
        if (node == place_.mine) continue;
        std::byte* const into =
            incoming_.data() + static_cast<int64_t>(flow_index(node)) * own * sum_width;
        all[flow_index(node)].add_send(sum + there.first * count * sum_width,
                                       static_cast<size_t>(there.count * count * sum_width));
        all[flow_index(node)].add_recv(into, static_cast<size_t>(own * sum_width));
        parts_[node] = into;
      }
      if (!place_.channel->exchange(all)) return false;
      add_parts(parts_.data(), static_cast<int>(nodes), type, result, dtype, own);
    }
    if (!port().meet()) return false;
    std::memcpy(recv, result + local_.rank() * count * width, static_cast<size_t>(count * width));
    return true;
  }));
}

}  // namespace capstan::comm
