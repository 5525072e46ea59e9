#include "text/reasoning_parser.h"

#include <algorithm>

namespace capstan::text {
namespace {

constexpr std::string_view kWhiteSpace = " \t\r\n";
constexpr std::string_view kLineEnds = "\r\n";

// What SGLang tells apart per name beyond the tags, whether a prompt ends inside the thinking, is
// read from the prompt itself: it holds for every version of a model's template.
constexpr ReasoningFormat kFormats[] = {
    {.name = "deepseek-r1", .assumed = true},
    {.name = "deepseek-v3"},
    {.name = "qwen3"},
    {.name = "qwen3-thinking", .always = true, .assumed = true},
    {.name = "glm45"},
    {.name = "interns1"},
    {.name = "kimi", .open = "\u25C1think\u25B7", .close = "\u25C1/think\u25B7"},
    {.name = "minimax", .always = true, .assumed = true},
    {.name = "nemotron_3"},
    {.name = "step3", .assumed = true},
};

/// Length of the longest end of `text` that is a proper prefix of `tag`.
size_t partial_tag(std::string_view text, std::string_view tag) {
  size_t length = std::min(text.size(), tag.size() - 1);
  while (length > 0 && !text.ends_with(tag.substr(0, length))) --length;
  return length;
}

}  // namespace

const ReasoningFormat* find_reasoning_format(std::string_view name) {
  for (const ReasoningFormat& format : kFormats) {
    if (format.name == name) return &format;
  }
  return nullptr;
}

std::string known_reasoning_formats() {
  std::string list;
  for (const ReasoningFormat& format : kFormats) {
    if (!list.empty()) list += ", ";
    list += format.name;
  }
  return list;
}

bool prompt_opens_thinking(const ReasoningFormat& format, std::string_view prompt) {
  if (format.always) return true;
  const size_t end = prompt.find_last_not_of(kWhiteSpace);
  return end != std::string_view::npos && prompt.substr(0, end + 1).ends_with(format.open);
}

bool prefix_opens_thinking(const ReasoningFormat& format, std::string_view prefix, bool before) {
  if (prefix.find(format.close) != std::string_view::npos) return false;
  return before || prefix.find(format.open) != std::string_view::npos;
}

void ReasoningParser::emit(std::string_view text, std::string* to) {
  if (padding_) {
    text.remove_prefix(std::min(text.find_first_not_of(kLineEnds), text.size()));
    if (text.empty()) return;
    padding_ = false;
  }
  to->append(text);
}

void ReasoningParser::push(std::string_view text, ReasoningText* out) {
  if (state_ == State::kContent) {
    emit(text, &out->content);
    return;
  }
  held_.append(text);
  if (state_ == State::kBeginning) begin(out);
  if (state_ == State::kThinking) think(out);
}

void ReasoningParser::begin(ReasoningText* out) {
  const size_t start = std::min(held_.find_first_not_of(kWhiteSpace), held_.size());
  const std::string_view rest = std::string_view(held_).substr(start);
  if (rest.size() < format_->open.size() && format_->open.starts_with(rest)) return;
  if (rest.starts_with(format_->open)) {
    held_.erase(0, start + format_->open.size());
  } else if (!inside_) {
    state_ = State::kContent;
    emit(held_, &out->content);
    held_.clear();
    return;
  }
  state_ = State::kThinking;
  padding_ = true;  // after the opening tag, be it here or at the prompt's end
}

void ReasoningParser::think(ReasoningText* out) {
  const size_t found = held_.find(format_->close);
  if (found == std::string::npos) {
    const size_t hold = partial_tag(held_, format_->close);
    emit(std::string_view(held_).substr(0, held_.size() - hold), &out->reasoning);
    held_.erase(0, held_.size() - hold);
    return;
  }
  emit(std::string_view(held_).substr(0, found), &out->reasoning);
  state_ = State::kContent;
  closed_ = true;
  padding_ = true;
  emit(std::string_view(held_).substr(found + format_->close.size()), &out->content);
  held_.clear();
}

void ReasoningParser::finish(ReasoningText* out) {
  if (state_ == State::kBeginning && inside_) padding_ = true;
  emit(held_, thinking() ? &out->reasoning : &out->content);
  held_.clear();
}

}  // namespace capstan::text
