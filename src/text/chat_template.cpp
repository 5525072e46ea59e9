#include "text/chat_template.h"

#include <optional>

#include "text/rust_call.h"

namespace capstan::text {
namespace {

struct FreeTemplate {
  void operator()(CapstanTemplate* chat_template) const {
    RustScope scope;
    capstan_template_free(chat_template);
  }
};
using Handle = std::unique_ptr<CapstanTemplate, FreeTemplate>;

// What the probes below look for; no template contains it.
constexpr std::string_view kProbe = "capstan-content-probe";

class JinjaTemplate final : public ChatTemplate {
 public:
  explicit JinjaTemplate(Handle handle) : handle_(std::move(handle)) {
    forms_.content_parts = !shows("\"" + std::string(kProbe) + "\"") &&
                           shows(R"([{"type":"text","text":")" + std::string(kProbe) + "\"}]");
    find_call_forms();
  }

  Result<std::string> render(std::string_view context_json) const override {
    RustScope scope;
    RustBytes text, message;
    const int32_t status =
        capstan_template_render(handle_.get(), rust_slice(context_json), text.out(), message.out());
    if (status == kCapstanTextRaised) return rust_error(status, {}, message);
    if (status != kCapstanTextOk) return rust_error(status, "chat template", message);
    return std::string(text.view());
  }

  const MessageForms& forms() const override { return forms_; }

 private:
  /// Whether a user message with this content (JSON) reaches the output. Asking the template
  /// itself works for any way of writing it; reading its source would not.
  bool shows(const std::string& content) const {
    const Result<std::string> text = render(R"({"messages":[{"role":"user","content":)" + content +
                                            R"(}],"add_generation_prompt":true})");
    return text.ok() && text->find(kProbe) != std::string::npos;
  }

  /// A turn with a tool call, or nothing if the call is not in the output as it should be.
  std::optional<std::string> with_call(std::string_view content, bool as_string) const {
    const std::string arguments = "{\"" + std::string(kProbe) + "\":1}";
    Result<std::string> text = render(
        R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":)" +
        std::string(content) +
        R"(,"tool_calls":[{"id":"call_0","type":"function","function":{"name":"f","arguments":)" +
        (as_string ? "\"{\\\"" + std::string(kProbe) + "\\\":1}\"" : arguments) +
        R"(}}]},{"role":"tool","tool_call_id":"call_0","content":"r"}],"add_generation_prompt":true})");
    if (!text.ok()) return std::nullopt;
    // An object is printed in the template's way; text must come through as it is.
    if (text->find(as_string ? arguments : std::string(kProbe)) == std::string::npos) {
      return std::nullopt;
    }
    return std::move(text).value();
  }

  void find_call_forms() {
    const std::string_view empty = forms_.content_parts ? "[]" : "\"\"";
    const auto either = [&](bool as_string) {
      return with_call(empty, as_string) || with_call("null", as_string);
    };
    forms_.string_arguments = !either(false) && either(true);
    const auto without = with_call("null", forms_.string_arguments);
    // A template that does not expect null prints it.
    if (!without || without->find("none") != std::string::npos ||
        without->find("None") != std::string::npos) {
      return;
    }
    forms_.null_content = with_call(empty, forms_.string_arguments) != without;
  }

  Handle handle_;
  MessageForms forms_;
};

}  // namespace

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::compile(std::string_view jinja, Tokens tokens) {
  Handle handle;
  {
    RustScope scope;
    CapstanTemplate* raw = nullptr;
    RustBytes message;
    const int32_t status = capstan_template_compile(rust_slice(jinja), rust_slice(tokens.bos),
                                                    rust_slice(tokens.eos), &raw, message.out());
    if (status != kCapstanTextOk) return rust_error(status, "chat template", message);
    handle.reset(raw);
  }
  return std::unique_ptr<ChatTemplate>(std::make_unique<JinjaTemplate>(std::move(handle)));
}

}  // namespace capstan::text
