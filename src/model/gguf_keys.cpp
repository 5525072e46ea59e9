#include "model/gguf_keys.h"

#include <algorithm>

#include "model/printable.h"

namespace capstan::model {

Result<std::optional<int64_t>> uniform_integer(const GgufFile& gguf, const std::string& key,
                                               const std::string& file) {
  const auto it = gguf.metadata().find(key);
  if (it == gguf.metadata().end() || !std::holds_alternative<GgufArray>(it->second)) {
    return gguf.integer(key);
  }
  const auto& array = std::get<GgufArray>(it->second);
  std::optional<int64_t> common;
  for (uint64_t i = 0; i < array.count; ++i) {
    const std::optional<int64_t> v = scalar_integer(array.at(i));
    if (!v) return data_loss(file + ": metadata key " + printable(key) + " is not integers");
    if (common && *common != *v) {
      return invalid_argument(file + ": " + key + " differs between layers (" +
                              std::to_string(*common) + " and " + std::to_string(*v) +
                              "), which is not supported");
    }
    common = v;
  }
  return common;
}

Status copy_integers(const GgufFile& gguf, const std::string& prefix, std::span<const GgufKey> keys,
                     const std::string& file, boost::json::object& config) {
  for (const auto& [from, to] : keys) {
    CAPSTAN_ASSIGN(const std::optional<int64_t> v, uniform_integer(gguf, prefix + from, file));
    if (v) config[to] = *v;
  }
  return {};
}

const TensorView* find_tensor(const GgufFile& gguf, std::string_view name) {
  const auto& tensors = gguf.tensors();
  const auto it = std::find_if(tensors.begin(), tensors.end(),
                               [&](const TensorView& t) { return t.name == name; });
  return it == tensors.end() ? nullptr : &*it;
}

Result<int32_t> token_id(const GgufFile& gguf, const std::string& key, uint64_t limit,
                         const std::string& file) {
  CAPSTAN_ASSIGN(const std::optional<int64_t> id, gguf.integer(key));
  if (!id || *id == -1 || *id == int64_t{UINT32_MAX}) return int32_t{-1};
  if (*id < 0 || static_cast<uint64_t>(*id) >= limit) {
    return data_loss(file + ": " + key + " is " + std::to_string(*id) +
                     ", outside the vocabulary of " + std::to_string(limit) + " tokens");
  }
  return static_cast<int32_t>(*id);
}

}  // namespace capstan::model
