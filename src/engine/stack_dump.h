// Call stacks of all threads of this process, for a process that hangs.
#pragma once

#include <sys/types.h>

namespace capstan::engine {

/// Prepares the signal handler; before a thread hangs.
void install_stack_dump();

/// Writes the stacks to stderr, the thread `first` before the others (0: none). Names are those of
/// exported symbols; threads that do not answer, because the kernel holds them, are named.
void dump_stacks(pid_t first);

}  // namespace capstan::engine
