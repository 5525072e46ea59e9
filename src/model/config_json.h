// ModelConfig and generation defaults from Hugging Face JSON. GGUF metadata comes the same way:
// gguf_config.h writes it as the equivalent config.json, so that one place checks the values.
#pragma once

#include <boost/json/object.hpp>
#include <string>

#include "base/result.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace capstan::model {

/// Checks every field the architectures read (old and new spellings) and refuses what would
/// compute something else than the checkpoint means: unknown architectures (the error lists the
/// supported ones), biases, sliding windows, other activations, RoPE types or quantisations.
/// `source` names the file in errors, which are kInvalidArgument.
Result<ModelConfig> config_from_json(const boost::json::object& json, const std::string& source);

/// Entries of `overrides_json` replace those of `json`, key by key at the top level.
Status merge_overrides(boost::json::object& json, const std::string& overrides_json);

/// generation_config.json: sampling defaults, and its EOS ids added to `config`.
Result<GenerationDefaults> generation_defaults_from_json(const boost::json::object& json,
                                                         const std::string& source,
                                                         ModelConfig& config);

/// Range checks shared with GGUF's general.sampling.* keys.
Status validate(const GenerationDefaults& defaults, const std::string& source);

/// Adds `id` to the EOS ids unless it is there.
void add_eos(ModelConfig& config, int32_t id);

}  // namespace capstan::model
