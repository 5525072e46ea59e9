#include "app/up.h"

#include <signal.h>

#include <cstdio>

#include "app/up_group.h"

namespace capstan::app {
namespace {

constexpr int kStartFailed = 1, kWrongUsage = 2;

int start_error(const Error& error) {
  std::fprintf(stderr, "capstan up: error: %s\n", error.message.c_str());
  return kStartFailed;
}

}  // namespace

int run_up(const std::vector<std::string>& args) {
  const Result<ParsedUp> parsed = parse_up_options(args);
  if (!parsed.ok()) {
    std::fprintf(stderr, "%scapstan up: error: %s\n", up_usage_text().c_str(),
                 parsed.error().message.c_str());
    return kWrongUsage;
  }
  if (parsed->help) {
    std::fputs(up_help_text().c_str(), stdout);
    return 0;
  }
  const UpOptions& options = parsed->options;
  ::signal(SIGPIPE, SIG_IGN);
  // The port first: one in use should not cost the making of a network.
  auto listener = server::Listener::bind(options.host, options.port);
  if (!listener.ok()) return start_error(listener.error());

  UpScreen screen(options.print_nodes ? stderr : stdout);
  std::unique_ptr<UpNetwork> network;
  // One node has nobody to be apart from, unless asked for.
  if (options.isolation == UpOptions::Isolation::kNamespaces ||
      (options.isolation == UpOptions::Isolation::kAuto && options.nodes > 1)) {
    auto made = UpNetwork::create(options.nodes);
    if (made.ok()) {
      network = std::move(*made);
      for (const std::string& name : network->removed()) {
        screen.note("removed " + name + ", left over from a run that was killed");
      }
    } else if (options.isolation == UpOptions::Isolation::kNamespaces) {
      return start_error(made.error());
    } else {
      screen.note("no network namespaces, plain processes instead: " + made.error().message);
    }
  }
  UpGroup group(options, std::move(network), std::move(*listener), screen);
  return group.run();
}

}  // namespace capstan::app
