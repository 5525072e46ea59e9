// Tokens of one choice to the text that may be shown: detokenised, whole UTF-8 sequences only, what
// was thought apart from what is answered, the answer cut at the first stop string, with every
// possible beginning of a tag or a stop string held back.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "server/generation_call.h"
#include "text/detokenizer.h"
#include "text/reasoning_parser.h"
#include "text/stop_matcher.h"
#include "text/tokenizer.h"

namespace capstan::server {

class ChoiceText {
 public:
  ChoiceText(std::shared_ptr<const text::Tokenizer> tokenizer, const Prompt& prompt);

  /// Appends the text that this token made showable. After a match nothing more may be pushed.
  void push(int32_t id, text::ReasoningText* out);
  /// Appends what was held back; the generation ended by itself.
  void finish(text::ReasoningText* out);
  /// The stop string that was found. What is thought is not searched if it is separated.
  const std::optional<std::string>& matched() const { return matched_; }

  /// The model is thinking; false without a reasoning parser.
  bool thinking() const { return parser_ && parser_->thinking(); }
  /// It has ended its thinking with a closing tag.
  bool thought() const { return parser_ && parser_->closed(); }

 private:
  void take(std::string_view text, text::ReasoningText* out);
  void answer(std::string_view text, std::string* out);
  /// The tag if this token is one and the detokeniser drops it as special, else nothing.
  std::string_view dropped_tag(int32_t id) const;

  text::Detokenizer detokenizer_;
  const ReasoningRequest reasoning_;
  std::optional<text::ReasoningParser> parser_;
  int32_t dropped_open_ = -1, dropped_close_ = -1;  // ids of tags that are special tokens
  std::optional<text::StopMatcher> stops_;
  std::optional<std::string> matched_;
};

}  // namespace capstan::server
