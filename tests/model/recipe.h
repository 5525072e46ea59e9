// Writes the checkpoint that a recipe describes (tools/recipes.py), byte for byte what the
// reference was computed from.
#pragma once

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint_files.h"
#include "golden.h"
#include "quant/codecs.h"

namespace capstan::model {

/// splitmix64 (Steele, Lea, Flood 2014)
inline uint64_t recipe_mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

inline uint64_t recipe_key(uint64_t seed, std::string_view name) {
  uint64_t h = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return recipe_mix(seed ^ h);
}

/// One tensor of a recipe, filled.
inline FileTensor recipe_tensor(const boost::json::object& t, uint64_t seed) {
  const auto dtype_of = [](std::string_view name) {
    for (int i = 0; i <= static_cast<int>(DType::kQ6_K); ++i) {
      if (dtype_info(static_cast<DType>(i)).name == name) return static_cast<DType>(i);
    }
    ADD_FAILURE() << "dtype " << name;
    return DType::kF32;
  };
  FileTensor out{std::string(t.at("name").as_string()),
                 dtype_of(t.at("dtype").as_string()),
                 boost::json::value_to<std::vector<int64_t>>(t.at("shape")),
                 {}};
  int64_t elems = 1;
  for (const int64_t d : out.shape) elems *= d;
  const uint64_t key = recipe_key(seed, out.name);
  const auto top_byte = [key](size_t i) { return static_cast<char>(recipe_mix(key + i) >> 56); };
  out.bytes.resize(dtype_bytes(out.dtype, elems));

  if (is_block_quantised(out.dtype)) {
    const auto size = static_cast<size_t>(dtype_info(out.dtype).block_bytes);
    for (size_t i = 0; i < out.bytes.size(); ++i) out.bytes[i] = top_byte(i);
    size_t field = out.dtype == DType::kQ6_K ? 208 : 0;
    for (const auto& scale : t.at("scale").as_array()) {
      const uint16_t bits = quant::float_to_half(static_cast<float>(scale.to_number<double>()));
      for (size_t b = field; b < out.bytes.size(); b += size) {
        std::memcpy(out.bytes.data() + b, &bits, sizeof bits);
      }
      field += sizeof bits;
    }
    return out;
  }
  if (out.dtype == DType::kF8E4M3) {
    for (size_t i = 0; i < out.bytes.size(); ++i) {
      const char code = top_byte(i);
      out.bytes[i] = static_cast<char>((code & 0x7f) == 0x7f ? code - 1 : code);  // no NaN
    }
    return out;
  }
  const auto step = static_cast<float>(t.at("amplitude").to_number<double>() / (1 << 23));
  const auto centre =
      t.contains("centre") ? static_cast<float>(t.at("centre").to_number<double>()) : 0.0F;
  for (int64_t i = 0; i < elems; ++i) {
    const auto bits = static_cast<int32_t>(recipe_mix(key + static_cast<uint64_t>(i)) >> 40);
    // Rounded apart, as numpy does: volatile keeps a compiler from fusing product and sum.
    const volatile float product = step * static_cast<float>(bits - (1 << 23));
    const float value = centre + product;
    char* at = out.bytes.data() + dtype_bytes(out.dtype, i);
    uint32_t word = 0;
    std::memcpy(&word, &value, sizeof word);
    if (out.dtype == DType::kF32) {
      std::memcpy(at, &word, sizeof word);
    } else {
      const auto half = static_cast<uint16_t>(
          out.dtype == DType::kBF16 ? word >> 16 : quant::float_to_half(value));
      std::memcpy(at, &half, sizeof half);
    }
  }
  return out;
}

inline uint32_t ggml_type(DType t) {
  switch (t) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ8_0:
      return 8;
    case DType::kQ4_K:
      return 12;
    case DType::kQ6_K:
      return 14;
    case DType::kBF16:
      return 30;
    default:
      ADD_FAILURE() << "no ggml type for " << dtype_info(t).name;
      return 0;
  }
}

/// Writes the checkpoint of `recipe` into `dir` and returns its path, a directory or a GGUF file.
/// `edit`, if given, may change the parsed recipe first, to damage it.
template <class Edit>
std::string write_recipe(const std::string& recipe, const TempDir& dir, Edit&& edit) {
  boost::json::value parsed = boost::json::parse(read_file(recipe));
  boost::json::object& r = parsed.as_object();
  edit(r);
  const auto seed = r.at("seed").to_number<uint64_t>();
  std::vector<FileTensor> tensors;
  for (const auto& t : r.at("tensors").as_array()) {
    tensors.push_back(recipe_tensor(t.as_object(), seed));
  }
  if (r.at("container").as_string() == "safetensors") {
    dir.write("config.json", boost::json::serialize(r.at("config")));
    dir.write("model.safetensors", safetensors_file(tensors));
    return dir.path();
  }
  GgufWriter gguf;
  for (const auto& entry : r.at("metadata").as_array()) {
    const boost::json::array& e = entry.as_array();
    const std::string key(e[0].as_string());
    const std::string_view type = e[1].as_string();
    if (type == "u32") gguf.u32(key, e[2].to_number<uint32_t>());
    if (type == "f32") gguf.f32(key, static_cast<float>(e[2].to_number<double>()));
    if (type == "bool") gguf.boolean(key, e[2].as_bool());
    if (type == "string") gguf.string(key, std::string(e[2].as_string()));
  }
  for (const FileTensor& t : tensors) gguf.tensor(t, ggml_type(t.dtype));
  return dir.write("model.gguf", gguf.bytes());
}

inline std::string write_recipe(const std::string& recipe, const TempDir& dir) {
  return write_recipe(recipe, dir, [](boost::json::object&) {});
}

}  // namespace capstan::model
