// One completion being generated: turns the engine's tokens into text, applies stop strings, holds
// back what may not be shown yet, and counts.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "server/choice_text.h"
#include "server/generation_call.h"
#include "server/io_thread.h"
#include "server/metrics.h"

namespace capstan::server {

class Call;
class Choice;

/// Writes answers of one dialect. All on the IO thread; `out` is the stream's buffer.
class ResponseWriter {
 public:
  virtual ~ResponseWriter() = default;
  /// The answer to a request that does not stream.
  virtual std::string whole(const Call& call) = 0;

  // Streams:
  /// Before anything else of this choice.
  virtual void first(const Choice& choice, std::string& out) = 0;
  /// New text and the log-probabilities (if asked for) of the tokens since the last call.
  virtual void delta(const Choice& choice, std::string_view text,
                     std::span<const engine::OutputToken> entries, std::string& out) = 0;
  /// The same for what the model thinks; comes before the answer. Only for prompts with a
  /// reasoning format.
  virtual void reasoning(const Choice& choice, std::string_view text,
                         std::span<const engine::OutputToken> entries, std::string& out) = 0;
  virtual void finish(const Choice& choice, std::string& out) = 0;
  /// After the last choice.
  virtual void end(const Call& call, std::string& out) = 0;
};

class Choice final : public EventReceiver, public std::enable_shared_from_this<Choice> {
 public:
  Choice(Call& call, const Prompt& prompt, int index, bool first_of_prompt);

  void on_event(engine::OutputEvent&& event) override;

  /// From now on events are ignored; ends the engine's request if it has not ended.
  void detach();
  bool done() const { return done_; }
  scheduler::RequestId engine_id = 0;

  /// Only while the request runs (in ResponseWriter's functions).
  const Call& call() const { return *call_; }
  const Prompt& prompt() const { return prompt_; }
  int index() const { return index_; }
  int64_t prompt_tokens() const { return static_cast<int64_t>(prompt_.ids.size()); }
  int64_t cached_tokens() const { return cached_tokens_; }
  int64_t completion_tokens() const { return completion_tokens_; }
  /// Of these: up to and including the end of the thinking.
  int64_t reasoning_tokens() const { return reasoning_tokens_; }
  int retractions() const { return retractions_; }
  /// Fewer than tokens where drafts were accepted.
  int decode_steps() const { return decode_steps_; }
  bool first_of_prompt() const { return first_of_prompt_; }

  /// Everything said so far; kept only when nothing is streamed or `keep_all` was set.
  const std::string& text() const { return text_.content; }
  const std::string& reasoning() const { return text_.reasoning; }
  const std::vector<engine::OutputToken>& entries() const { return entries_; }
  const std::vector<engine::OutputToken>& prompt_entries() const { return prompt_entries_; }
  const std::vector<int32_t>& token_ids() const { return token_ids_; }
  /// Keeps ids of generated tokens (native dialect).
  void keep_token_ids() { keep_token_ids_ = true; }

  engine::FinishKind finish_kind() const { return finish_; }
  int32_t matched_token() const { return matched_token_; }
  const std::optional<std::string>& matched_string() const { return matched_string_; }
  const std::string& abort_message() const { return abort_message_; }
  double seconds() const { return e2e_seconds_; }

  /// "stop", "length" or "abort", as JSON with quotes.
  std::string_view finish_reason_json() const;
  /// The id, the string, or null.
  void append_matched_stop(std::string& out) const;

 private:
  void take_token(engine::OutputToken&& token, const engine::OutputEvent& event, bool last);
  void emit(bool final);
  void finish();
  void record_end(bool aborted);

  Call* call_;
  const Prompt& prompt_;
  const int index_;
  const bool first_of_prompt_;
  const int interval_;
  ChoiceText decoder_;

  bool done_ = false;
  bool recorded_ = false;
  bool started_ = false;  // first() has been written
  bool keep_token_ids_ = false;
  int unsent_tokens_ = 0;     // since the last emission
  text::ReasoningText text_;  // streaming: not yet emitted
  std::vector<engine::OutputToken> entries_;
  size_t reasoning_entries_ = 0;  // how many of the first entries_ belong to the thinking
  std::vector<engine::OutputToken> prompt_entries_;
  std::vector<int32_t> token_ids_;
  int64_t cached_tokens_ = 0;
  int64_t completion_tokens_ = 0;
  int64_t reasoning_tokens_ = 0;
  int retractions_ = 0;
  int decode_steps_ = 0;
  double queue_seconds_ = 0;
  double ttft_seconds_ = -1;
  double e2e_seconds_ = 0;
  Clock::time_point last_token_{};
  engine::FinishKind finish_ = engine::FinishKind::kNone;
  int32_t matched_token_ = -1;
  std::optional<std::string> matched_string_;
  std::string abort_message_;
};

}  // namespace capstan::server
