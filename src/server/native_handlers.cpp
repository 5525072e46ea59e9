// POST /generate: the native dialect's answers. Streams carry the text so far in every event, or
// only what is new with --incremental-streaming-output.
#include <cmath>

#include "server/call.h"
#include "server/generate.h"
#include "server/handlers.h"
#include "server/json_text.h"
#include "server/openai_format.h"

namespace capstan::server {
namespace {

class NativeWriter final : public ResponseWriter {
 public:
  NativeWriter(const AppState& app, const GenerationCall& request)
      : app_(app),
        request_(request),
        so_far_(request.prompts.size() * static_cast<size_t>(request.n)) {
    list_ = request.batch || request.n > 1;
  }

  std::string whole(const Call& call) override {
    std::string out = list_ ? "[" : "";
    for (const auto& choice : call.choices()) {
      if (choice->index() > 0) out += ',';
      append_object(out, *choice, choice->text(), choice->token_ids(), choice->entries(), true);
    }
    return list_ ? out + "]" : out;
  }
  void first(const Choice&, std::string&) override {}
  void delta(const Choice& choice, std::string_view text,
             std::span<const engine::OutputToken> entries, std::string& out) override {
    SoFar& own = so_far_[static_cast<size_t>(choice.index())];
    own.text += text;
    own.entries.insert(own.entries.end(), entries.begin(), entries.end());
    if (!choice.done()) append_event(choice, false, out);  // else finish() follows at once
  }
  void reasoning(const Choice&, std::string_view, std::span<const engine::OutputToken>,
                 std::string&) override {}  // this dialect leaves it in the text
  void finish(const Choice& choice, std::string& out) override { append_event(choice, true, out); }
  void end(const Call&, std::string& out) override { out += "data: [DONE]\n\n"; }

 private:
  struct SoFar {
    std::string text;
    std::vector<engine::OutputToken> entries;
    size_t ids_sent = 0;
  };

  void append_event(const Choice& choice, bool final, std::string& out) {
    SoFar& own = so_far_[static_cast<size_t>(choice.index())];
    std::span<const int32_t> ids = choice.token_ids();
    out += "data: ";
    if (app_.config.incremental_streaming_output) {
      append_object(out, choice, own.text, ids.subspan(own.ids_sent), own.entries, final);
      own.text.clear();
      own.entries.clear();
      own.ids_sent = ids.size();
    } else {
      append_object(out, choice, own.text, ids, own.entries, final);
    }
    out += "\n\n";
  }

  void append_object(std::string& out, const Choice& choice, std::string_view text,
                     std::span<const int32_t> ids, std::span<const engine::OutputToken> entries,
                     bool final) const {
    out += "{\"text\":";
    append_json_string(out, text);
    out += ",\"output_ids\":[";
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i > 0) out += ',';
      append_json_int(out, ids[i]);
    }
    out += "],\"meta_info\":{\"id\":";
    append_json_string(out, rid_of(request_, static_cast<size_t>(choice.index() / request_.n)));
    out += ",\"finish_reason\":";
    append_finish_reason(out, choice, final);
    const auto number = [&out](std::string_view key, int64_t value) {
      out += ",\"";
      out += key;
      out += "\":";
      append_json_int(out, value);
    };
    number("prompt_tokens", choice.prompt_tokens());
    number("completion_tokens", choice.completion_tokens());
    number("cached_tokens", choice.cached_tokens());
    number("reasoning_tokens", 0);
    number("num_retractions", choice.retractions());
    using Source = engine::SpeculationConfig::Source;
    if (app_.engine->config().speculation.source != Source::kNone && choice.decode_steps() > 0) {
      number("spec_verify_ct", choice.decode_steps());
      out += ",\"spec_accept_length\":";
      append_json_double(out,
                         static_cast<double>(choice.completion_tokens()) / choice.decode_steps());
    }
    out += ",\"weight_version\":";
    append_json_string(out, app_.config.weight_version);
    if (final) {
      out += ",\"e2e_latency\":";
      append_json_double(out, choice.seconds());
    }
    if (choice.prompt().sampling.params.logprobs) append_logprobs(out, choice, entries);
    out += '}';
    if (list_ && request_.stream) number("index", choice.index());
    out += '}';
  }

