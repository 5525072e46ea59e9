// Separates what a model thinks from what it answers, while the text arrives piece by piece.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace capstan::text {

/// How a family of models marks its thinking. Names are those of SGLang's --reasoning-parser.
struct ReasoningFormat {
  std::string_view name;
  std::string_view open = "<think>";
  std::string_view close = "</think>";
  /// The output begins inside the thinking whatever the prompt ends with.
  bool always = false;
  /// The output is taken to begin inside the thinking when there is no prompt to look at.
  bool assumed = false;
};

/// nullptr if unknown.
const ReasoningFormat* find_reasoning_format(std::string_view name);
/// "deepseek-r1, deepseek-v3, ...", for error messages.
std::string known_reasoning_formats();

/// Whether the output that follows `prompt` begins inside the thinking: the prompt ends with the
/// opening tag (templates that force thinking), white space apart.
bool prompt_opens_thinking(const ReasoningFormat& format, std::string_view prompt);
/// The same for an answer that goes on from `prefix`, an unfinished assistant message at the end
/// of the prompt; `before` is the state without it.
bool prefix_opens_thinking(const ReasoningFormat& format, std::string_view prefix, bool before);

/// Text that became known to be one or the other; both are appended to.
struct ReasoningText {
  std::string reasoning;
  std::string content;
};

/// One opening tag at the very beginning (white space before it allowed) is dropped and begins the
/// thinking, if it has not begun in the prompt. The first closing tag ends it and is dropped. Line
/// ends right after either tag are padding and belong to neither text. Without a closing tag all
/// that was thought is reasoning; without an opening one, in prompt or output, all is content.
///
/// A piece that could be the beginning of a tag is withheld until it cannot be one any more, so
/// that the result does not depend on how the text is cut into pieces: no part of a tag ever gets
/// out. At most the white space at the beginning and a tag less one byte are withheld.
class ReasoningParser {
 public:
  /// `inside`: the output begins inside the thinking. `format` must outlive the parser (those of
  /// find_reasoning_format do).
  ReasoningParser(const ReasoningFormat& format, bool inside) : format_(&format), inside_(inside) {}

  void push(std::string_view text, ReasoningText* out);
  /// Releases what was withheld; the generation has ended.
  void finish(ReasoningText* out);

  /// What has been pushed last belongs to the thinking. False while it is undecided whether there
  /// will be any.
  bool thinking() const {
    return state_ == State::kThinking || (state_ == State::kBeginning && inside_);
  }
  /// The closing tag has been seen.
  bool closed() const { return closed_; }

 private:
  enum class State : uint8_t {
    kBeginning,  // only white space or a part of an opening tag so far
    kThinking,
    kContent,
  };
  void begin(ReasoningText* out);
  void think(ReasoningText* out);
  void emit(std::string_view text, std::string* to);

  const ReasoningFormat* format_;
  bool inside_;
  bool closed_ = false;
  bool padding_ = false;  // line ends are dropped until something else comes
  State state_ = State::kBeginning;
  std::string held_;
};

}  // namespace capstan::text
