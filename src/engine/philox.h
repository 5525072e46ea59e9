// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random
// numbers: as easy as 1, 2, 3", SC'11). A draw is a pure function of (key, counter), so the number
// for step i of choice c does not depend on what else is in the batch, on threads, or on earlier
// draws.
#pragma once

#include <array>
#include <cstdint>

namespace capstan::engine {

using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

constexpr PhiloxCounter philox4x32(PhiloxCounter c, PhiloxKey k) {
  constexpr uint64_t kMul0 = 0xD2511F53, kMul1 = 0xCD9E8D57;
  constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;  // golden ratio, sqrt(3) - 1
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = kMul0 * c[0], p1 = kMul1 * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(p0)};
    k[0] += kWeyl0;
    k[1] += kWeyl1;
  }
  return c;
}

constexpr PhiloxKey philox_key(uint64_t seed) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

/// Uniform in [0, 1) with 53 bits: the number for step `step` of choice `choice` under `seed`.
constexpr double uniform_for(uint64_t seed, uint32_t choice, uint64_t step) {
  const PhiloxCounter r =
      philox4x32({static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), choice, 0},
                 philox_key(seed));
  const uint64_t bits = (static_cast<uint64_t>(r[0]) << 21) ^ (r[1] >> 11);
  return static_cast<double>(bits) * 0x1.0p-53;
}

/// The seed of a request that names none: from the process seed and the request's number. The last
/// counter word keeps these apart from the draws themselves.
constexpr uint64_t derived_seed(uint64_t process_seed, uint64_t request_id) {
  const PhiloxCounter r =
      philox4x32({static_cast<uint32_t>(request_id), static_cast<uint32_t>(request_id >> 32), 0, 1},
                 philox_key(process_seed));
  return (static_cast<uint64_t>(r[0]) << 32) | r[1];
}

}  // namespace capstan::engine
