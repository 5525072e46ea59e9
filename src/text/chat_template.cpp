#include "text/chat_template.h"

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
    wants_content_parts_ = !shows("\"" + std::string(kProbe) + "\"") &&
                           shows(R"([{"type":"text","text":")" + std::string(kProbe) + "\"}]");
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

  bool wants_content_parts() const override { return wants_content_parts_; }

 private:
  /// Whether a user message with this content (JSON) reaches the output. Asking the template
  /// itself works for any way of writing it; reading its source would not.
  bool shows(const std::string& content) const {
    const Result<std::string> text = render(R"({"messages":[{"role":"user","content":)" + content +
                                            R"(}],"add_generation_prompt":true})");
    return text.ok() && text->find(kProbe) != std::string::npos;
  }

  Handle handle_;
  bool wants_content_parts_ = false;
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
