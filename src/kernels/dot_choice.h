// Which of several kernels for one product is worth using, where CPUs differ more than CPUID tells.
#pragma once

namespace capstan::kernels {

/// True where F8_E4M3 times BF16 activations is clearly faster than times float32 ones: CPUID has
/// the instructions, and a timing of both panel kernels (under 1 ms, once per process) says so.
/// Zen 4 does 32 multiply-adds a cycle by vdpbf16ps and 16 by FMAs (0.5 and 2.7 us for one row and
/// sixteen, against 0.7 and 6.4), but there are CPUs where vdpbf16ps is the slower one. Safe to
/// call from several threads at once.
bool bf16_dot_pays();

/// True where tile products are faster than vpdpbusd for 32 rows: the CPU and the kernel have AMX,
/// and a timing of Q4_K (under 1 ms, once per process) says so. Safe to call from several threads
/// at once.
bool amx_pays();

/// True where AVX2's FP8 kernel is faster by way of half precision, because a factor that is
/// denormal, as E4M3's smallest codes are the other way, costs microcode assists (under 1 ms, once
/// per process). Only for CPUs with AVX2. Safe to call from several threads at once.
bool fp8_halves_pay();

}  // namespace capstan::kernels
