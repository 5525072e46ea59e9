// Reading GGUF metadata into the config.json it corresponds to; parts of gguf_config.
#pragma once

#include <boost/json/object.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "model/gguf_file.h"

namespace capstan::model {

/// A metadata key without its architecture, and the config.json key of the same meaning.
struct GgufKey {
  const char* from;
  const char* to;
};

/// An integer, or an array with the same integer for every layer.
Result<std::optional<int64_t>> uniform_integer(const GgufFile& gguf, const std::string& key,
                                               const std::string& file);

/// Copies the keys that are present.
Status copy_integers(const GgufFile& gguf, const std::string& prefix, std::span<const GgufKey> keys,
                     const std::string& file, boost::json::object& config);

const TensorView* find_tensor(const GgufFile& gguf, std::string_view name);

/// Token ids; absent and 0xFFFFFFFF mean none (-1).
Result<int32_t> token_id(const GgufFile& gguf, const std::string& key, uint64_t limit,
                         const std::string& file);

/// Latent attention and experts of deepseek2, old and new files; settles which version it is:
/// V3 routes with sigmoid scores, V2 with softmax. `config` holds the keys common to all.
Status add_deepseek2(const GgufFile& gguf, const std::string& file, boost::json::object& config);

/// Experts of qwen3moe.
Status add_qwen3moe(const GgufFile& gguf, const std::string& file, boost::json::object& config);

}  // namespace capstan::model
