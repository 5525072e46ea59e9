#include "text/detokenizer.h"

namespace capstan::text {

Detokenizer::Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens)
    : tokenizer_(std::move(tokenizer)), skip_special_tokens_(skip_special_tokens) {}

std::string Detokenizer::push(int32_t id) {
  std::string text;
  if (!skip_special_tokens_ || !tokenizer_->is_special(id)) {
    stream_.push(tokenizer_->token_bytes(id), text);
  }
  return text;
}

std::string Detokenizer::finish() {
  std::string text;
  stream_.finish(text);
  return text;
}

}  // namespace capstan::text
