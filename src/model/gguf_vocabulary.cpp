// The tokenizer in GGUF metadata.
#include "model/gguf_config.h"
#include "model/gguf_keys.h"

namespace capstan::model {

Result<text::GgufVocabulary> gguf_vocabulary(const GgufFile& gguf, const std::string& file) {
  text::GgufVocabulary v;
  CAPSTAN_ASSIGN(const std::optional<std::string_view> model, gguf.string("tokenizer.ggml.model"));
  if (!model) return v;
  CAPSTAN_ASSIGN(const std::optional<std::string_view> pre, gguf.string("tokenizer.ggml.pre"));
  CAPSTAN_ASSIGN(const std::optional<std::string_view> chat,
                 gguf.string("tokenizer.chat_template"));
  v.model = std::string(*model);
  v.pre = std::string(pre.value_or(""));
  v.chat_template = std::string(chat.value_or(""));

  CAPSTAN_ASSIGN(const GgufArray* tokens, gguf.array("tokenizer.ggml.tokens"));
  if (tokens == nullptr || tokens->type != GgufType::kString) {
    return data_loss(file + ": tokenizer.ggml.tokens is missing or not an array of strings");
  }
  v.tokens.assign(tokens->strings.begin(), tokens->strings.end());
  CAPSTAN_ASSIGN(const GgufArray* merges, gguf.array("tokenizer.ggml.merges"));
  if (merges != nullptr) {
    if (merges->type != GgufType::kString) {
      return data_loss(file + ": tokenizer.ggml.merges is not an array of strings");
    }
    v.merges.assign(merges->strings.begin(), merges->strings.end());
  }
  CAPSTAN_ASSIGN(const GgufArray* types, gguf.array("tokenizer.ggml.token_type"));
  if (types != nullptr) {
    if (types->count != tokens->count) {
      return data_loss(file + ": tokenizer.ggml.token_type has " + std::to_string(types->count) +
                       " entries for " + std::to_string(tokens->count) + " tokens");
    }
    v.token_types.reserve(static_cast<size_t>(types->count));
    for (uint64_t i = 0; i < types->count; ++i) {
      const std::optional<int64_t> type = scalar_integer(types->at(i));
      if (!type || *type < 0 || *type > 6) {
        return data_loss(file + ": tokenizer.ggml.token_type of token " + std::to_string(i) +
                         " is not one of the types 0 to 6");
      }
      v.token_types.push_back(static_cast<int32_t>(*type));
    }
  }
  CAPSTAN_ASSIGN(v.bos_id, token_id(gguf, "tokenizer.ggml.bos_token_id", tokens->count, file));
  CAPSTAN_ASSIGN(v.eos_id, token_id(gguf, "tokenizer.ggml.eos_token_id", tokens->count, file));
  CAPSTAN_ASSIGN(v.pad_id, token_id(gguf, "tokenizer.ggml.padding_token_id", tokens->count, file));
  CAPSTAN_ASSIGN(v.add_bos, gguf.boolean("tokenizer.ggml.add_bos_token"));
  CAPSTAN_ASSIGN(v.add_eos, gguf.boolean("tokenizer.ggml.add_eos_token"));
  return v;
}

}  // namespace capstan::model
