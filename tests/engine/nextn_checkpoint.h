// A checkpoint whose multi-token prediction layer often drafts what the model writes.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "model/recipe.h"

namespace capstan::engine {

/// A tiny V3 whose layers change little, so that the next token follows mostly from the last, and
/// whose prediction layer passes the token's embedding on: its drafts hold often, not always.
inline const std::string& nextn_checkpoint() {
  static const model::TempDir dir;
  static const std::string path = [] {
    boost::json::value parsed = boost::json::parse(
        model::read_file(model::testdata("deepseek/tiny-v3-groups/recipe.json")));
    boost::json::object& recipe = parsed.as_object();
    const auto seed = recipe.at("seed").to_number<uint64_t>();
    const auto hidden = recipe.at("config").at("hidden_size").to_number<size_t>();
    std::vector<model::FileTensor> tensors;
    for (auto& t : recipe.at("tensors").as_array()) {
      const std::string name(t.at("name").as_string());
      if (name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight")) {
        t.at("amplitude") = 0.05 * t.at("amplitude").to_number<double>();
      }
      // Weights of one: what the two layers' last norms do to an embedding is then the same.
      for (const char* norm : {"enorm.weight", "shared_head.norm.weight", "model.norm.weight"}) {
        if (name.ends_with(norm)) t.at("amplitude") = 0.0;
      }
      model::FileTensor& tensor = tensors.emplace_back(model::recipe_tensor(t.as_object(), seed));
      if (!name.ends_with("eh_proj.weight")) continue;
      EXPECT_EQ(tensor.dtype, DType::kF32);
      EXPECT_EQ(tensor.bytes.size(), hidden * 2 * hidden * sizeof(float));
      const float one = 1;
      std::fill(tensor.bytes.begin(), tensor.bytes.end(), 0);
      for (size_t i = 0; i < hidden; ++i) {
        std::memcpy(tensor.bytes.data() + (i * 2 * hidden + i) * sizeof one, &one, sizeof one);
      }
    }
    dir.write("config.json", boost::json::serialize(recipe.at("config")));
    dir.write("model.safetensors", model::safetensors_file(tensors));
    return dir.path();
  }();
  return path;
}

}  // namespace capstan::engine
