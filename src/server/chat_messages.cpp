#include "server/chat_messages.h"

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include "server/app_state.h"
#include "server/generation_call.h"

namespace capstan::server {
namespace {

constexpr std::string_view kRoles[] = {"system",    "developer", "user",
                                       "assistant", "tool",      "function"};

Error wrong(const std::string& path, const std::string& message) {
  return invalid_argument(path + ": " + message, path);
}

std::string_view view(const json::string& text) { return {text.data(), text.size()}; }

Result<std::string> read_role(const json::object& message, const std::string& path) {
  const json::value* value = message.if_contains("role");
  if (value == nullptr) return wrong(path + ".role", "is required.");
  if (!value->is_string()) {
    return wrong(path + ".role", "expected a string, got " + describe(*value) + ".");
  }
  std::string role(view(value->get_string()));
  for (char& c : role) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  if (std::find(std::begin(kRoles), std::end(kRoles), role) == std::end(kRoles)) {
    return wrong(path + ".role", "unknown role " + describe(*value) +
                                     "; use system, developer, user, assistant, tool or function.");
  }
  return role == "developer" ? std::string("system") : role;
}

Result<std::vector<std::string>> read_parts(const json::array& parts, const std::string& path) {
  std::vector<std::string> texts;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string where = path + "[" + std::to_string(i) + "]";
    const json::object* part = parts[i].if_object();
    if (part == nullptr) {
      return wrong(where, "expected a content part object, got " + describe(parts[i]) + ".");
    }
    const json::value* type = part->if_contains("type");
    if (type == nullptr || !type->is_string()) {
      return wrong(where + ".type", "expected a string such as \"text\".");
    }
    if (type->get_string() != "text") {
      return wrong(where + ".type", "the served model takes text only, got a part of type \"" +
                                        std::string(view(type->get_string())) + "\".");
    }
    const json::value* text = part->if_contains("text");
    if (text == nullptr || !text->is_string()) {
      return wrong(where + ".text", text == nullptr
                                        ? "is required."
                                        : "expected a string, got " + describe(*text) + ".");
    }
    texts.emplace_back(view(text->get_string()));
  }
  return texts;
}

Result<json::value> read_content(const json::object& message, std::string_view role, bool as_parts,
                                 const std::string& path) {
  const json::value* value = message.if_contains("content");
  std::vector<std::string> texts;
  if (value == nullptr || value->is_null()) {
    if (role != "assistant" && role != "tool" && role != "function") {
      return wrong(path + ".content", value == nullptr
                                          ? "is required."
                                          : "may be null in assistant and tool messages only.");
    }
    texts.emplace_back();
  } else if (value->is_string()) {
    texts.emplace_back(view(value->get_string()));
  } else if (value->is_array()) {
    CAPSTAN_ASSIGN(texts, read_parts(value->get_array(), path + ".content"));
  } else {
    return wrong(path + ".content",
                 "expected a string or a list of parts, got " + describe(*value) + ".");
  }
  if (!as_parts) {
    std::string joined;
    for (const std::string& text : texts) joined += text;
    return json::value(json::string(joined));
  }
  json::array parts;
  for (const std::string& text : texts) {
    parts.push_back(json::object{{"type", "text"}, {"text", json::string(text)}});
  }
  return json::value(std::move(parts));
}

Result<json::array> read_tool_calls(const json::value& value, bool string_arguments,
                                    const std::string& path) {
  if (!value.is_array()) return wrong(path, "expected a list, got " + describe(value) + ".");
  json::array calls;
  for (size_t i = 0; i < value.get_array().size(); ++i) {
    const std::string where = path + "[" + std::to_string(i) + "]";
    const json::object* call = value.get_array()[i].if_object();
    const json::value* function = call == nullptr ? nullptr : call->if_contains("function");
    if (function == nullptr || !function->is_object()) {
      return wrong(where + ".function", "expected an object with name and arguments.");
    }
    const json::value* name = function->get_object().if_contains("name");
    if (name == nullptr || !name->is_string()) {
      return wrong(where + ".function.name", "expected a string.");
    }
    json::object copy = *call;
    json::object& inner = copy["function"].get_object();
    if (json::value* arguments = inner.if_contains("arguments")) {
      if (arguments->is_string()) {
        json::error_code ec;
        json::value parsed = json::parse(view(arguments->get_string()), ec);
        if (!string_arguments && !ec && parsed.is_object()) *arguments = std::move(parsed);
      } else if (!arguments->is_object() && !arguments->is_null()) {
        return wrong(where + ".function.arguments",
                     "expected JSON text or an object, got " + describe(*arguments) + ".");
      } else if (string_arguments) {
        *arguments = json::string(arguments->is_null() ? "{}" : json::serialize(*arguments));
      }
    }
    if (!copy.contains("type")) copy["type"] = "function";
    calls.push_back(std::move(copy));
  }
  return calls;
}

Result<json::object> read_message(const json::value& value, const text::MessageForms& forms,
                                  const std::string& path) {
  const json::object* message = value.if_object();
  if (message == nullptr) {
    return wrong(path, "expected a message object, got " + describe(value) + ".");
  }
  CAPSTAN_ASSIGN(const std::string role, read_role(*message, path));
  json::object out;
  out["role"] = json::string(role);
  CAPSTAN_ASSIGN(out["content"], read_content(*message, role, forms.content_parts, path));
  for (const char* key : {"name", "tool_call_id", "reasoning_content"}) {
    const json::value* text = message->if_contains(key);
    if (text == nullptr || text->is_null()) continue;
    if (!text->is_string()) {
      return wrong(path + "." + key, "expected a string, got " + describe(*text) + ".");
    }
    out[key] = *text;
  }
  if (const json::value* calls = message->if_contains("tool_calls");
      calls != nullptr && !calls->is_null()) {
    CAPSTAN_ASSIGN(json::array list,
                   read_tool_calls(*calls, forms.string_arguments, path + ".tool_calls"));
    if (!list.empty()) {
      out["tool_calls"] = std::move(list);
      if (forms.null_content && content_text(out).empty()) out["content"] = nullptr;
    }
  }
  return out;
}

// Thinking switches of templates, from the router-style and OpenAI fields.
void read_reasoning(Fields& fields, json::object* context) {
  std::optional<bool> thinking;
  std::optional<std::string> effort = fields.string("reasoning_effort");
  if (const json::object* reasoning = fields.object("reasoning")) {
    Fields inner(*reasoning, "reasoning");
    if (!effort) effort = inner.string("effort");
    thinking = inner.boolean("enabled");
    if (!inner.ok()) fields.fail("reasoning", inner.status().error().message);
  }
  if (effort) {
    static constexpr std::string_view kLevels[] = {"none", "minimal", "low", "medium",
                                                   "high", "xhigh",   "max"};
    if (std::find(std::begin(kLevels), std::end(kLevels), *effort) == std::end(kLevels)) {
      fields.fail(
          "reasoning_effort",
          "must be none, minimal, low, medium, high, xhigh or max, got \"" + *effort + "\".");
    }
    if (!thinking) thinking = *effort != "none";
    (*context)["reasoning_effort"] = json::string(*effort);
  }
  if (thinking) {
    (*context)["thinking"] = *thinking;
    (*context)["enable_thinking"] = *thinking;
  }
}

}  // namespace

