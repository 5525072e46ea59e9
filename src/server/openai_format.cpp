#include "server/openai_format.h"

#include <cmath>
#include <unordered_set>

#include "server/app_state.h"
#include "server/json_text.h"

namespace capstan::server {
namespace {

void append_bytes(std::string& out, std::string_view bytes) {
  out += '[';
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out += ',';
    append_json_int(out, static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

// Special tokens may have no byte form; their text is what decoding shows.
std::string raw_bytes(const text::Tokenizer& tokenizer, int32_t id) {
  const std::string_view bytes = tokenizer.token_bytes(id);
  if (!bytes.empty()) return std::string(bytes);
  const auto text = tokenizer.decode(std::span<const int32_t>(&id, 1), false);
  return text.ok() ? *text : std::string();
}

void append_chat_entry(std::string& out, const text::Tokenizer& tokenizer, int32_t id,
                       float logprob) {
  const std::string bytes = raw_bytes(tokenizer, id);
  out += "{\"token\":";
  append_json_string(out, utf8_lossy(bytes));
  out += ",\"bytes\":";
  append_bytes(out, bytes);
  out += ",\"logprob\":";
  append_json_float(out, logprob);
}

void append_head(std::string& out, const OpenAiIdentity& identity, std::string_view object) {
  out += "{\"id\":";
  append_json_string(out, identity.id);
  out += ",\"object\":\"";
  out += object;
  out += "\",\"created\":";
  append_json_int(out, identity.created);
  out += ",\"model\":";
  append_json_string(out, identity.model);
  out += ",\"choices\":[";
}

void append_tail(std::string& out, const AppState& app, const Usage& usage) {
  out += "],\"usage\":";
  append_usage(out, app, usage);
  out += ",\"metadata\":{\"weight_version\":";
  append_json_string(out, app.config.weight_version);
  out += "}}";
}

void append_finish(std::string& out, const Choice& choice) {
  out += ",\"finish_reason\":";
  out += choice.finish_reason_json();
  out += ",\"matched_stop\":";
  choice.append_matched_stop(out);
  out += '}';
}

}  // namespace

std::string token_text(const text::Tokenizer& tokenizer, int32_t id) {
  return utf8_lossy(raw_bytes(tokenizer, id));
}

void append_usage(std::string& out, const AppState& app, const Usage& usage) {
  out += "{\"prompt_tokens\":";
  append_json_int(out, usage.prompt_tokens);
  out += ",\"completion_tokens\":";
  append_json_int(out, usage.completion_tokens);
  out += ",\"total_tokens\":";
  append_json_int(out, usage.prompt_tokens + usage.completion_tokens);
  out += ",\"reasoning_tokens\":";
  append_json_int(out, usage.reasoning_tokens);
  out += ",\"prompt_tokens_details\":";
  if (app.config.enable_cache_report) {
    out += "{\"cached_tokens\":";
    append_json_int(out, usage.cached_tokens);
    out += '}';
  } else {
    out += "null";
  }
  out += ",\"completion_tokens_details\":{\"reasoning_tokens\":";
  append_json_int(out, usage.reasoning_tokens);
  out += "}}";
}

void append_chat_logprobs(std::string& out, const text::Tokenizer& tokenizer,
                          std::span<const engine::OutputToken> entries) {
  out += "{\"content\":[";
  bool comma = false;
  for (const engine::OutputToken& entry : entries) {
    if (comma) out += ',';
    comma = true;
    append_chat_entry(out, tokenizer, entry.token, entry.logprob);
    out += ",\"top_logprobs\":[";
    for (size_t i = 0; i < entry.top.size(); ++i) {
      if (i > 0) out += ',';
      append_chat_entry(out, tokenizer, entry.top[i].token, entry.top[i].logprob);
      out += '}';
    }
    out += "]}";
  }
  out += "]}";
}

void append_completion_logprobs(std::string& out, const text::Tokenizer& tokenizer,
                                std::span<const engine::OutputToken> prompt_entries,
                                std::span<const int32_t> prompt_ids,
                                std::span<const engine::OutputToken> entries, int64_t* offset) {
  std::string tokens, logprobs, top, offsets;
  const auto add = [&](const engine::OutputToken& entry, int32_t id) {
    if (!tokens.empty()) {
      for (std::string* list : {&tokens, &logprobs, &top, &offsets}) *list += ',';
    }
    const std::string text = token_text(tokenizer, id);
    append_json_string(tokens, text);
    append_json_int(offsets, *offset);
    *offset += count_code_points(text);
    if (std::isnan(entry.logprob)) {  // the first token of a prompt has no predecessor
      logprobs += "null";
      top += "null";
      return;
    }
    append_json_float(logprobs, entry.logprob);
    if (entry.top.empty()) {
      top += "null";
      return;
    }
    top += '{';
    std::unordered_set<std::string> seen;  // two ids may look alike; the likelier one is kept
    for (const engine::TokenLogprob& other : entry.top) {
      std::string name = token_text(tokenizer, other.token);
      if (!seen.insert(name).second) continue;
      if (seen.size() > 1) top += ',';
      append_json_string(top, name);
      top += ':';
      append_json_float(top, other.logprob);
    }
    top += '}';
  };
  for (size_t i = 0; i < prompt_entries.size(); ++i) {
    const int32_t id = i < prompt_ids.size() ? prompt_ids[i] : prompt_entries[i].token;
    add(prompt_entries[i], id);
  }
  for (const engine::OutputToken& entry : entries) add(entry, entry.token);
  out += "{\"tokens\":[" + tokens + "],\"token_logprobs\":[" + logprobs + "],\"top_logprobs\":[" +
         top + "],\"text_offset\":[" + offsets + "]}";
}

static std::string chat_response(const AppState& app, const Call& call,
                                 const OpenAiIdentity& identity) {
  std::string out;
  append_head(out, identity, "chat.completion");
  for (const auto& choice : call.choices()) {
    if (choice->index() > 0) out += ',';
    out += "{\"index\":";
    append_json_int(out, choice->index());
    out += ",\"message\":{\"role\":\"assistant\",\"content\":";
    append_json_string(out, choice->text());
    out += ",\"reasoning_content\":";
    if (choice->reasoning().empty()) {
      out += "null";
    } else {
      append_json_string(out, choice->reasoning());
    }
    out += ",\"tool_calls\":null},\"logprobs\":";
    if (choice->prompt().sampling.params.logprobs) {
      append_chat_logprobs(out, *app.tokenizer, choice->entries());
    } else {
      out += "null";
    }
    append_finish(out, *choice);
  }
  append_tail(out, app, call.usage());
  return out;
}

static std::string completion_response(const AppState& app, const Call& call,
                                       const GenerationCall& request,
                                       const OpenAiIdentity& identity) {
  std::string out;
  append_head(out, identity, "text_completion");
  for (const auto& choice : call.choices()) {
    if (choice->index() > 0) out += ',';
    out += "{\"index\":";
    append_json_int(out, choice->index());
    out += ",\"text\":\"";
    if (request.echo) append_json_escaped(out, choice->prompt().text);
    append_json_escaped(out, choice->text());
    out += "\",\"logprobs\":";
    if (choice->prompt().sampling.params.logprobs) {
      int64_t offset = 0;
      append_completion_logprobs(out, *app.tokenizer, choice->prompt_entries(),
                                 choice->prompt().ids, choice->entries(), &offset);
    } else {
      out += "null";
    }
    append_finish(out, *choice);
  }
  append_tail(out, app, call.usage());
  return out;
}

OpenAiWriter::OpenAiWriter(const AppState& app, const GenerationCall& request,
                           OpenAiIdentity identity, bool chat)
    : app_(app), request_(request), identity_(std::move(identity)), chat_(chat) {
  head_ = "data: ";
  append_head(head_, identity_, chat ? "chat.completion.chunk" : "text_completion");
  choices_.resize(request.prompts.size() * static_cast<size_t>(request.n));
  for (size_t i = 0; i < choices_.size(); ++i) {
    choices_[i].prefix = head_ + "{\"index\":" + std::to_string(i) + ',';
  }
}

std::string OpenAiWriter::whole(const Call& call) {
  return chat_ ? chat_response(app_, call, identity_)
               : completion_response(app_, call, request_, identity_);
}

void OpenAiWriter::append_usage_member(const Choice& choice, std::string& out) const {
  out += "],\"usage\":";
  if (request_.continuous_usage) {
    append_usage(out, app_, choice.call().usage());
  } else {
    out += "null";
  }
  out += "}\n\n";
}

void OpenAiWriter::first(const Choice& choice, std::string& out) {
  if (chat_) {
    out += choices_[static_cast<size_t>(choice.index())].prefix;
    out +=
        "\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,"
        "\"finish_reason\":null,\"matched_stop\":null}";
    append_usage_member(choice, out);
  } else if (request_.echo) {
    delta(choice, choice.prompt().text, {}, out);
  }
}

void OpenAiWriter::delta(const Choice& choice, std::string_view text,
                         std::span<const engine::OutputToken> entries, std::string& out) {
  PerChoice& own = choices_[static_cast<size_t>(choice.index())];
  out += own.prefix;
  out += chat_ ? "\"delta\":{\"content\":\"" : "\"text\":\"";
  append_json_escaped(out, text);
  out += chat_ ? "\"},\"logprobs\":" : "\",\"logprobs\":";
  const bool prompt_too = !chat_ && !own.prompt_logprobs_sent && !choice.prompt_entries().empty();
  if (entries.empty() && !prompt_too) {
    out += "null";
  } else if (chat_) {
    append_chat_logprobs(out, *app_.tokenizer, entries);
  } else {
    append_completion_logprobs(
        out, *app_.tokenizer,
        prompt_too ? std::span(choice.prompt_entries()) : std::span<const engine::OutputToken>(),
        choice.prompt().ids, entries, &own.text_offset);
    own.prompt_logprobs_sent = true;
  }
  out += ",\"finish_reason\":null,\"matched_stop\":null}";
  append_usage_member(choice, out);
}

void OpenAiWriter::reasoning(const Choice& choice, std::string_view text,
                             std::span<const engine::OutputToken> entries, std::string& out) {
  out += choices_[static_cast<size_t>(choice.index())].prefix;
  out += "\"delta\":{\"reasoning_content\":\"";
  append_json_escaped(out, text);
  out += "\"},\"logprobs\":";
  if (entries.empty()) {
    out += "null";
  } else {
    append_chat_logprobs(out, *app_.tokenizer, entries);
  }
  out += ",\"finish_reason\":null,\"matched_stop\":null}";
  append_usage_member(choice, out);
}

void OpenAiWriter::finish(const Choice& choice, std::string& out) {
  out += choices_[static_cast<size_t>(choice.index())].prefix;
  out += chat_ ? "\"delta\":{},\"logprobs\":null" : "\"text\":\"\",\"logprobs\":null";
  append_finish(out, choice);
  append_usage_member(choice, out);
}

void OpenAiWriter::end(const Call& call, std::string& out) {
  if (request_.include_usage) {
    out += head_;
    out += "],\"usage\":";
    append_usage(out, app_, call.usage());
    out += "}\n\n";
  }
  out += "data: [DONE]\n\n";
}

}  // namespace capstan::server
