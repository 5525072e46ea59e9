// Token ids to text while they stream: never half a UTF-8 sequence, never U+FFFD for bytes that
// later complete. The concatenation of all pieces equals Tokenizer::decode of all ids.
#pragma once

#include <memory>
#include <string>

#include "text/tokenizer.h"
#include "text/utf8.h"

namespace capstan::text {

class Detokenizer {
 public:
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special_tokens);
  /// Text that became complete with this token; possibly empty.
  std::string push(int32_t id);
  /// The rest; an incomplete sequence becomes U+FFFD.
  std::string finish();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_tokens_;
  Utf8Stream stream_;
};

}  // namespace capstan::text
