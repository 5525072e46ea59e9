// Tokens of one choice to the text that may be shown: detokenised, whole UTF-8 sequences only, cut
// at the first stop string, with every possible beginning of one held back.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "server/sampling_request.h"
#include "text/detokenizer.h"
#include "text/stop_matcher.h"
#include "text/tokenizer.h"

namespace capstan::server {

class ChoiceText {
 public:
  ChoiceText(std::shared_ptr<const text::Tokenizer> tokenizer, const SamplingRequest& sampling);

  /// Appends the text that this token made showable. After a match nothing more may be pushed.
  void push(int32_t id, std::string* out);
  /// Appends what was held back; the generation ended by itself.
  void finish(std::string* out);
  /// The stop string that was found.
  const std::optional<std::string>& matched() const { return matched_; }

 private:
  void filter(std::string_view text, std::string* out);

  text::Detokenizer detokenizer_;
  std::optional<text::StopMatcher> stops_;
  std::optional<std::string> matched_;
};

}  // namespace capstan::server
