#include "base/log.h"

#include <string>

namespace capstan {

Status init_logging(std::string_view level) {
  const std::string name(level);
  spdlog::level::level_enum parsed;
  if (name == "trace") {
    parsed = spdlog::level::trace;
  } else if (name == "debug") {
    parsed = spdlog::level::debug;
  } else if (name == "info") {
    parsed = spdlog::level::info;
  } else if (name == "warning" || name == "warn") {
    parsed = spdlog::level::warn;
  } else if (name == "error") {
    parsed = spdlog::level::err;
  } else if (name == "critical") {
    parsed = spdlog::level::critical;
  } else {
    return invalid_argument(
        "unknown log level '" + name + "'; use debug, info, warning, error or critical",
        "log-level");
  }
  spdlog::set_level(parsed);
  spdlog::set_pattern("[%Y-%m-%d %H:%M:%S.%e] %^%l%$ %v");
  spdlog::flush_on(spdlog::level::info);
  return {};
}

}  // namespace capstan
