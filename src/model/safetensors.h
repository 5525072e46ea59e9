// The safetensors container: a JSON header and one data area.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "tensor/tensor.h"

namespace capstan::model {

/// Reads the header of a whole file in memory. The views point into `bytes`; `file` names it in
/// errors (kDataLoss, or kInvalidArgument for an element type that is not supported).
/// Checked: header length, JSON, unique names, extents inside the file, size = shape x dtype, and
/// that the tensors cover the data area without overlap or hole (as the reference library does).
Result<std::vector<TensorView>> parse_safetensors(std::span<const std::byte> bytes,
                                                  const std::string& file);

}  // namespace capstan::model
