// `capstan bench`: decode, prefill and serving speed of a model on this machine.
#pragma once

namespace capstan::app {

/// Runs the sub-command; argv[0] is "bench". Prints a table on stdout and returns the exit code:
/// 0, 1 when something failed, 2 for wrong flags.
int run_bench(int argc, char** argv);

}  // namespace capstan::app
