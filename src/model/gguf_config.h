// What GGUF metadata says, in the terms of Hugging Face: config, tensor names, vocabulary.
#pragma once

#include <boost/json/object.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/gguf_file.h"

namespace capstan::model {

/// The config.json that describes the same model. Errors name file and key.
Result<boost::json::object> gguf_config_json(const GgufFile& gguf, const std::string& file);

/// What config.json cannot express: the order of rotated elements, frequency factors
/// (rope_freqs.weight), further end tokens. `config` was made from gguf_config_json().
Status apply_gguf_details(const GgufFile& gguf, const std::string& file, ModelConfig& config);

/// general.sampling.* keys.
Result<GenerationDefaults> gguf_generation_defaults(const GgufFile& gguf, const std::string& file);

/// Empty model name when the file carries no tokenizer.
Result<text::GgufVocabulary> gguf_vocabulary(const GgufFile& gguf, const std::string& file);

/// blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; unknown names as they are.
std::string hf_tensor_name(std::string_view gguf_name);

/// The tensor under its Hugging Face name; stacked experts (blk.3.ffn_up_exps.weight) as one view
/// each (model.layers.3.mlp.experts.0.up_proj.weight and so on).
Result<std::vector<std::pair<std::string, TensorView>>> hf_tensors(const TensorView& tensor,
                                                                   const std::string& file);

}  // namespace capstan::model
