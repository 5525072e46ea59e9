// /v1/chat/completions without streaming: fields of the answer and what reaches the engine.
#include <gtest/gtest.h>

#include "server_harness.h"

namespace capstan::server::testing {
namespace {

std::string prompt_text(const Harness& h, size_t request = 0) {
  const auto all = h.engine->submitted();
  return *h.tokenizer->decode(all.at(request).prompt, false);
}

TEST(Chat, MinimalRequestHasEveryField) {
  Harness h;
  h.engine->say("4");
  const Reply reply = h.chat();
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(reply.headers.at("content-type"), "application/json");
  const json::value v = reply.json();
  EXPECT_EQ(text_at(v, "id").size(), 32u);
  EXPECT_EQ(text_at(v, "object"), "chat.completion");
  EXPECT_GT(integer(v, "created"), 1700000000);
  EXPECT_EQ(text_at(v, "model"), "m");
  ASSERT_EQ(at(v, "choices").get_array().size(), 1u);
  const json::value& choice = at(v, "choices", 0);
  EXPECT_EQ(integer(choice, "index"), 0);
  EXPECT_EQ(text_at(choice, "message", "role"), "assistant");
  EXPECT_EQ(text_at(choice, "message", "content"), "4");
  EXPECT_TRUE(at(choice, "message", "reasoning_content").is_null());
  EXPECT_TRUE(at(choice, "message", "tool_calls").is_null());
  EXPECT_TRUE(at(choice, "logprobs").is_null());
  EXPECT_EQ(text_at(choice, "finish_reason"), "stop");
  EXPECT_EQ(integer(choice, "matched_stop"), FakeTokenizer::kEos);
  // <s> <|user|> h i <|assistant|>, and "4" plus EOS
  EXPECT_EQ(integer(v, "usage", "prompt_tokens"), 5);
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 2);
  EXPECT_EQ(integer(v, "usage", "total_tokens"), 7);
  EXPECT_EQ(integer(v, "usage", "reasoning_tokens"), 0);
  EXPECT_EQ(integer(v, "usage", "completion_tokens_details", "reasoning_tokens"), 0);
  EXPECT_TRUE(at(v, "usage", "prompt_tokens_details").is_null());
  EXPECT_EQ(text_at(v, "metadata", "weight_version"), "default");
  EXPECT_EQ(prompt_text(h), "<s><|user|>hi<|assistant|>");
}

TEST(Chat, CacheReport) {
  Harness h([](ServerConfig& c) { c.enable_cache_report = true; });
  EXPECT_EQ(integer(h.chat(R"(,"max_tokens":1)").json(), "usage", "prompt_tokens_details",
                    "cached_tokens"),
            0);
  h.engine->set_cached_tokens(3);
  EXPECT_EQ(integer(h.chat(R"(,"max_tokens":1)").json(), "usage", "prompt_tokens_details",
                    "cached_tokens"),
            3);
}

TEST(Chat, TokenLimits) {
  Harness h;
  json::value v = h.chat(R"(,"max_tokens":5)").json();
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 5);
  EXPECT_EQ(text_at(v, "choices", 0, "finish_reason"), "length");
  EXPECT_TRUE(at(v, "choices", 0, "matched_stop").is_null());
  v = h.chat(R"(,"max_completion_tokens":3,"max_tokens":9)").json();
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 3);
  // Without a limit: to the end of the context, less one.
  v = h.chat(R"(,"ignore_eos":true)").json();
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 512 - 5 - 1);
  EXPECT_EQ(text_at(v, "choices", 0, "finish_reason"), "length");
  v = h.chat(R"(,"max_tokens":null,"temperature":null,"stop":null,"n":null)").json();
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 512 - 5 - 1);
}

TEST(Chat, ContextOverflowNamesAllNumbers) {
  Harness h;
  const std::string long_text(600, 'x');
  const Reply prompt = h.post("/v1/chat/completions",
                              R"({"messages":[{"role":"user","content":")" + long_text + "\"}]}");
  EXPECT_EQ(prompt.status, 400);
  EXPECT_NE(error_message(prompt).find(
                "(603 tokens) is longer than the model's context length (512 tokens)"),
            std::string::npos);
  const Reply total = h.chat(R"(,"max_tokens":510)");
  EXPECT_EQ(total.status, 400);
  for (const char* part :
       {"515 tokens", "512 tokens", "5 tokens from the input", "510 tokens for the completion"}) {
    EXPECT_NE(error_message(total).find(part), std::string::npos) << part;
  }
  const Reply limit = h.chat(R"(,"max_tokens":513)");
  EXPECT_EQ(limit.status, 400);
  EXPECT_NE(error_message(limit).find("max_completion_tokens is too large"), std::string::npos);
}

