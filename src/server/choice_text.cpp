#include "server/choice_text.h"

namespace capstan::server {

ChoiceText::ChoiceText(std::shared_ptr<const text::Tokenizer> tokenizer, const Prompt& prompt)
    : detokenizer_(tokenizer, prompt.sampling.skip_special_tokens), reasoning_(prompt.reasoning) {
  const SamplingRequest& sampling = prompt.sampling;
  if (!sampling.stop.empty()) stops_.emplace(sampling.stop, sampling.no_stop_trim);
  if (reasoning_.format == nullptr) return;
  parser_.emplace(*reasoning_.format, reasoning_.inside);
  if (!sampling.skip_special_tokens) return;
  const auto special_id = [&](std::string_view tag) {
    const int32_t id = tokenizer->id_of(tag).value_or(-1);
    return id >= 0 && tokenizer->is_special(id) ? id : -1;
  };
  dropped_open_ = special_id(reasoning_.format->open);
  dropped_close_ = special_id(reasoning_.format->close);
}

std::string_view ChoiceText::dropped_tag(int32_t id) const {
  if (id == dropped_open_) return reasoning_.format->open;
  if (id == dropped_close_) return reasoning_.format->close;
  return {};
}

void ChoiceText::answer(std::string_view text, std::string* out) {
  if (!stops_) {
    *out += text;
    return;
  }
  *out += stops_->push(text);
  if (stops_->matched()) matched_ = stops_->matched_stop();
}

void ChoiceText::take(std::string_view text, text::ReasoningText* out) {
  if (!parser_) return answer(text, &out->content);
  text::ReasoningText parts;
  parser_->push(text, &parts);
  if (!reasoning_.separate) return answer(text, &out->content);
  out->reasoning += parts.reasoning;
  answer(parts.content, &out->content);
}

void ChoiceText::push(int32_t id, text::ReasoningText* out) {
  const std::string text = detokenizer_.push(id);
  const std::string_view tag = id >= 0 ? dropped_tag(id) : std::string_view();
  if (tag.empty()) return take(text, out);
  if (reasoning_.separate) return take(text + std::string(tag), out);
  // Counted as thinking all the same, but not shown.
  text::ReasoningText unseen;
  parser_->push(tag, &unseen);
  answer(text, &out->content);
}

void ChoiceText::finish(text::ReasoningText* out) {
  take(detokenizer_.finish(), out);
  if (parser_) {
    text::ReasoningText rest;
    parser_->finish(&rest);
    if (reasoning_.separate) {
      out->reasoning += rest.reasoning;
      if (!matched_) answer(rest.content, &out->content);
    }
  }
  if (stops_ && !matched_) out->content += stops_->finish();
}

}  // namespace capstan::server