  void append_finish_reason(std::string& out, const Choice& choice, bool final) const {
    if (!final) {
      out += "null";
      return;
    }
    switch (choice.finish_kind()) {
      case engine::FinishKind::kStop:
        out += "{\"type\":\"stop\",\"matched\":";
        choice.append_matched_stop(out);
        break;
      case engine::FinishKind::kAbort:
        out += "{\"type\":\"abort\",\"message\":";
        append_json_string(out, choice.abort_message());
        break;
      default:
        out += "{\"type\":\"length\",\"length\":";
        append_json_int(out, choice.completion_tokens());
    }
    out += '}';
  }

  void append_entry(std::string& out, int32_t id, float logprob) const {
    out += '[';
    if (std::isnan(logprob)) {
      out += "null";
    } else {
      append_json_float(out, logprob);
    }
    out += ',';
    append_json_int(out, id);
    out += ',';
    if (request_.return_text_in_logprobs) {
      append_json_string(out, token_text(*app_.tokenizer, id));
    } else {
      out += "null";
    }
    out += ']';
  }

  void append_logprobs(std::string& out, const Choice& choice,
                       std::span<const engine::OutputToken> entries) const {
    const auto& params = choice.prompt().sampling.params;
    const auto& prompt_ids = choice.prompt().ids;
    const auto lists = [&](std::string_view name, std::span<const engine::OutputToken> tokens,
                           auto member) {
      out += ",\"";
      out += name;
      out += "\":[";
      for (size_t i = 0; i < tokens.size(); ++i) {
        if (i > 0) out += ',';
        const std::vector<engine::TokenLogprob>& list = tokens[i].*member;
        if (list.empty()) {
          out += "null";  // the first position of a prompt
          continue;
        }
        out += '[';
        for (size_t k = 0; k < list.size(); ++k) {
          if (k > 0) out += ',';
          append_entry(out, list[k].token, list[k].logprob);
        }
        out += ']';
      }
      out += ']';
    };
    const std::span<const engine::OutputToken> prompt = choice.prompt_entries();
    out += ",\"input_token_logprobs\":[";
    for (size_t i = 0; i < prompt.size(); ++i) {
      if (i > 0) out += ',';
      const size_t position = static_cast<size_t>(std::max(0, params.logprob_start)) + i;
      append_entry(out, position < prompt_ids.size() ? prompt_ids[position] : prompt[i].token,
                   prompt[i].logprob);
    }
    out += "],\"output_token_logprobs\":[";
    for (size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out += ',';
      append_entry(out, entries[i].token, entries[i].logprob);
    }
    out += ']';
    if (params.top_logprobs > 0) {
      lists("input_top_logprobs", prompt, &engine::OutputToken::top);
      lists("output_top_logprobs", entries, &engine::OutputToken::top);
    }
    if (!params.token_ids_logprob.empty()) {
      lists("input_token_ids_logprobs", prompt, &engine::OutputToken::chosen);
      lists("output_token_ids_logprobs", entries, &engine::OutputToken::chosen);
    }
  }

  const AppState& app_;
  const GenerationCall& request_;
  bool list_ = false;
  std::vector<SoFar> so_far_;
};

}  // namespace

void add_native_routes(AppState& app) {
  app.router.add(
      {.pattern = "/generate",
       .methods = {"POST", "PUT"},
       .handler =
           [&app](Exchange& exchange) {
             return generate(
                 app, exchange, prepare_native,
                 [&app](const GenerationCall& request) -> std::unique_ptr<ResponseWriter> {
                   return std::make_unique<NativeWriter>(app, request);
                 });
           },
       .json_body = true,
       .generation = true});
}

}  // namespace capstan::server
