// Renders chat messages with the model's own Jinja template, as transformers renders it.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace capstan::text {

class ChatTemplate {
 public:
  struct Tokens {
    std::string bos, eos;
  };
  /// Compiles; a syntax error names line and cause.
  static Result<std::unique_ptr<ChatTemplate>> compile(std::string_view jinja, Tokens tokens);
  virtual ~ChatTemplate() = default;

  /// `context_json` is an object: messages (list), tools (list or null), add_generation_prompt
  /// (bool) and any chat_template_kwargs. raise_exception() in the template becomes
  /// kInvalidArgument with its text. Thread-safe.
  virtual Result<std::string> render(std::string_view context_json) const = 0;
  /// True when the template reads message content as a list of parts rather than a string.
  virtual bool wants_content_parts() const = 0;
};

}  // namespace capstan::text
