// How fast this machine reads memory: the roof of decoding.
#pragma once

#include "platform/thread_pool.h"

namespace capstan::platform {

/// Bytes per second that all threads of `pool` together read from DRAM: the best of several passes
/// over a buffer several times the size of the last-level cache (256 MiB or more, less where memory
/// is short). Takes about `seconds`, and the time to touch the buffer once. 0 if memory cannot be
/// had. Others' use of the machine lowers the figure.
double measure_dram_read(ThreadPool& pool, double seconds = 0.3);

}  // namespace capstan::platform
