// AMX's eight tile registers, each of up to 16 rows of 64 bytes. A product C += A B takes A as rows
// of x, B as quadruples along k of 16 columns side by side, which is how panels hold weights, and C
// as rows of 16 sums.
//
// Assembly, because GCC's intrinsics take literal register numbers only, and need flags that would
// let the compiler use more of the CPU than the AVX-512 headers shared here may. Without AMX
// (CAPSTAN_SIMDE) the registers are emulated.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace capstan::kernels::amx {

/// Rows and bytes per row of each register, as ldtilecfg reads them.
struct alignas(64) Shapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  std::array<uint8_t, 14> reserved = {};
  std::array<uint16_t, 16> row_bytes = {};
  std::array<uint8_t, 16> rows = {};
};
static_assert(sizeof(Shapes) == 64);

/// Registers 0 to 3 hold C of `height` rows, 4 and 5 A of as many rows of k_bytes, 6 and 7 B.
constexpr Shapes product_shapes(int height, int k_bytes) {
  Shapes s;
  for (size_t t = 0; t < 8; ++t) {
    s.rows[t] = static_cast<uint8_t>(t < 6 ? height : k_bytes / 4);
    s.row_bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? k_bytes : 64);
  }
  return s;
}

#if defined(CAPSTAN_SIMDE)

struct Emulated {
  Shapes shapes;
  uint8_t data[8][16][64];
};
inline Emulated& emulated() {
  static thread_local Emulated e;
  return e;
}
inline void configure(const Shapes& shapes) {
  emulated().shapes = shapes;
  std::memset(emulated().data, 0, sizeof(Emulated::data));
}
inline void release() {}
template <size_t T>
inline void zero_tile() {
  std::memset(emulated().data[T], 0, sizeof(Emulated::data[T]));
}
template <size_t T, size_t kSpan = 1024>
inline void load_tile(const std::byte* from, int64_t stride) {
  Emulated& e = emulated();
  zero_tile<T>();
  for (int r = 0; r < e.shapes.rows[T]; ++r)
    std::memcpy(e.data[T][r], from + r * stride, e.shapes.row_bytes[T]);
}
template <size_t T>
inline void store_tile(std::byte* to, int64_t stride) {
  const Emulated& e = emulated();
  for (int r = 0; r < e.shapes.rows[T]; ++r)
    std::memcpy(to + r * stride, e.data[T][r], e.shapes.row_bytes[T]);
}
template <size_t C, size_t A, size_t B, class Weight>
inline void dot_bytes() {
  Emulated& e = emulated();
  for (int m = 0; m < e.shapes.rows[C]; ++m) {
    for (int n = 0; n < 16; ++n) {
      int32_t sum;
      std::memcpy(&sum, e.data[C][m] + 4 * n, 4);
      for (int k = 0; k < e.shapes.row_bytes[A]; ++k) {
        sum += static_cast<int8_t>(e.data[A][m][k]) *
               static_cast<Weight>(e.data[B][k / 4][4 * n + k % 4]);
      }
      std::memcpy(e.data[C][m] + 4 * n, &sum, 4);
    }
  }
}
template <size_t C, size_t A, size_t B>
inline void dot_signed() {
  dot_bytes<C, A, B, int8_t>();
}
template <size_t C, size_t A, size_t B>
inline void dot_unsigned() {
  dot_bytes<C, A, B, uint8_t>();
}

#else

inline void configure(const Shapes& shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(shapes)); }
/// The registers' contents are forgotten: the kernel need not save them when threads change.
inline void release() { __asm__ volatile("tilerelease"); }

template <size_t T>
inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
}
/// Rows `stride` bytes apart, all within kSpan bytes.
template <size_t T, size_t kSpan = 1024>
inline void load_tile(const std::byte* from, int64_t stride) {
  // Named as an operand: a clobber of all memory would keep the caller's sums in it.
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(stride), "i"(T),
                     "m"(*reinterpret_cast<const std::byte(*)[kSpan]>(from)));
}
template <size_t T>
inline void store_tile(std::byte* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c3, (%1,%2,1)"
                   : "=m"(*reinterpret_cast<std::byte(*)[1024]>(to))
                   : "r"(to), "r"(stride), "i"(T));
}
/// C += A B: int8 activations, int8 weights.
template <size_t C, size_t A, size_t B>
inline void dot_signed() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
/// C += A B: int8 activations, uint8 weights.
template <size_t C, size_t A, size_t B>
inline void dot_unsigned() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace capstan::kernels::amx
