#include "server/choice_text.h"

namespace capstan::server {

ChoiceText::ChoiceText(std::shared_ptr<const text::Tokenizer> tokenizer,
                       const SamplingRequest& sampling)
    : detokenizer_(std::move(tokenizer), sampling.skip_special_tokens) {
  if (!sampling.stop.empty()) stops_.emplace(sampling.stop, sampling.no_stop_trim);
}

void ChoiceText::filter(std::string_view text, std::string* out) {
  *out += stops_->push(text);
  if (stops_->matched()) matched_ = stops_->matched_stop();
}

void ChoiceText::push(int32_t id, std::string* out) {
  if (!stops_) {
    *out += detokenizer_.push(id);
  } else {
    filter(detokenizer_.push(id), out);
  }
}

void ChoiceText::finish(std::string* out) {
  if (!stops_) {
    *out += detokenizer_.finish();
    return;
  }
  filter(detokenizer_.finish(), out);
  if (!matched_) *out += stops_->finish();
}

}  // namespace capstan::server
