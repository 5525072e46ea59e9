// Requests that are wrong: status 400, the field named, the value shown.
#include <gtest/gtest.h>

#include "server_harness.h"

namespace capstan::server::testing {
namespace {

struct Case {
  const char* body;     // whole body, or members added to a minimal chat (starting with a comma)
  const char* message;  // must occur in the message
  const char* param;    // must be the error's param; null: not checked
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.body; }

class Refused : public ::testing::TestWithParam<Case> {};

TEST_P(Refused, With400AndTheField) {
  static const Harness h;  // nothing reaches the engine
  const Case& c = GetParam();
  const std::string body = c.body[0] == ',' ? Harness::chat_body(c.body) : c.body;
  const Reply reply = h.post("/v1/chat/completions", body);
  EXPECT_EQ(reply.status, 400) << reply.body;
  const json::value v = reply.json();
  EXPECT_NE(text_at(v, "message").find(c.message), std::string::npos) << text_at(v, "message");
  EXPECT_EQ(text_at(v, "object"), "error");
  EXPECT_EQ(text_at(v, "type"), "BadRequestError");
  EXPECT_EQ(integer(v, "code"), 400);
  EXPECT_EQ(at(v, "error", "message"), at(v, "message"));
  if (c.param != nullptr) {
    EXPECT_EQ(text_at(v, "error", "param"), c.param);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Bodies, Refused,
    ::testing::Values(
        Case{"", "empty", nullptr}, Case{"{", "not valid JSON", nullptr},
        Case{"[1]", "must be a JSON object, got a list", nullptr},
        Case{"\"x\"", "must be a JSON object", nullptr},
        Case{"{\"a\":\"\xff\"}", "not valid JSON", nullptr},
        // The key is quoted, yet the answer is UTF-8.
        Case{"{\"t\xff\":NaN}", "t\xEF\xBF\xBD: NaN is not a JSON number", "t\xEF\xBF\xBD"},
        Case{"{\"0123456789012345678901234567890123456789tail\":NaN}", "56789...: NaN", nullptr},
        Case{R"({"messages":[]})", "Messages cannot be empty.", "messages"},
        Case{R"({"messages":"x"})", "expected a list, got the string \"x\"", "messages"},
        Case{R"({})", "messages: is required", "messages"},
        Case{R"({"messages":[1]})", "messages[0]: expected a message object, got 1", "messages[0]"},
        Case{R"({"messages":[{"role":"user","content":"a"},{"role":"wizard","content":"a"}]})",
             "\"wizard\"", "messages[1].role"},
        Case{R"({"messages":[{"content":"a"}]})", "is required", "messages[0].role"},
        Case{R"({"messages":[{"role":5,"content":"a"}]})", "got 5", "messages[0].role"},
        Case{R"({"messages":[{"role":"user"}]})", "is required", "messages[0].content"},
        Case{R"({"messages":[{"role":"user","content":null}]})", "null", "messages[0].content"},
        Case{R"({"messages":[{"role":"user","content":5}]})", "got 5", "messages[0].content"},
        Case{R"({"messages":[{"role":"user","content":[5]}]})", "got 5", "messages[0].content[0]"},
        Case{R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})", "is required",
             "messages[0].content[0].text"},
        Case{R"({"messages":[{"role":"assistant","content":"","tool_calls":5}]})", "list",
             "messages[0].tool_calls"},
        Case{R"({"messages":[{"role":"assistant","tool_calls":[{"id":"1"}]}]})", "function",
             "messages[0].tool_calls[0].function"}));

INSTANTIATE_TEST_SUITE_P(
    Sampling, Refused,
    ::testing::Values(
        Case{R"(,"top_p":0)", "must be in (0, 1], got 0", "top_p"},
        Case{R"(,"top_p":1.1)", "got 1.1", "top_p"}, Case{R"(,"top_k":0)", "got 0", "top_k"},
        Case{R"(,"top_k":-2)", "got -2", "top_k"}, Case{R"(,"top_k":1.5)", "1.5", "top_k"},
        Case{R"(,"temperature":-1)", "got -1", "temperature"},
        Case{R"(,"temperature":NaN)", "NaN", "temperature"},
        Case{R"(,"top_p":-Infinity)", "-Infinity", "top_p"},
        Case{R"(,"temperature":"0.5")", "expected a number, got the string \"0.5\"", "temperature"},
        Case{R"(,"temperature":true)", "expected a number, got true", "temperature"},
        Case{R"(,"temperature":1e999)", "", nullptr},
        Case{R"(,"presence_penalty":3)", "[-2, 2]", "presence_penalty"},
        Case{R"(,"frequency_penalty":-3)", "[-2, 2]", "frequency_penalty"},
        Case{R"(,"repetition_penalty":0)", "(0, 2]", "repetition_penalty"},
        Case{R"(,"min_p":2)", "[0, 1]", "min_p"}, Case{R"(,"n":0)", "got 0", "n"},
        Case{R"(,"n":"2")", "expected an integer", "n"}, Case{R"(,"n":100000)", "100000", "n"},
        Case{R"(,"max_tokens":0)", "got 0", "max_tokens"},
        Case{R"(,"max_tokens":-5)", "got -5", "max_tokens"},
        Case{R"(,"max_tokens":"5")", "integer", "max_tokens"},
        Case{R"(,"max_tokens":1.5)", "integer", "max_tokens"},
        Case{R"(,"max_tokens":5,"min_tokens":6)", "at most", "min_tokens"},
        Case{R"(,"seed":1.5)", "1.5", "seed"}, Case{R"(,"seed":"1")", "string", "seed"},
        Case{R"(,"seed":99999999999999999999)", "integer", "seed"},
        Case{R"(,"stop":5)", "5", "stop"}, Case{R"(,"stop":["a",5])", "5", "stop[1]"},
        Case{R"(,"logit_bias":[1])", "an object", "logit_bias"},
        Case{R"(,"logit_bias":{"x":1})", "\"x\"", "logit_bias"},
        Case{R"(,"logit_bias":{"300":1})", "300", "logit_bias"},
        Case{R"(,"logit_bias":{"-1":1})", "-1", "logit_bias"},
        Case{R"(,"logit_bias":{"5":101})", "[-100, 100]", "logit_bias"},
        Case{R"(,"logit_bias":{"5":"1"})", "string", "logit_bias"},
        Case{R"(,"stop_token_ids":[300])", "vocabulary of 300", "stop_token_ids"},
        Case{R"(,"stop_token_ids":"a")", "list", "stop_token_ids"},
        Case{R"(,"logprobs":2)", "true or false", "logprobs"},
        Case{R"(,"top_logprobs":21)", "[0, 20]", "top_logprobs"},
        Case{R"(,"top_logprobs":-1)", "[0, 20]", "top_logprobs"}));

INSTANTIATE_TEST_SUITE_P(
    Fields, Refused,
    ::testing::Values(
        Case{R"(,"model":5)", "string", "model"}, Case{R"(,"stream":"yes")", "yes", "stream"},
        Case{R"(,"stream_options":5)", "object", "stream_options"},
        Case{R"(,"stream_options":{"include_usage":1})", "true or false",
             "stream_options.include_usage"},
        Case{R"(,"rid":"")", "rid", "rid"}, Case{R"(,"rid":5)", "string", "rid"},
        Case{R"(,"priority":"high")", "integer", "priority"},
        Case{R"(,"chat_template_kwargs":5)", "object", "chat_template_kwargs"},
        Case{R"(,"reasoning_effort":"huge")", "huge", "reasoning_effort"},
        Case{R"(,"continue_final_message":"x")", "true or false", "continue_final_message"},
        Case{R"(,"input_ids":[])", "empty", "input_ids"},
        Case{R"(,"input_ids":[300])", "vocabulary of 300", "input_ids"},
        Case{R"(,"response_format":{"type":"yaml"})", "json_schema", "response_format"},
        Case{R"(,"response_format":{})", "type", "response_format"},
        Case{R"(,"response_format":{"type":"json_object"})", "not supported by this build",
             "response_format"},
        Case{R"(,"regex":"a+")", "not supported by this build", "regex"},
        Case{R"(,"ebnf":"root ::= a")", "not supported by this build", "ebnf"},
        Case{R"(,"stop_regex":"a+")", "not supported by this build", "stop_regex"},
        Case{R"(,"tools":[{"type":"function","function":{"name":"f"}}])",
             "not supported by this build", "tools"},
        Case{R"(,"tool_choice":"required")", "needs tools", "tool_choice"},
        Case{R"(,"tool_choice":{"type":"function","function":{"name":"f"}})", "needs tools",
             "tool_choice"},
        Case{R"(,"tool_choice":"sometimes")", "sometimes", "tool_choice"},
        Case{R"(,"return_hidden_states":true)", "--enable-return-hidden-states",
             "return_hidden_states"},
        Case{R"(,"custom_logit_processor":"x")", "--enable-custom-logit-processor",
             "custom_logit_processor"},
        Case{R"(,"lora_path":"x")", "LoRA", "lora_path"}));

TEST(Validation, DeepNestingIsRefusedNotOverflown) {
  const Harness h;
  const std::string deep(200000, '[');
  EXPECT_EQ(h.post("/v1/chat/completions", "{\"x\":" + deep).status, 400);
  EXPECT_EQ(h.chat(",\"x\":" + std::string(100, '[') + std::string(100, ']')).status, 200);
}

TEST(Validation, EmbeddingsSayWhatTheyNeed) {
  const Harness h;
  const Reply reply = h.post("/v1/embeddings", R"({"input":"x"})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_NE(error_message(reply).find("--is-embedding"), std::string::npos);
}

TEST(Validation, Configuration) {
  const auto check = [](const std::function<void(ServerConfig&)>& change) {
    ServerConfig config;
    config.served_model_name = "m";
    change(config);
    const Status status = validate_config(config);
    return status.ok() ? std::string() : status.error().param;
  };
  EXPECT_EQ(check([](ServerConfig&) {}), "");
  EXPECT_EQ(check([](ServerConfig& c) { c.served_model_name = "a:b"; }), "served-model-name");
  EXPECT_EQ(check([](ServerConfig& c) { c.served_model_name = ""; }), "served-model-name");
  EXPECT_EQ(check([](ServerConfig& c) {
              c.bucket_time_to_first_token = {1, 1};
            }),
            "bucket-time-to-first-token");
  EXPECT_EQ(check([](ServerConfig& c) { c.preferred_sampling_params = "[]"; }),
            "preferred-sampling-params");
  EXPECT_EQ(check([](ServerConfig& c) { c.default_chat_template_kwargs = "{"; }),
            "default-chat-template-kwargs");
  EXPECT_EQ(check([](ServerConfig& c) { c.stream_interval = 0; }), "stream-interval");
  EXPECT_EQ(check([](ServerConfig& c) { c.log_requests_level = 4; }), "log-requests-level");
  EXPECT_EQ(check([](ServerConfig& c) { c.health_timeout = 0; }), "health-check-timeout");
}

}  // namespace
}  // namespace capstan::server::testing