TEST(Chat, AutoTruncateClipsInsteadOfRefusing) {
  Harness h([](ServerConfig& c) { c.allow_auto_truncate = true; });
  const json::value v = h.chat(R"(,"max_tokens":5000)").json();
  EXPECT_EQ(integer(v, "usage", "total_tokens"), 512);
  const Reply prompt = h.post("/v1/chat/completions", R"({"messages":[{"role":"user","content":")" +
                                                          std::string(600, 'x') + "\"}]}");
  ASSERT_EQ(prompt.status, 200) << prompt.body;
  EXPECT_EQ(integer(prompt.json(), "usage", "prompt_tokens"), 511);
}

TEST(Chat, ContentParts) {
  Harness h;
  const auto ask = [&](const std::string& content) {
    return h.post("/v1/chat/completions",
                  R"({"max_tokens":1,"messages":[{"role":"User","content":)" + content + "}]}");
  };
  ASSERT_EQ(ask(R"("ab cd")").status, 200);
  ASSERT_EQ(ask(R"([{"type":"text","text":"ab "},{"type":"text","text":"cd"}])").status, 200);
  EXPECT_EQ(h.engine->submitted()[0].prompt, h.engine->submitted()[1].prompt);
  const Reply image =
      ask(R"([{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"data:,"}}])");
  EXPECT_EQ(image.status, 400);
  EXPECT_NE(error_message(image).find("messages[0].content[1].type"), std::string::npos);
  EXPECT_NE(error_message(image).find("image_url"), std::string::npos);
}

TEST(Chat, TemplatesThatReadPartsGetParts) {
  Harness h({}, 512,
            "{% for m in messages %}{% for part in m.content %}<{{ part.text }}>{% endfor %}{% "
            "endfor %}");
  ASSERT_EQ(h.chat(R"(,"max_tokens":1)").status, 200);
  EXPECT_EQ(prompt_text(h), "<hi>");
}

TEST(Chat, HistoryWithToolCallsAndNullContent) {
  Harness h({}, 512,
            "{% for m in messages %}{{ m.role }}:{{ m.content }};{% for c in m.tool_calls or [] %}"
            "{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}{% endfor %}");
  const Reply reply = h.post("/v1/chat/completions", R"({"max_tokens":1,"messages":[
      {"role":"developer","content":"d"},
      {"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function",
       "function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}]},
      {"role":"tool","tool_call_id":"1","content":"cold"}]})");
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(prompt_text(h), "system:d;assistant:;weather(Oslo)tool:cold;");
}

// As DeepSeek's templates are written: null content beside calls, arguments as text.
TEST(Chat, HistoryInTheFormsTheTemplateReads) {
  Harness h({}, 512,
            "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}"
            "{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}"
            "{% else %}{{ m.role + ':' + m.content + ';' }}{% endif %}{% endfor %}");
  for (const char* arguments : {R"("{\"city\":  1}")", R"({"city":1})"}) {
    for (const char* content : {"null", "\"\""}) {
      const Reply reply = h.post("/v1/chat/completions",
                                 R"({"max_tokens":1,"messages":[{"role":"user","content":"q"},
          {"role":"assistant","content":)" +
                                     std::string(content) +
                                     R"(,"tool_calls":[{"id":"1","type":"function",
          "function":{"name":"weather","arguments":)" +
                                     arguments + R"(}}]},
          {"role":"tool","tool_call_id":"1","content":"cold"}]})");
      ASSERT_EQ(reply.status, 200) << reply.body;
    }
  }
  EXPECT_EQ(prompt_text(h, 0), "user:q;weather{\"city\":  1}tool:cold;");
  EXPECT_EQ(prompt_text(h, 1), "user:q;weather{\"city\":  1}tool:cold;");
  EXPECT_EQ(prompt_text(h, 2), "user:q;weather{\"city\":1}tool:cold;");
}

TEST(Chat, LastAssistantMessage) {
  Harness h;
  const auto ask = [&](const std::string& members) {
    return h.post("/v1/chat/completions",
                  R"({"max_tokens":1,"messages":[{"role":"user","content":"hi"},
                      {"role":"assistant","content":"The answer"}])" +
                      members + "}");
  };
  ASSERT_EQ(ask(R"(,"continue_final_message":true)").status, 200);
  EXPECT_EQ(prompt_text(h, 0), "<s><|user|>hi<|assistant|>The answer");
  ASSERT_EQ(ask("").status, 200);
  EXPECT_EQ(prompt_text(h, 1), "<s><|user|>hi<|user|>The answer<|assistant|>");
  const Reply wrong = h.chat(R"(,"continue_final_message":true)");
  EXPECT_EQ(wrong.status, 400);
  EXPECT_NE(error_message(wrong).find("continue_final_message"), std::string::npos);
}

