// The model that is served when no --model-path is given.
#pragma once

#include <string>

#include "app/serve_options.h"

namespace capstan::app {

inline constexpr const char* kDefaultModelName = "SmolLM2-135M-Instruct";

/// The folder in which `make model` puts it: ${CAPSTAN_MODEL_DIR}, else
/// ${XDG_CACHE_HOME:-~/.cache}/capstan/models; in it NAME/ with one .gguf file (CAPSTAN_MODEL_DIR
/// may also be that folder itself). kNotFound says where was looked and what to do.
Result<std::string> find_default_model(const Environment& environment);

}  // namespace capstan::app
