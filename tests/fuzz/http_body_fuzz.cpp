// Request bodies and targets as a hostile client would send them: parsing, validation, templates of
// messages and error answers must end without a crash, and every answer must be valid JSON. What is
// accepted must suit the engine too, which checks it again and would answer later and worse.
#include <boost/json.hpp>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "engine/sampling_params.h"
#include "server/app_state.h"
#include "server/chat_messages.h"
#include "server/errors.h"
#include "server/generation_call.h"
#include "server/http_message.h"
#include "server/json_text.h"

namespace {

using namespace capstan;          // NOLINT(google-build-using-namespace)
using namespace capstan::server;  // NOLINT(google-build-using-namespace)

class ByteTokenizer final : public text::Tokenizer {
 public:
  Result<std::vector<int32_t>> encode(std::string_view utf8, bool) const override {
    std::vector<int32_t> ids;
    for (const char c : utf8) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }
  Result<std::string> decode(std::span<const int32_t> ids, bool) const override {
    std::string out;
    for (const int32_t id : ids) out += static_cast<char>(id);
    return out;
  }
  std::string_view token_bytes(int32_t) const override { return "x"; }
  bool is_special(int32_t) const override { return false; }
  std::optional<int32_t> id_of(std::string_view) const override { return std::nullopt; }
  int32_t vocab_size() const override { return 256; }
  int32_t bos_id() const override { return 1; }
  int32_t eos_id() const override { return 2; }
  const std::string& bos_token() const override { return empty_; }
  const std::string& eos_token() const override { return empty_; }
  const std::string& chat_template() const override { return empty_; }

 private:
  std::string empty_;
};

// Joins contents: what is fuzzed is the server, not the template engine.
class PlainTemplate final : public text::ChatTemplate {
 public:
  explicit PlainTemplate(bool parts) : forms_{parts, parts, parts} {}
  Result<std::string> render(std::string_view context) const override {
    boost::json::parse_options deep;
    deep.max_depth = 256;
    const boost::json::value value = boost::json::parse(context, {}, deep);  // must be valid JSON
    std::string out;
    for (const auto& message : value.at("messages").get_array()) {
      out += content_text(message.get_object());
    }
    return out;
  }
  const text::MessageForms& forms() const override { return forms_; }

 private:
  text::MessageForms forms_;
};

std::unique_ptr<AppState> make_app(bool parts) {
  ServerConfig config;
  config.served_model_name = "fuzz";
  auto app = std::make_unique<AppState>(std::move(config));
  app->tokenizer = std::make_shared<ByteTokenizer>();
  app->chat_template = std::make_shared<PlainTemplate>(parts);
  app->vocab_size = 256;
  app->context_length = 4096;
  return app;
}

void check(const Result<GenerationCall>& call) {
  if (call.ok()) {
    for (const Prompt& prompt : call->prompts) {
      if (prompt.ids.empty() || prompt.ids.size() > 4096) std::abort();
      if (!engine::validate(prompt.sampling.params, 256).ok()) std::abort();
      for (const int32_t id : prompt.ids) {
        if (id < 0 || id >= 256) std::abort();
      }
    }
    return;
  }
  const ApiError error = from_error(call.error());
  if (error.status != 400 && error.status != 404) std::abort();  // a client's mistake, never ours
  boost::json::parse(error_body(error));
  boost::json::parse(error_event(error));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::unique_ptr<AppState> apps[] = {make_app(false), make_app(true)};
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto& app : apps) {
    check(prepare_chat(*app, text));
    check(prepare_completion(*app, text));
    check(prepare_native(*app, text));
  }
  HttpRequest request;
  parse_target(text, &request);
  request.query_value("timeout");
  std::string json;
  append_json_string(json, utf8_lossy(text));
  boost::json::parse(json);
  return 0;
}
