// Which instruction set computes: the one that is fastest, not the one with the longest name.
#pragma once

#include "kernels/linear.h"

namespace capstan::kernels {

/// The fastest of supported_isas() by a short timing (about 4 ms). Timed once per process and
/// options: all that a process computes is rounded alike. Safe to call from several threads at
/// once.
Isa fastest_isa(const PackOptions& options, platform::ThreadPool& pool);

}  // namespace capstan::kernels
