// Renders chat messages with the model's own Jinja template, as transformers renders it.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"

namespace capstan::text {

/// The forms in which a template reads messages. Templates differ here without saying so.
struct MessageForms {
  bool content_parts = false;     // content is a list of parts rather than a string
  bool null_content = false;      // beside tool calls, empty content must be null rather than ""
  bool string_arguments = false;  // arguments of a tool call are JSON text rather than an object
};

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
  virtual const MessageForms& forms() const = 0;
};

}  // namespace capstan::text
