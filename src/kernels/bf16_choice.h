// Whether the BF16 dot product is worth using.
#pragma once

namespace capstan::kernels {

/// True where F8_E4M3 times BF16 activations is clearly faster than times float32 ones: CPUID has
/// the instructions, and a timing of both panel kernels (under 1 ms, once per process) says so.
/// Zen 4 does 32 multiply-adds a cycle by vdpbf16ps and 16 by FMAs; on the Emerald Rapids class
/// vdpbf16ps has half the FMAs' rate. Safe to call from several threads at once.
bool bf16_dot_pays();

}  // namespace capstan::kernels
