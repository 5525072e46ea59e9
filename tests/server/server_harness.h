// A server with a fake engine on a free port.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "fake_engine.h"
#include "fake_tokenizer.h"
#include "http_client.h"
#include "server/server.h"
#include "text/chat_template.h"

namespace capstan::server::testing {

namespace json = boost::json;

/// Chat as "<s>" then per message role marker and content; `thinking` changes the prompt.
inline constexpr char kTemplate[] =
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% elif m.role == 'system' %}[{{ m.content }}]"
    "{% elif m.role == 'tool' %}{{ raise_exception('tools are beyond me') }}"
    "{% else %}<|assistant|>{{ m.content }}</s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    "{% if thinking %}think:{% endif %}";

struct Harness {
  using Configure = std::function<void(ServerConfig&)>;

  explicit Harness(const Configure& configure = {}, int context_length = 512,
                   const char* chat_template = kTemplate)
      : engine(std::make_shared<FakeEngine>(context_length)),
        tokenizer(std::make_shared<FakeTokenizer>()) {
    ServerConfig config;
    config.port = 0;
    config.served_model_name = "org/fake";
    config.model_path = "/models/fake";
    config.version = "0.1.0";
    config.access_log = false;
    config.launch_args = R"({"model_path":"/models/fake","tp_size":1})";
    if (configure) configure(config);
    std::shared_ptr<const text::ChatTemplate> compiled;
    if (chat_template != nullptr) {
      auto result = text::ChatTemplate::compile(chat_template, {"<s>", "</s>"});
      EXPECT_TRUE(result.ok()) << result.error().message;
      compiled = std::move(result).value();
    }
    auto created = Server::create(std::move(config), engine, tokenizer, compiled);
    EXPECT_TRUE(created.ok()) << created.error().message;
    server = std::move(created).value();
    Status status = server->bind();
    EXPECT_TRUE(status.ok()) << status.error().message;
    status = server->start();
    EXPECT_TRUE(status.ok()) << status.error().message;
  }

  uint16_t port() const { return server->port(); }
  Reply get(std::string_view target, const Client::Headers& headers = {}) const {
    return Client(port()).get(target, headers);
  }
  Reply post(std::string_view target, std::string_view body,
             const Client::Headers& headers = {}) const {
    return Client(port()).post(target, body, headers);
  }
  /// Chat with one user message and further members (`,"n":2`).
  Reply chat(const std::string& members = "") const {
    return post("/v1/chat/completions", chat_body(members));
  }
  Reply complete(const std::string& members) const {
    return post("/v1/completions", R"({"model":"m",)" + members + "}");
  }
  static std::string chat_body(const std::string& members = "") {
    return R"({"model":"m","messages":[{"role":"user","content":"hi"}])" + members + "}";
  }

  std::shared_ptr<FakeEngine> engine;
  std::shared_ptr<FakeTokenizer> tokenizer;
  std::unique_ptr<Server> server;
};

inline std::string str(const json::value& value) {
  return value.is_string() ? std::string(value.get_string().data(), value.get_string().size())
                           : "(not a string) " + json::serialize(value);
}
/// Member by path, e.g. at(v, "choices", 0, "message", "content").
template <class... Rest>
const json::value& at(const json::value& value, const Rest&... rest) {
  const json::value* here = &value;
  const auto down = [&](const auto& step) {
    if constexpr (std::is_integral_v<std::decay_t<decltype(step)>>) {
      here = &here->at(static_cast<size_t>(step));
    } else {
      here = &here->at(step);
    }
  };
  (down(rest), ...);
  return *here;
}
template <class... Path>
int64_t integer(const json::value& value, const Path&... path) {
  const json::value& found = at(value, path...);
  return found.to_number<int64_t>();
}
template <class... Path>
std::string text_at(const json::value& value, const Path&... path) {
  return str(at(value, path...));
}

inline std::string error_message(const Reply& reply) {
  return reply.body.empty() ? "" : text_at(reply.json(), "error", "message");
}

}  // namespace capstan::server::testing
