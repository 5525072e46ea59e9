// A small checkpoint with every tensor a config asks for, written by the test itself.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "checkpoint_files.h"
#include "model/weights.h"

namespace capstan::model {

inline const std::string kTinyConfig = R"({"architectures":["LlamaForCausalLM"],
  "model_type":"llama","hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,
  "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":40,"max_position_embeddings":64,
  "torch_dtype":"float32","eos_token_id":2,"bos_token_id":1,"tie_word_embeddings":false})";

inline ModelConfig tiny_config() {
  ModelConfig c;
  c.hidden_size = 32;
  c.intermediate_size = 48;
  c.num_layers = 2;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 8;
  c.vocab_size = 40;
  return c;
}

inline std::vector<FileTensor> tiny_tensors() {
  std::vector<FileTensor> tensors;
  for (const WeightSpec& w : required_weights(tiny_config())) {
    const auto salt = static_cast<int64_t>(w.name.size());
    tensors.push_back(float_tensor(w.name, w.shape, [&](int64_t i) {
      return static_cast<double>((i * 37 + salt) % 101 - 50) / 100.0;
    }));
  }
  return tensors;
}

inline FileTensor& tensor_named(std::vector<FileTensor>& tensors, const std::string& name) {
  return *std::find_if(tensors.begin(), tensors.end(),
                       [&](const FileTensor& t) { return t.name == name; });
}

}  // namespace capstan::model