TEST(Chat, TemplateKwargs) {
  Harness h([](ServerConfig& c) { c.default_chat_template_kwargs = R"({"thinking":false})"; });
  const auto prompt_tokens = [&](const std::string& members) {
    return integer(h.chat(R"(,"max_tokens":1)" + members).json(), "usage", "prompt_tokens");
  };
  EXPECT_EQ(prompt_tokens(""), 5);
  EXPECT_EQ(prompt_tokens(R"(,"chat_template_kwargs":{"thinking":true})"), 11);
  EXPECT_EQ(prompt_tokens(R"(,"reasoning_effort":"high")"), 11);
  EXPECT_EQ(prompt_tokens(R"(,"reasoning":{"enabled":true})"), 11);
  EXPECT_EQ(prompt_tokens(R"(,"reasoning_effort":"none")"), 5);
  EXPECT_EQ(
      prompt_tokens(R"(,"reasoning_effort":"high","chat_template_kwargs":{"thinking":false})"), 5);
}

TEST(Chat, TemplateErrorsAre400WithTheTemplatesText) {
  Harness h;
  const Reply reply =
      h.post("/v1/chat/completions", R"({"messages":[{"role":"tool","content":"x"}]})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_NE(error_message(reply).find("tools are beyond me"), std::string::npos);
}

TEST(Chat, NoTemplate) {
  Harness h({}, 512, nullptr);
  const Reply reply = h.chat();
  EXPECT_EQ(reply.status, 400);
  EXPECT_NE(error_message(reply).find("--chat-template"), std::string::npos);
  EXPECT_EQ(h.complete(R"("prompt":"x")").status, 200);
}

TEST(Chat, InputIdsBypassTheTemplate) {
  Harness h;
  ASSERT_EQ(h.chat(R"(,"max_tokens":1,"input_ids":[1,2,3])").status, 200);
  EXPECT_EQ(h.engine->submitted()[0].prompt, (std::vector<int32_t>{1, 2, 3}));
}

TEST(Chat, Choices) {
  Harness h;
  h.engine->set_script(
      [](const engine::EngineRequest& r, int step) { return 'a' + r.choice_index * 10 + step; });
  const json::value v = h.chat(R"(,"n":3,"max_tokens":2,"temperature":1)").json();
  ASSERT_EQ(at(v, "choices").get_array().size(), 3u);
  const char* expected[] = {"ab", "kl", "uv"};
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(integer(v, "choices", i, "index"), i);
    EXPECT_EQ(text_at(v, "choices", i, "message", "content"), expected[i]);
  }
  EXPECT_EQ(integer(v, "usage", "prompt_tokens"), 5);
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 6);
  const auto requests = h.engine->submitted();
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_NE(requests[0].sibling_group, 0u);
  EXPECT_EQ(requests[0].sibling_group, requests[2].sibling_group);
}

TEST(Chat, SamplingReachesTheEngine) {
  Harness h;
  ASSERT_EQ(
      h.chat(
           R"(,"max_tokens":7,"min_tokens":2,"temperature":0.25,"top_p":0.5,"top_k":9,"min_p":0.125,
      "frequency_penalty":-1,"presence_penalty":1.5,"repetition_penalty":1.25,"seed":-9007199254740993,
      "logit_bias":{"5":-100,"6":100},"stop_token_ids":[65],"ignore_eos":true,"priority":4,
      "cache_salt":"s")")
          .status,
      200);
  const engine::EngineRequest r = h.engine->submitted()[0];
  EXPECT_EQ(r.sampling.max_new_tokens, 7);
  EXPECT_EQ(r.sampling.min_new_tokens, 2);
  EXPECT_EQ(r.sampling.temperature, 0.25);
  EXPECT_EQ(r.sampling.top_p, 0.5);
  EXPECT_EQ(r.sampling.top_k, 9);
  EXPECT_EQ(r.sampling.min_p, 0.125);
  EXPECT_EQ(r.sampling.frequency_penalty, -1);
  EXPECT_EQ(r.sampling.presence_penalty, 1.5);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.25);
  EXPECT_EQ(r.sampling.seed, -9007199254740993);
  ASSERT_EQ(r.sampling.logit_bias.size(), 2u);
  EXPECT_EQ(r.sampling.logit_bias[0], std::make_pair(5, -100.0F));
  EXPECT_EQ(r.sampling.stop_token_ids, std::vector<int32_t>{65});
  EXPECT_TRUE(r.sampling.ignore_eos);
  EXPECT_EQ(r.priority, 4);
  EXPECT_FALSE(r.cache_salt.empty());
}

