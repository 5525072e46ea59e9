// A fingerprint of a checkpoint, for ranks that must serve the same one.
#pragma once

#include <string>
#include <string_view>

#include "model/tensor_table.h"

namespace capstan::model {

/// SHA-256, in hex, of the config and of every tensor's name, dtype and shape, with the bytes at
/// the begin, middle and end of up to 1,024 tensors spread over all: 64 at each place. It sees
/// another model, another revision, a file of another revision and another quantisation; not every
/// flipped bit, which would mean reading everything. DeepSeek-V3's 91,991 tensors cost 3,072 page
/// faults. The files that tensors lie in do not matter.
std::string checkpoint_digest(std::string_view config, const TensorTable& tensors);

}  // namespace capstan::model
