// JSON of the OpenAI dialect. The hot path is one chunk per token: everything that is constant in a
// stream is put together once, and a chunk is prefix + escaped text + suffix.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "server/call.h"
#include "server/choice.h"

namespace capstan::server {

struct AppState;

/// Members every chunk and response of one request shares.
struct OpenAiIdentity {
  std::string id, model;
  int64_t created = 0;
};

/// {"prompt_tokens":...}
void append_usage(std::string& out, const AppState& app, const Usage& usage);

/// {"content":[...]} as chat responses carry it.
void append_chat_logprobs(std::string& out, const text::Tokenizer& tokenizer,
                          std::span<const engine::OutputToken> entries);

/// The parallel lists of /v1/completions. `offset` is the position, in characters, of the first
/// token's text, and is moved past the last one's.
void append_completion_logprobs(std::string& out, const text::Tokenizer& tokenizer,
                                std::span<const engine::OutputToken> prompt_entries,
                                std::span<const int32_t> prompt_ids,
                                std::span<const engine::OutputToken> entries, int64_t* offset);

/// The text of one token, for log-probabilities; bytes that are no UTF-8 become U+FFFD.
std::string token_text(const text::Tokenizer& tokenizer, int32_t id);

/// chat.completion(.chunk) and text_completion objects.
class OpenAiWriter : public ResponseWriter {
 public:
  OpenAiWriter(const AppState& app, const GenerationCall& request, OpenAiIdentity identity,
               bool chat);

  std::string whole(const Call& call) override;
  void first(const Choice& choice, std::string& out) override;
  void delta(const Choice& choice, std::string_view text,
             std::span<const engine::OutputToken> entries, std::string& out) override;
  void reasoning(const Choice& choice, std::string_view text,
                 std::span<const engine::OutputToken> entries, std::string& out) override;
  void finish(const Choice& choice, std::string& out) override;
  /// Usage chunk (if asked for) and [DONE].
  void end(const Call& call, std::string& out) override;

 private:
  struct PerChoice {
    std::string prefix;  // data: {... "index":N,
    int64_t text_offset = 0;
    bool prompt_logprobs_sent = false;
  };
  void append_usage_member(const Choice& choice, std::string& out) const;

  const AppState& app_;
  const GenerationCall& request_;
  const OpenAiIdentity identity_;
  const bool chat_;
  std::string head_;  // data: {"id":...,"choices":[
  std::vector<PerChoice> choices_;
};

}  // namespace capstan::server
