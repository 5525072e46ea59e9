// Template text and context from the fuzzer: compile and render must return, with text or an error.
//
// The input is the template, a NUL byte, and the context as JSON; without a NUL the whole input is
// the template and the context a fixed conversation. Run with -rss_limit_mb and -max_len=4096:
// instructions and recursion are bounded, the memory that 30 doublings of a string take is not.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "text/chat_template.h"
#include "text/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view source(reinterpret_cast<const char*>(data), size);
  std::string_view context =
      R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},
          {"role":"assistant","content":"<think>r</think>a","tool_calls":[{"type":"function",
          "function":{"name":"f","arguments":{"x":[1,2.5,null]}}}]},{"role":"tool","content":"r"}],
          "tools":[{"type":"function","function":{"name":"f"}}],"add_generation_prompt":true})";
  if (const size_t cut = source.find('\0'); cut != std::string_view::npos) {
    context = source.substr(cut + 1);
    source = source.substr(0, cut);
  }
  const auto chat = capstan::text::ChatTemplate::compile(source, {"<s>", "</s>"});
  if (!chat.ok()) {
    if (chat.error().message.empty()) std::abort();
    if (chat.error().code == capstan::ErrorCode::kInternal) std::abort();
    return 0;
  }
  const auto text = (*chat)->render(context);
  // A panic inside the crate: answered, but a fault of ours.
  if (!text.ok() && text.error().code == capstan::ErrorCode::kInternal) std::abort();
  if (text.ok() && capstan::text::first_invalid_utf8(*text)) std::abort();
  if (!text.ok() && text.error().message.empty()) std::abort();
  return 0;
}
