#include "comm/reduce.h"

#include <cfenv>

#include "comm/reduce_impl.h"
#include "platform/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace capstan::comm {
namespace {

/// IEEE arithmetic for its lifetime. Compute threads flush subnormals to zero, the thread of a rank
/// need not: without this two ranks could get different bits of the same sum.
class PlainArithmetic {
 public:
#if defined(__x86_64__)
  PlainArithmetic() : saved_(_mm_getcsr()) {
    if ((saved_ & ~kFlags) != kDefault) _mm_setcsr(kDefault);
  }
  ~PlainArithmetic() {
    if ((saved_ & ~kFlags) != kDefault) _mm_setcsr(saved_);
  }

 private:
  static constexpr unsigned kFlags = 0x3f;      // exceptions that have occurred
  static constexpr unsigned kDefault = 0x1f80;  // all masked, to nearest, nothing flushed
  const unsigned saved_;
#else
  PlainArithmetic() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~PlainArithmetic() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif
};

struct Plain {
  template <class In, class Out>
  static void run(const void* const* parts, int n, void* out, int64_t count) {
    internal::add_scalar<In, Out>(parts, n, out, 0, count);
  }
};

internal::AddParts best() {
  if (platform::isa_support().avx2) {  // which stands for F16C as well
    if (const internal::AddParts fast = internal::add_parts_avx2()) return fast;
  }
  return internal::add_parts_plain();
}

}  // namespace

namespace internal {
AddParts add_parts_plain() { return dispatch<Plain>; }
}  // namespace internal

bool can_reduce(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
         dtype == DType::kI32 || dtype == DType::kI64;
}

void add_parts(const void* const* parts, int n, DType in, void* out, DType out_type,
               int64_t count) {
  static const internal::AddParts add = best();
  const PlainArithmetic plain;
  add(parts, n, in, out, out_type, count);
}

}  // namespace capstan::comm
