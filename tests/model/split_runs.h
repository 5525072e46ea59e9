// What split models and whole ones are compared by.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "deepseek_models.h"
#include "session.h"
#include "split_model.h"

namespace capstan::model {

inline std::string path_of(const std::string& name) {
  return name.starts_with("deepseek/") ? deepseek_checkpoint(name.substr(9)) : testdata(name);
}

inline std::vector<int32_t> prompt_of(const ModelConfig& config, int length, int seed) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < length; ++i) {
    tokens.push_back(static_cast<int32_t>((i * 7919 + seed * 104729 + i * i * 31) %
                                          static_cast<int>(config.vocab_size)));
  }
  return tokens;
}

inline kernels::CpuOpsOptions exact() {
  return {.isa = kernels::Isa::kAvx2, .quantise_activations = false};
}

/// What a model computes of two sequences: all rows of a chunked prefill, greedy decoding, and a
/// step that mixes decoding with a prompt.
struct Outputs {
  Session::Rows prefill, decode, mixed;
  std::vector<int32_t> greedy;
};

inline Outputs run(Model& model, size_t tokens) {
  Outputs out;
  Session session(model, 16);
  const auto first = prompt_of(model.config(), 40, 1), second = prompt_of(model.config(), 21, 2);
  out.prefill = session.prefill(first, 17);
  out.greedy = session.greedy(out.prefill.back(), tokens, &out.decode);
  out.mixed = session.step({{0, std::span(out.greedy).last(1)}, {1, second}});
  return out;
}

inline double largest_difference(const Session::Rows& x, const Session::Rows& y) {
  double largest = 0;
  EXPECT_EQ(x.size(), y.size());
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
    largest = std::max(largest, relative_difference(x[i], y[i]));
  }
  return largest;
}

}  // namespace capstan::model
