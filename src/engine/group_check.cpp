#include "engine/group_check.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace capstan::engine {
namespace {

// Sums of small integers are exact in every float type and order.
constexpr int64_t kSizes[] = {1, 3, 1024, 40961, 300000};

float part(int rank, int64_t i) { return static_cast<float>((rank + 1) * ((i % 7) + 1)); }

Error wrong(const comm::Communicator& comm, const char* operation, int64_t size) {
  return internal_error("the collective self-test failed: rank " + std::to_string(comm.rank()) +
                        " got a wrong result of " + operation + " of " + std::to_string(size) +
                        " elements over " + std::string(comm.transport()));
}

Status check_sums(comm::Communicator& comm, int64_t size) {
  const int ranks = comm.size();
  const auto total = static_cast<float>(ranks * (ranks + 1) / 2);
  std::vector<float> x(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) x[static_cast<size_t>(i)] = part(comm.rank(), i);
  CAPSTAN_RETURN_IF_ERROR(comm.all_reduce(x.data(), size, DType::kF32));
  for (int64_t i = 0; i < size; ++i) {
    if (x[static_cast<size_t>(i)] != total * static_cast<float>(i % 7 + 1)) {
      return wrong(comm, "all_reduce", size);
    }
  }
  return {};
}

Status check_moves(comm::Communicator& comm, int64_t size) {
  const int ranks = comm.size(), rank = comm.rank();
  const auto n = static_cast<size_t>(size);
  const int64_t bytes = size * static_cast<int64_t>(sizeof(float));
  std::vector<float> mine(n), all(n * static_cast<size_t>(ranks));
  for (size_t i = 0; i < n; ++i) mine[i] = part(rank, static_cast<int64_t>(i));
  const auto complete = [&] {
    for (int r = 0; r < ranks; ++r) {
      for (size_t i = 0; i < n; ++i) {
        if (all[static_cast<size_t>(r) * n + i] != part(r, static_cast<int64_t>(i))) return false;
      }
    }
    return true;
  };
  CAPSTAN_RETURN_IF_ERROR(comm.all_gather(mine.data(), all.data(), bytes));
  if (!complete()) return wrong(comm, "all_gather", size);
  std::fill(all.begin(), all.end(), 0.0f);
  const std::vector<int64_t> sizes(static_cast<size_t>(ranks), bytes);
  CAPSTAN_RETURN_IF_ERROR(comm.gather(mine.data(), all.data(), sizes, 0));
  if (rank == 0 && !complete()) return wrong(comm, "gather", size);
  const int root = ranks - 1;
  CAPSTAN_RETURN_IF_ERROR(comm.broadcast(mine.data(), bytes, root));
  for (size_t i = 0; i < n; ++i) {
    if (mine[i] != part(root, static_cast<int64_t>(i))) return wrong(comm, "broadcast", size);
  }
  return {};
}

Status check_message(comm::Communicator& comm) {
  constexpr size_t kBytes = 3000;
  std::vector<std::byte> sent(kBytes);
  for (size_t i = 0; i < kBytes; ++i) sent[i] = static_cast<std::byte>(i * 37);
  if (comm.rank() == 0) return comm.send_message(sent);
  CAPSTAN_ASSIGN(const auto got, comm.receive_message());
  if (got.size() != kBytes || std::memcmp(got.data(), sent.data(), kBytes) != 0) {
    return wrong(comm, "send_message", kBytes);
  }
  return {};
}

}  // namespace

Status check_collectives(comm::Communicator& comm) {
  for (const int64_t size : kSizes) {
    CAPSTAN_RETURN_IF_ERROR(check_sums(comm, size));
    CAPSTAN_RETURN_IF_ERROR(check_moves(comm, size));
  }
  CAPSTAN_RETURN_IF_ERROR(check_message(comm));
  return comm.barrier();
}

}  // namespace capstan::engine
