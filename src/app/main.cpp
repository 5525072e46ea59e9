#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "app/bench.h"
#include "app/serve.h"
#include "app/up.h"

namespace {

constexpr const char* kUsage =
    "usage: capstan COMMAND [FLAG...]\n"
    "\n"
    "  serve    load a model and serve it over HTTP (capstan serve --help)\n"
    "  up       start several nodes of one server on this machine (capstan up --help)\n"
    "  bench    measure decode, prefill and serving speed on this machine (capstan bench --help),\n"
    "           or the operations among ranks (capstan bench comm --help)\n"
    "  version  print the version\n";

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "serve") {
    return capstan::app::run_serve(std::vector<std::string>(argv + 2, argv + argc));
  }
  if (command == "up") {
    return capstan::app::run_up(std::vector<std::string>(argv + 2, argv + argc));
  }
  if (command == "bench") return capstan::app::run_bench(argc - 1, argv + 1);
  if (command == "version" || command == "--version") {
    std::puts("capstan " CAPSTAN_VERSION);
    return 0;
  }
  if (command == "help" || command == "--help" || command == "-h") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  if (!command.empty()) {
    std::fprintf(stderr, "capstan: unknown command '%s'\n", command.c_str());
  }
  std::fputs(kUsage, stderr);
  return 2;
}
