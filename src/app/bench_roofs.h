// The limits that a benchmark's figures are set against.
#pragma once

#include "app/bench_report.h"
#include "platform/thread_pool.h"

namespace capstan::app {

/// Measures them now, on the threads of `pool`; takes about a second.
MachineRoofs measure_roofs(platform::ThreadPool& pool);

}  // namespace capstan::app
