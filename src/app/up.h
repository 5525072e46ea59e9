// `capstan up`: a group of nodes on one machine.
#pragma once

#include <string>
#include <vector>

namespace capstan::app {

/// `args`: what follows the sub-command. The exit code of the process; see `capstan up --help`.
int run_up(const std::vector<std::string>& args);

}  // namespace capstan::app
