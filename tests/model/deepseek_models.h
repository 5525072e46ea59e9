// The recipes of testdata/model/deepseek, written once per test program and loaded as wanted.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "golden.h"
#include "recipe.h"
#include "session.h"

namespace capstan::model {

inline std::string recipe_path(const std::string& name) {
  return testdata("deepseek/" + name + "/recipe.json");
}

/// The checkpoint of a recipe; written at first use, removed at exit.
inline const std::string& deepseek_checkpoint(const std::string& name) {
  static std::map<std::string, std::pair<std::unique_ptr<TempDir>, std::string>> written;
  auto& [dir, path] = written[name];
  if (dir == nullptr) {
    dir = std::make_unique<TempDir>();
    path = write_recipe(recipe_path(name), *dir);
  }
  return path;
}

inline Golden deepseek_golden(const std::string& name) {
  return Golden(testdata("deepseek/" + name + "/golden"));
}

inline LoadedModel load_deepseek(const std::string& name, kernels::Isa isa,
                                 const LoadOptions& options = {}, int threads = 1) {
  // Rounded activations of Q8_0 and the like would hide what is compared here.
  return load(deepseek_checkpoint(name), {.isa = isa, .quantise_activations = false}, threads,
              options);
}

}  // namespace capstan::model