TEST(Chat, DefaultsComeFromTheModelThenFromPreferredParameters) {
  Harness h([](ServerConfig& c) {
    c.sampling_defaults.temperature = 0.6;
    c.sampling_defaults.top_p = 0.95;
    c.preferred_sampling_params = R"({"top_p":0.9,"min_new_tokens":1})";
  });
  ASSERT_EQ(h.chat(R"(,"max_tokens":1)").status, 200);
  ASSERT_EQ(h.chat(R"(,"max_tokens":1,"temperature":0.1,"top_p":1)").status, 200);
  EXPECT_EQ(h.engine->submitted()[0].sampling.temperature, 0.6);
  EXPECT_EQ(h.engine->submitted()[0].sampling.top_p, 0.9);
  EXPECT_EQ(h.engine->submitted()[0].sampling.min_new_tokens, 1);
  EXPECT_EQ(h.engine->submitted()[1].sampling.temperature, 0.1);
  EXPECT_EQ(h.engine->submitted()[1].sampling.top_p, 1.0);
  const Harness openai;
  ASSERT_EQ(openai.chat(R"(,"max_tokens":1)").status, 200);
  EXPECT_EQ(openai.engine->submitted()[0].sampling.temperature, 1.0);
  EXPECT_EQ(openai.engine->submitted()[0].sampling.top_k, -1);
}

TEST(Chat, UnknownAndOptionalFieldsAreAccepted) {
  Harness h;
  const Reply reply = h.chat(R"(,"max_tokens":1,"user":"u","metadata":{"a":"b"},"store":true,
      "service_tier":"auto","modalities":["text"],"prediction":null,"verbosity":"low",
      "safety_identifier":"x","prompt_cache_key":"y","web_search_options":{},"functions":[],
      "function_call":"auto","parallel_tool_calls":false,"tools":[],"tool_choice":"auto",
      "response_format":{"type":"text"},"stream_options":{"include_usage":true},"foo":{"bar":[1]},
      "logit_bias":{},"stop":[],"separate_reasoning":true,"stream_reasoning":true,
      "return_hidden_states":false,"session_params":null,"lora_path":null,"best_of":1)");
  EXPECT_EQ(reply.status, 200) << reply.body;
}

TEST(Chat, RidIsTheIdAndMayNotBeUsedTwiceAtOnce) {
  Harness h;
  h.engine->allow_steps(0);
  Client first(h.port());
  first.request("POST", "/v1/chat/completions",
                Harness::chat_body(R"(,"rid":"mine","max_tokens":2)"));
  ASSERT_TRUE(h.engine->wait_live(1));
  const Reply second = h.chat(R"(,"rid":"mine","max_tokens":2)");
  EXPECT_EQ(second.status, 400);
  EXPECT_EQ(text_at(second.json(), "error", "param"), "rid");
  h.engine->allow_steps(-1);
  EXPECT_EQ(text_at(first.reply().json(), "id"), "mine");
  EXPECT_EQ(h.chat(R"(,"rid":"mine","max_tokens":2)").status, 200);
}

TEST(Chat, StrictModelName) {
  const Harness h([](ServerConfig& c) { c.strict_model_name = true; });
  const Reply wrong = h.chat();
  EXPECT_EQ(wrong.status, 404);
  EXPECT_EQ(text_at(wrong.json(), "error", "code"), "model_not_found");
  EXPECT_EQ(
      h.post("/v1/chat/completions",
             R"({"model":"org/fake","max_tokens":1,"messages":[{"role":"user","content":"x"}]})")
          .status,
      200);
}

TEST(Chat, LargeRequestsGoThroughAWorker) {
  Harness h({}, 100000);
  const std::string text(50000, 'y');
  const Reply reply =
      h.post("/v1/chat/completions",
             R"({"max_tokens":2,"messages":[{"role":"user","content":")" + text + "\"}]}");
  ASSERT_EQ(reply.status, 200);
  EXPECT_EQ(integer(reply.json(), "usage", "prompt_tokens"), 50003);
}

TEST(Chat, EngineErrorsKeepTheirStatus) {
  Harness h;
  h.engine->set_max_live(0);
  const Reply full = h.chat();
  EXPECT_EQ(full.status, 503);
  EXPECT_NE(error_message(full).find("The request queue is full."), std::string::npos);
  EXPECT_EQ(full.headers.at("retry-after"), "1");
  EXPECT_EQ(text_at(full.json(), "error", "type"), "ServiceUnavailableError");
  h.engine->set_max_live(-1);
  h.engine->fail_after(0, ErrorCode::kUnavailable, "waited too long");
  const Reply late = h.chat(R"(,"stream":true)");
  EXPECT_EQ(late.status, 503);
  EXPECT_NE(error_message(late).find("waited too long"), std::string::npos);
  h.engine->fail_after(1, ErrorCode::kInternal, "the step failed");
  const Reply broken = h.chat(R"(,"n":2)");
  EXPECT_EQ(broken.status, 500);
  EXPECT_EQ(broken.headers.at("x-should-retry"), "false");
  EXPECT_TRUE(h.engine->wait_live(0));
}

}  // namespace
}  // namespace capstan::server::testing
