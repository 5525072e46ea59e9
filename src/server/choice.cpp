#include "server/choice.h"

#include "server/app_state.h"
#include "server/call.h"
#include "server/json_text.h"

namespace capstan::server {

using engine::FinishKind;

Choice::Choice(Call& call, const Prompt& prompt, int index, bool first_of_prompt)
    : call_(&call),
      prompt_(prompt),
      index_(index),
      first_of_prompt_(first_of_prompt),
      interval_(prompt.sampling.stream_interval > 0 ? prompt.sampling.stream_interval
                                                    : call.app().config.stream_interval),
      decoder_(call.app().tokenizer, prompt) {}

void Choice::on_event(engine::OutputEvent&& event) {
  if (call_ == nullptr || done_) return;
  const Clock::time_point now = Clock::now();
  cached_tokens_ = event.cached_tokens;
  retractions_ = event.retractions;
  decode_steps_ = event.decode_steps;
  queue_seconds_ = event.queue_seconds;
  if (!event.prompt_logprobs.empty()) prompt_entries_ = std::move(event.prompt_logprobs);

  if (!event.tokens.empty()) {
    const auto count = static_cast<int64_t>(event.tokens.size());
    Metrics& metrics = *call_->app().metrics;
    if (ttft_seconds_ < 0) {
      ttft_seconds_ = seconds_between(call_->created(), now);
      metrics.first_token(ttft_seconds_);
    } else {
      metrics.next_tokens(seconds_between(last_token_, now), count);
    }
    last_token_ = now;
    for (size_t i = 0; i < event.tokens.size() && !done_; ++i) {
      take_token(std::move(event.tokens[i]), event, i + 1 == event.tokens.size());
      if (call_ == nullptr) return;  // the client left while text was written
    }
  }
  if (!event.finished || done_) return;

  if (event.finish == FinishKind::kAbort && event.abort_code != ErrorCode::kAborted) {
    done_ = true;
    record_end(true);
    call_->fail(from_error(Error{event.abort_code, event.message}));
    return;
  }
  finish_ = event.finish;
  matched_token_ = event.finish == FinishKind::kStop ? event.matched_token : -1;
  abort_message_ = std::move(event.message);
  decoder_.finish(&text_);
  finish();
}

void Choice::take_token(engine::OutputToken&& token, const engine::OutputEvent& event, bool last) {
  ++completion_tokens_;
  ++unsent_tokens_;
  if (keep_token_ids_) token_ids_.push_back(token.token);
  // The token that ends a request is counted but not shown.
  const bool ends = last && event.finished && event.finish == FinishKind::kStop &&
                    event.matched_token >= 0 && !prompt_.sampling.no_stop_trim;
  const int32_t id = token.token;
  if (prompt_.sampling.params.logprobs) entries_.push_back(std::move(token));
  const bool thought = decoder_.thought();
  if (!ends) decoder_.push(id, &text_);
  if (decoder_.thinking() || decoder_.thought() != thought) {
    reasoning_tokens_ = completion_tokens_;
    reasoning_entries_ = entries_.size();
  }
  if (decoder_.matched().has_value()) {
    // The limit is looked at before stop strings; the text is cut in either case.
    const bool at_limit = last && event.finished && event.finish == FinishKind::kLength;
    finish_ = at_limit ? FinishKind::kLength : FinishKind::kStop;
    if (!at_limit) matched_string_ = decoder_.matched();
    if (!event.finished) call_->app().engine->cancel(engine_id, FinishKind::kStop);
    finish();
    return;
  }
  // What comes with the end of the request leaves in finish().
  if (!(last && event.finished)) emit(false);
}

void Choice::emit(bool final) {
  ResponseWriter* writer = call_->writer();
  if (writer == nullptr) return;
  if (started_ && !final && unsent_tokens_ < interval_) return;
  Exchange& exchange = call_->exchange();
  exchange.begin_event_stream();
  std::string& out = exchange.stream_buffer();
  if (!started_) {
    started_ = true;
    writer->first(*this, out);
  }
  unsent_tokens_ = 0;
  // Log-probabilities of withheld text wait for it.
  const bool whole_thought = final || !decoder_.thinking();
  if (!text_.reasoning.empty() && (prompt_.reasoning.streamed || whole_thought)) {
    writer->reasoning(*this, text_.reasoning, std::span(entries_).first(reasoning_entries_), out);
    text_.reasoning.clear();
    entries_.erase(entries_.begin(), entries_.begin() + static_cast<ptrdiff_t>(reasoning_entries_));
    reasoning_entries_ = 0;
  }
  if (!text_.content.empty() || (final && !entries_.empty())) {
    writer->delta(*this, text_.content, entries_, out);
    text_.content.clear();
    entries_.clear();
    reasoning_entries_ = 0;
  }
  if (final) writer->finish(*this, out);
  exchange.stream_flush();
}

void Choice::finish() {
  done_ = true;
  record_end(finish_ == FinishKind::kAbort);
  emit(true);
  if (call_ != nullptr) call_->choice_done();
}

void Choice::record_end(bool aborted) {
  if (recorded_) return;
  recorded_ = true;
  e2e_seconds_ = seconds_between(call_->created(), Clock::now());
  FinishedRequest end;
  end.aborted = aborted;
  end.prompt_tokens = first_of_prompt_ ? prompt_tokens() : 0;
  end.cached_tokens = first_of_prompt_ ? cached_tokens_ : 0;
  end.generated_tokens = completion_tokens_;
  end.e2e_seconds = e2e_seconds_;
  end.ttft_seconds = ttft_seconds_;
  end.queue_seconds = queue_seconds_;
  call_->app().metrics->finished(end);
}

void Choice::detach() {
  if (call_ == nullptr) return;
  if (!done_ && engine_id != 0) {
    done_ = true;
    record_end(true);
    call_->app().engine->cancel(engine_id, FinishKind::kAbort, "the client is gone");
  }
  call_ = nullptr;
}

std::string_view Choice::finish_reason_json() const {
  switch (finish_) {
    case FinishKind::kStop:
      return "\"stop\"";
    case FinishKind::kLength:
      return "\"length\"";
    case FinishKind::kAbort:
      return "\"abort\"";
    case FinishKind::kNone:
      break;
  }
  return "null";
}

void Choice::append_matched_stop(std::string& out) const {
  if (matched_string_) {
    append_json_string(out, *matched_string_);
  } else if (matched_token_ >= 0) {
    append_json_int(out, matched_token_);
  } else {
    out += "null";
  }
}

}  // namespace capstan::server
