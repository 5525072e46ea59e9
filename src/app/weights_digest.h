// Whether two nodes have the same weights before their eyes, without reading all of them.
#pragma once

#include <string>

#include "model/checkpoint.h"

namespace capstan::app {

/// 16 hex digits over names, types and shapes of all tensors and samples of the contents of some.
std::string weights_digest(const model::Checkpoint& checkpoint);

}  // namespace capstan::app
