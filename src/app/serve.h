// `capstan serve`.
#pragma once

#include <string>
#include <vector>

namespace capstan::app {

/// Serves until a signal. Exit code: 0 after an orderly end, 2 for a wrong command line, 1 when the
/// start failed, 70 when the watchdog found a step that does not end.
int run_serve(const std::vector<std::string>& args);

}  // namespace capstan::app
