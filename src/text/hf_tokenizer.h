// The one Tokenizer: a tokenizer.json inside the Rust crate plus the names around it.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "text/tokenizer.h"

namespace capstan::text {

/// What is known besides tokenizer.json.
struct TokenizerSettings {
  std::string bos_token, eos_token;  // empty if none
  /// Replace the post-processor of tokenizer.json by BOS and EOS as asked for.
  bool replace_post_processor = false;
  bool add_bos = false, add_eos = false;
  std::string chat_template, tool_chat_template;
};

/// `origin` leads error messages: a path, or what the JSON was made from.
Result<std::shared_ptr<const Tokenizer>> tokenizer_from_json(std::string_view json,
                                                             TokenizerSettings settings,
                                                             std::string_view origin);

/// The tokenizer.json that corresponds to GGUF metadata.
Result<std::string> tokenizer_json_from_gguf(const GgufVocabulary& vocabulary);

/// tokenizer.json as the crate writes it: equal for equal tokenizers, whatever their origin.
Result<std::string> canonical_tokenizer_json(std::string_view json);

}  // namespace capstan::text