Result<json::array> read_messages(const json::value* value, const text::MessageForms& forms) {
  if (value == nullptr) return invalid_argument("messages: is required.", "messages");
  if (!value->is_array()) {
    return invalid_argument("messages: expected a list, got " + describe(*value) + ".", "messages");
  }
  if (value->get_array().empty()) {
    return invalid_argument("Messages cannot be empty.", "messages");
  }
  json::array messages;
  for (size_t i = 0; i < value->get_array().size(); ++i) {
    CAPSTAN_ASSIGN(json::object message, read_message(value->get_array()[i], forms,
                                                      "messages[" + std::to_string(i) + "]"));
    messages.push_back(std::move(message));
  }
  return messages;
}

std::string content_text(const json::object& message) {
  const json::value& content = message.at("content");
  if (content.is_null()) return {};
  if (content.is_string()) return std::string(view(content.get_string()));
  std::string text;
  for (const json::value& part : content.get_array()) {
    text += view(part.at("text").get_string());
  }
  return text;
}

Result<RenderedChat> render_chat(const AppState& app, Fields& fields) {
  if (app.chat_template == nullptr) {
    return invalid_argument(
        "The served model has no chat template; start the server with --chat-template or use "
        "/v1/completions.",
        "messages");
  }
  CAPSTAN_ASSIGN(json::array messages,
                 read_messages(fields.find("messages"), app.chat_template->forms()));
  const bool continues = fields.boolean("continue_final_message").value_or(false);
  json::object context = app.default_template_kwargs;
  read_reasoning(fields, &context);
  if (const json::object* kwargs = fields.object("chat_template_kwargs")) {
    for (const auto& [key, value] : *kwargs) context[key] = value;
  }
  CAPSTAN_RETURN_IF_ERROR(fields.status());

  // The last assistant message: a prefix to go on from, or (SGLang's behaviour) a user's turn.
  std::string prefix;
  json::object& last = messages.back().get_object();
  if (last.at("role").get_string() == "assistant") {
    if (continues) {
      prefix = content_text(last);
      messages.pop_back();
    } else if (!last.contains("tool_calls")) {
      last["role"] = "user";
    }
  } else if (continues) {
    return invalid_argument(
        "continue_final_message: the last message must be the assistant's, got role \"" +
            std::string(view(last.at("role").get_string())) + "\".",
        "continue_final_message");
  }
  context["messages"] = std::move(messages);
  context["tools"] = nullptr;
  context["add_generation_prompt"] = fields.boolean("add_generation_prompt").value_or(true);
  CAPSTAN_RETURN_IF_ERROR(fields.status());

  RenderedChat rendered;
  CAPSTAN_ASSIGN(rendered.text, app.chat_template->render(json::serialize(context)));
  if (app.reasoning != nullptr) {
    rendered.thinking = text::prefix_opens_thinking(
        *app.reasoning, prefix, text::prompt_opens_thinking(*app.reasoning, rendered.text));
  }
  rendered.text += prefix;
  // The template writes BOS itself, as transformers' apply_chat_template expects.
  CAPSTAN_ASSIGN(rendered.ids, app.tokenizer->encode(rendered.text, false));
  return rendered;
}

}  // namespace capstan::server
