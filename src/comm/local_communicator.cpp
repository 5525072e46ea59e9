#include "comm/local_communicator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "comm/local_slices.h"
#include "comm/reduce.h"
#include "comm/shared_copy.h"

namespace capstan::comm {
namespace {

// Between processes every rank adds all parts up to this many bytes, over all ranks: one round
// instead of two for as much reading. With 2 ranks both ways cost the same at every size.
constexpr int64_t kSmallReduceBytes = 64 << 10;
// Within a process tensors are used in place above this: copying into a buffer and out of it costs
// more than a second round. 6 KiB of all_reduce among 2 ranks: 0.8 us in place, 1.2 us through
// buffers; 28 KiB: 1.7 us against 4.2 us.
constexpr int64_t kOfferBytes = 4 << 10;
// Tensors are summed in pieces that stay in the second-level cache until they are passed on, and
// that bound the time until an abort is noticed.
constexpr int64_t kPieceBytes = 64 << 10;

// Before a message in the first buffer: its size. A whole line keeps the message aligned.
constexpr int64_t kMessageHeader = 64;

}  // namespace

LocalCommunicator::LocalCommunicator(RegionView region, int rank, std::shared_ptr<Fate> fate,
                                     std::shared_ptr<RegionSource> source, uint64_t key)
    : names_(region.names),
      fate_(std::move(fate)),
      source_(std::move(source)),
      keys_(key),
      parts_(static_cast<size_t>(region.ranks)),
      port_(std::move(region), rank, fate_) {}

Status LocalCommunicator::finish(bool ok) const {
  if (ok && !fate_->failed()) return {};
  return fate_->error();
}

Status LocalCommunicator::all_reduce(void* data, int64_t count, DType dtype) {
  CAPSTAN_RETURN_IF_ERROR(check_reduce(count, dtype));
  if (count == 0 || size() == 1) return finish(true);
  auto* bytes = static_cast<std::byte*>(data);
  const auto length = static_cast<int64_t>(dtype_bytes(dtype, count));
  const int64_t small = port_.one_process() ? kOfferBytes : kSmallReduceBytes / size();
  if (length <= small) return finish(reduce_small(bytes, count, dtype));
  if (port_.one_process()) return finish(reduce_in_place(bytes, count, dtype));
  return finish(reduce_staged(bytes, count, dtype));
}

bool LocalCommunicator::reduce_small(std::byte* data, int64_t count, DType dtype) {
  if (!port_.begin()) return false;
  copy_out(port_.buffer(rank()), data, dtype_bytes(dtype, count));
  port_.post();
  if (!port_.await_all()) return false;
  for (int r = 0; r < size(); ++r) parts_[r] = r == rank() ? data : port_.buffer(r);
  add_parts(parts_.data(), size(), dtype, data, dtype, count);
  return true;
}

bool LocalCommunicator::reduce_in_place(std::byte* data, int64_t count, DType dtype) {
  const auto width = static_cast<int64_t>(dtype_bytes(dtype, 1));
  return with_offers({nullptr, data}, [&] {
    // This rank alone reads and writes its slice of everybody's tensor.
    const Slice slice = slice_of(count, width, rank(), size());
    for (int64_t from = slice.begin; from < slice.end; from += kPieceBytes / width) {
      if (fate_->failed()) return false;
      const int64_t n = std::min(kPieceBytes / width, slice.end - from);
      for (int r = 0; r < size(); ++r) {
        parts_[r] = static_cast<std::byte*>(port_.offered(r).recv) + from * width;
      }
      add_parts(parts_.data(), size(), dtype, data + from * width, dtype, n);
      for (int r = 0; r < size(); ++r) {
        if (r == rank()) continue;
        copy_out(static_cast<std::byte*>(port_.offered(r).recv) + from * width, data + from * width,
                 static_cast<size_t>(n * width));
      }
    }
    return true;
  });
}

bool LocalCommunicator::reduce_staged(std::byte* data, int64_t count, DType dtype) {
  const auto width = static_cast<int64_t>(dtype_bytes(dtype, 1));
  const int64_t chunk = static_cast<int64_t>(port_.buffer_bytes()) / width;
  for (int64_t done = 0; done < count; done += chunk) {
    std::byte* const base = data + done * width;
    const int64_t n = std::min(chunk, count - done);
    const auto at = [&](const Slice& s) { return static_cast<size_t>(s.begin * width); };
    const auto bytes = [&](const Slice& s) {
      return static_cast<size_t>((s.end - s.begin) * width);
    };
    const Slice mine = slice_of(n, width, rank(), size());
    // One round to give the others their slices of this chunk ...
    if (!port_.begin()) return false;
    for (int r = 0; r < size(); ++r) {
      const Slice s = slice_of(n, width, r, size());
      if (r != rank()) copy_out(port_.buffer(rank()) + at(s), base + at(s), bytes(s));
    }
    port_.post();
    if (!port_.await_all()) return false;
    for (int r = 0; r < size(); ++r) {
      parts_[r] = (r == rank() ? base : port_.buffer(r)) + at(mine);
    }
    // ... and one to give them the sum of ours.
    if (!port_.begin()) return false;
    add_parts(parts_.data(), size(), dtype, base + at(mine), dtype, mine.end - mine.begin);
    copy_out(port_.buffer(rank()) + at(mine), base + at(mine), bytes(mine));
    port_.post();
    for (int i = 1; i < size(); ++i) {
      const int r = (rank() + i) % size();
      if (!port_.await(r)) return false;
      const Slice s = slice_of(n, width, r, size());
      std::memcpy(base + at(s), port_.buffer(r) + at(s), bytes(s));
    }
  }
  return true;
}

Status LocalCommunicator::all_gather(const void* send, void* recv, int64_t bytes) {
  CAPSTAN_RETURN_IF_ERROR(check_count(bytes));
  if (bytes == 0) return finish(true);
  return finish(
      collect(static_cast<const std::byte*>(send), static_cast<std::byte*>(recv), bytes, 0));
}

Status LocalCommunicator::all_to_all(const void* send, void* recv, int64_t bytes) {
  CAPSTAN_RETURN_IF_ERROR(check_count(bytes));
  if (bytes == 0) return finish(true);
  return finish(
      collect(static_cast<const std::byte*>(send), static_cast<std::byte*>(recv), bytes, bytes));
}

bool LocalCommunicator::collect(const std::byte* send, std::byte* recv, int64_t bytes,
                                int64_t stride) {
  const int n = size();
  const auto copy_own = [&] {
    std::byte* own = recv + rank() * bytes;
    const std::byte* from = send + rank() * stride;
    if (own != from) std::memmove(own, from, static_cast<size_t>(bytes));
  };
  if (n == 1) {
    copy_own();
    return true;
  }
  // What one rank puts into its buffer: the same for all, or one part for each.
  const int64_t copies = stride == 0 ? 1 : n;
  if (port_.one_process() && bytes * copies > kOfferBytes) {
    return with_offers({send, nullptr}, [&] {
      copy_own();
      for (int i = 1; i < n; ++i) {
        if (fate_->failed()) return false;
        const int r = (rank() + i) % n;
        std::memcpy(recv + r * bytes,
                    static_cast<const std::byte*>(port_.offered(r).send) + rank() * stride,
                    static_cast<size_t>(bytes));
      }
      return true;
    });
  }
  const int64_t chunk = static_cast<int64_t>(port_.buffer_bytes()) / copies / 64 * 64;
  for (int64_t done = 0; done < bytes; done += chunk) {
    const auto length = static_cast<size_t>(std::min(chunk, bytes - done));
    if (!port_.begin()) return false;
    std::byte* const out = port_.buffer(rank());
    for (int64_t r = 0; r < copies; ++r) {
      if (copies == 1 || r != rank()) {
        copy_out(out + r * chunk, send + r * stride + done, length);
      }
    }
    port_.post();
    if (done == 0) copy_own();
    for (int i = 1; i < n; ++i) {
      const int r = (rank() + i) % n;
      if (!port_.await(r)) return false;
      const std::byte* in = port_.buffer(r) + (copies == 1 ? 0 : rank() * chunk);
      std::memcpy(recv + r * bytes + done, in, length);
    }
  }
  return true;
}

Status LocalCommunicator::reduce_scatter(const void* send, void* recv, int64_t count, DType dtype) {
  CAPSTAN_RETURN_IF_ERROR(check_reduce(count, dtype));
  if (count == 0) return finish(true);
  const auto width = static_cast<int64_t>(dtype_bytes(dtype, 1));
  const auto* in = static_cast<const std::byte*>(send);
  auto* out = static_cast<std::byte*>(recv);
  const int64_t own = rank() * count * width;
  if (size() == 1) {
    if (out != in) std::memmove(out, in, static_cast<size_t>(count * width));
    return finish(true);
  }
  if (port_.one_process() && size() * count * width > kOfferBytes) {
    return finish(with_offers({send, nullptr}, [&] {
      for (int64_t from = 0; from < count; from += kPieceBytes / width) {
        if (fate_->failed()) return false;
        for (int r = 0; r < size(); ++r) {
          parts_[r] = static_cast<const std::byte*>(port_.offered(r).send) + own + from * width;
        }
        add_parts(parts_.data(), size(), dtype, out + from * width, dtype,
                  std::min(kPieceBytes / width, count - from));
      }
      return true;
    }));
  }
  const int64_t chunk = static_cast<int64_t>(port_.buffer_bytes()) / size() / 64 * 64 / width;
  for (int64_t from = 0; from < count; from += chunk) {
    const int64_t n = std::min(chunk, count - from);
    if (!port_.begin()) return finish(false);
    for (int r = 0; r < size(); ++r) {
      if (r == rank()) continue;
      copy_out(port_.buffer(rank()) + r * chunk * width, in + (r * count + from) * width,
               static_cast<size_t>(n * width));
    }
    port_.post();
    if (!port_.await_all()) return finish(false);
    for (int r = 0; r < size(); ++r) {
      parts_[r] = r == rank() ? in + own + from * width : port_.buffer(r) + rank() * chunk * width;
    }
    add_parts(parts_.data(), size(), dtype, out + from * width, dtype, n);
  }
  return finish(true);
}

Status LocalCommunicator::broadcast(void* data, int64_t bytes, int root) {
  CAPSTAN_RETURN_IF_ERROR(check_count(bytes));
  CAPSTAN_RETURN_IF_ERROR(check_root(root, size()));
  if (bytes == 0 || size() == 1) return finish(true);
  auto* const target = static_cast<std::byte*>(data);
  if (port_.one_process() && bytes > kOfferBytes) {
    return finish(with_offers({data, nullptr}, [&] {
      if (rank() == root) return true;
      const auto* from = static_cast<const std::byte*>(port_.offered(root).send);
      for (int64_t done = 0; done < bytes; done += kPieceBytes * 16) {
        if (fate_->failed()) return false;
        std::memcpy(target + done, from + done,
                    static_cast<size_t>(std::min(kPieceBytes * 16, bytes - done)));
      }
      return true;
    }));
  }
  const auto chunk = static_cast<int64_t>(port_.buffer_bytes());
  for (int64_t done = 0; done < bytes; done += chunk) {
    const auto length = static_cast<size_t>(std::min(chunk, bytes - done));
    if (!port_.begin()) return finish(false);
    if (rank() == root) copy_out(port_.buffer(root), target + done, length);
    port_.post();
    if (rank() == root) continue;
    if (!port_.await(root)) return finish(false);
    std::memcpy(target + done, port_.buffer(root), length);
  }
  return finish(true);
}

Status LocalCommunicator::gather(const void* send, void* recv, std::span<const int64_t> bytes,
                                 int root) {
  CAPSTAN_RETURN_IF_ERROR(check_root(root, size()));
  CAPSTAN_RETURN_IF_ERROR(check_parts(bytes, size()));
  const auto* const in = static_cast<const std::byte*>(send);
  auto* const out = static_cast<std::byte*>(recv);
  const int64_t longest = *std::max_element(bytes.begin(), bytes.end());
  const auto chunk = static_cast<int64_t>(port_.buffer_bytes());
  for (int64_t done = 0; done < longest; done += chunk) {
    const auto length = [&](int r) { return std::clamp(bytes[r] - done, int64_t{0}, chunk); };
    if (!port_.begin()) return finish(false);
    if (rank() != root && length(rank()) > 0) {
      copy_out(port_.buffer(rank()), in + done, static_cast<size_t>(length(rank())));
    }
    port_.post();
    if (rank() != root) continue;
    int64_t place = 0;
    for (int r = 0; r < size(); place += bytes[r++]) {
      if (length(r) == 0) continue;
      if (!port_.await(r)) return finish(false);
      const std::byte* from = r == root ? in + done : port_.buffer(r);
      if (out + place + done != from) {
        std::memmove(out + place + done, from, static_cast<size_t>(length(r)));
      }
    }
  }
  return finish(true);
}

Status LocalCommunicator::barrier() { return finish(size() == 1 || port_.meet()); }

Status LocalCommunicator::send_message(std::span<const std::byte> message) {
  if (rank() != 0) return only_rank_0("send_message()", rank());
  if (size() == 1) return finish(true);
  const auto total = static_cast<int64_t>(message.size());
  const auto capacity = static_cast<int64_t>(port_.buffer_bytes());
  int64_t done = 0;
  for (bool first = true; first || done < total; first = false) {
    if (!port_.begin()) return finish(false);
    const int64_t header = first ? kMessageHeader : 0;
    if (first) std::memcpy(port_.buffer(0), &total, sizeof(total));
    const int64_t length = std::min(capacity - header, total - done);
    if (length > 0) {
      copy_out(port_.buffer(0) + header, message.data() + done, static_cast<size_t>(length));
    }
    done += length;
    port_.post();
  }
  return finish(true);
}

Result<std::span<const std::byte>> LocalCommunicator::receive_message() {
  if (rank() == 0) return only_rank_0("receive_message()", 0);
  const auto capacity = static_cast<int64_t>(port_.buffer_bytes());
  const auto next = [&] {
    if (!port_.begin(Patience::kIdle)) return false;
    port_.post();
    return port_.await(0, Patience::kIdle);
  };
  if (!next()) return fate_->error();
  int64_t total = 0;
  std::memcpy(&total, port_.buffer(0), sizeof(total));
  if (message_.bytes() < static_cast<size_t>(total)) {
    message_ = AlignedBuffer(static_cast<size_t>(total) * 2);
  }
  int64_t done = std::min(total, capacity - kMessageHeader);
  if (done > 0) {
    std::memcpy(message_.data(), port_.buffer(0) + kMessageHeader, static_cast<size_t>(done));
  }
  while (done < total) {
    if (!next()) return fate_->error();
    const int64_t length = std::min(capacity, total - done);
    std::memcpy(message_.data() + done, port_.buffer(0), static_cast<size_t>(length));
    done += length;
  }
  return std::span<const std::byte>(message_.data(), static_cast<size_t>(total));
}

Result<std::unique_ptr<Communicator>> LocalCommunicator::subgroup(std::span<const int> ranks) {
  CAPSTAN_ASSIGN(const int place, check_subgroup(ranks, rank(), size()));
  if (fate_->failed()) return fate_->error();
  const uint64_t key = keys_.next(ranks);
  CAPSTAN_ASSIGN(auto region, source_->region(key, static_cast<int>(ranks.size())));
  region.crowded = port_.crowded();
  for (const int r : ranks) region.names.push_back(names_[r]);
  return std::unique_ptr<Communicator>(
      std::make_unique<LocalCommunicator>(std::move(region), place, fate_, source_, key));
}

}  // namespace capstan::comm
