// Flags that exist in some release of SGLang and have no meaning here: GPU kernels, CUDA graphs,
// collectives, expert placement, offloading, multimodal input. They are accepted, so that existing
// manifests start, and each that is given is named in a warning.
#pragma once

#include <span>

#include "app/flag_table.h"

namespace capstan::app {

std::span<const Flag> foreign_flags();

}  // namespace capstan::app
