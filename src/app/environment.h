// The environment of the process, injectable for tests.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace capstan::app {

using Environment = std::function<std::optional<std::string>(const std::string&)>;
Environment process_environment();

}  // namespace capstan::app
