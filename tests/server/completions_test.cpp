// /v1/completions: kinds of prompts, echo, log-probabilities, streaming.
#include <gtest/gtest.h>

#include "server_harness.h"

namespace capstan::server::testing {
namespace {

TEST(Completions, Text) {
  Harness h;
  const Reply reply = h.complete(R"("prompt":"hey")");
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json::value v = reply.json();
  EXPECT_EQ(text_at(v, "object"), "text_completion");
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 16);  // the default limit
  EXPECT_EQ(integer(v, "usage", "prompt_tokens"), 4);       // BOS is added
  EXPECT_EQ(text_at(v, "choices", 0, "text"), "abcdefghijklmnop");
  EXPECT_EQ(text_at(v, "choices", 0, "finish_reason"), "length");
  EXPECT_EQ(h.engine->submitted()[0].prompt, (std::vector<int32_t>{256, 'h', 'e', 'y'}));
}

TEST(Completions, BosIsNotDoubled) {
  Harness h;
  ASSERT_EQ(h.complete(R"("prompt":"<s>hey")").status, 200);
  EXPECT_EQ(h.engine->submitted()[0].prompt, (std::vector<int32_t>{256, 'h', 'e', 'y'}));
}

TEST(Completions, KindsOfPrompts) {
  Harness h;
  h.engine->set_script([](const engine::EngineRequest& r, int) { return r.prompt.back(); });
  const auto texts = [&](const std::string& prompt, const std::string& more = "") {
    const Reply reply = h.complete("\"max_tokens\":1,\"prompt\":" + prompt + more);
    EXPECT_EQ(reply.status, 200) << reply.body;
    std::vector<std::string> out;
    const json::value v = reply.json();
    for (const json::value& choice : at(v, "choices").get_array()) {
      EXPECT_EQ(integer(choice, "index"), static_cast<int64_t>(out.size()));
      out.push_back(text_at(choice, "text"));
    }
    return out;
  };
  using Texts = std::vector<std::string>;
  EXPECT_EQ(texts(R"("x")"), Texts{"x"});
  EXPECT_EQ(texts(R"(["x","y"])"), (Texts{"x", "y"}));
  EXPECT_EQ(texts("[97,98]"), Texts{"b"});
  EXPECT_EQ(texts("[[97],[98],[99]]"), (Texts{"a", "b", "c"}));
  EXPECT_EQ(texts(R"(["x","y"])", R"(,"n":2)"), (Texts{"x", "x", "y", "y"}));
  const json::value v = h.complete(R"("max_tokens":2,"n":2,"prompt":["ab","c"])").json();
  EXPECT_EQ(integer(v, "usage", "prompt_tokens"), 5);  // each prompt once
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 8);
}

TEST(Completions, Refusals) {
  Harness h;
  for (const char* members :
       {R"("max_tokens":1)", R"("prompt":"")", R"("prompt":[])", R"("prompt":[[]])",
        R"("prompt":["a",""])", R"("prompt":["a",5])", R"("prompt":[5,"a"])", R"("prompt":[[1],2])",
        R"("prompt":{"a":1})", R"("prompt":7)", R"("prompt":[300])", R"("prompt":[-1])",
        R"("prompt":[1.5])", R"("prompt":"x","max_tokens":0)", R"("prompt":"x","max_tokens":-1)",
        R"("prompt":"x","suffix":"y")", R"("prompt":"x","logprobs":21)",
        R"("prompt":"x","response_format":{"type":"json_object"})",
        R"("prompt":"x","json_schema":"{}")"}) {
    const Reply reply = h.complete(members);
    EXPECT_EQ(reply.status, 400) << members;
    EXPECT_GT(error_message(reply).size(), 10u);
  }
  EXPECT_NE(error_message(h.complete(R"("prompt":[[1],[2,300]])")).find("prompt[1][1]"),
            std::string::npos);
  EXPECT_NE(error_message(h.complete(R"("prompt":[300])")).find("vocabulary of 300"),
            std::string::npos);
  EXPECT_EQ(h.complete(R"("prompt":"x","best_of":1,"max_tokens":1,"suffix":null)").status, 200);
}

TEST(Completions, EchoAndLogprobs) {
  Harness h;
  json::value v = h.complete(R"("prompt":"hé","max_tokens":2,"echo":true)").json();
  EXPECT_EQ(text_at(v, "choices", 0, "text"), "héab");
  v = h.complete(R"("prompt":[104,105],"max_tokens":2,"echo":true,"logprobs":1)").json();
  EXPECT_EQ(text_at(v, "choices", 0, "text"), "hiab");
  const json::value& lp = at(v, "choices", 0, "logprobs");
  EXPECT_EQ(at(lp, "tokens"), json::parse(R"(["h","i","a","b"])"));
  EXPECT_EQ(at(lp, "text_offset"), json::parse("[0,1,2,3]"));
  EXPECT_EQ(at(lp, "token_logprobs"), json::parse("[null,-0.5,-0.5,-0.5]"));
  EXPECT_TRUE(at(lp, "top_logprobs", 0).is_null());
  EXPECT_EQ(at(lp, "top_logprobs", 2), json::parse(R"({"a":-0.5})"));
  v = h.complete(R"("prompt":"x","max_tokens":2,"logprobs":0)").json();
  EXPECT_EQ(at(v, "choices", 0, "logprobs", "tokens"), json::parse(R"(["a","b"])"));
  EXPECT_EQ(at(v, "choices", 0, "logprobs", "top_logprobs"), json::parse("[null,null]"));
  v = h.complete(R"("prompt":"x","max_tokens":1,"logprobs":2)").json();
  EXPECT_EQ(at(v, "choices", 0, "logprobs", "top_logprobs", 0).get_object().size(), 2u);
}

TEST(Completions, ScoringWithoutGeneration) {
  Harness h;
  const json::value v =
      h.complete(R"("prompt":[104,105],"max_tokens":0,"echo":true,"logprobs":1)").json();
  EXPECT_EQ(text_at(v, "choices", 0, "text"), "hi");
  EXPECT_EQ(at(v, "choices", 0, "logprobs", "tokens"), json::parse(R"(["h","i"])"));
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 0);
}

TEST(Completions, Stream) {
  Harness h;
  const Reply reply = h.complete(R"("prompt":["x","y"],"max_tokens":3,"stream":true)");
  const Events events = parse_events(reply.body);
  EXPECT_EQ(events.error, "");
  EXPECT_TRUE(events.done);
  std::string text[2], finish[2];
  for (const json::value& e : events.items) {
    EXPECT_EQ(text_at(e, "object"), "text_completion");
    ASSERT_EQ(at(e, "choices").get_array().size(), 1u);  // never an unasked-for empty one
    const auto i = static_cast<size_t>(integer(e, "choices", 0, "index"));
    text[i] += text_at(e, "choices", 0, "text");
    if (!at(e, "choices", 0, "finish_reason").is_null()) {
      finish[i] = text_at(e, "choices", 0, "finish_reason");
    }
  }
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(text[i], "abc");
    EXPECT_EQ(finish[i], "length");
  }
}

TEST(Completions, StreamedEchoAndLogprobsEqualTheNonStreamedOnes) {
  Harness h;
  const std::string members = R"("prompt":"hi","max_tokens":3,"echo":true,"logprobs":1)";
  const json::value whole = h.complete(members).json();
  const Events events = parse_events(h.complete(members + R"(,"stream":true)").body);
  std::string text;
  json::array tokens, offsets, logprobs;
  for (const json::value& e : events.items) {
    text += text_at(e, "choices", 0, "text");
    const json::value& lp = at(e, "choices", 0, "logprobs");
    if (lp.is_null()) continue;
    for (const json::value& t : at(lp, "tokens").get_array()) tokens.push_back(t);
    for (const json::value& t : at(lp, "text_offset").get_array()) offsets.push_back(t);
    for (const json::value& t : at(lp, "token_logprobs").get_array()) logprobs.push_back(t);
  }
  const json::value& lp = at(whole, "choices", 0, "logprobs");
  EXPECT_EQ(text, text_at(whole, "choices", 0, "text"));
  EXPECT_EQ(json::value(tokens), at(lp, "tokens"));
  EXPECT_EQ(json::value(offsets), at(lp, "text_offset"));
  EXPECT_EQ(json::value(logprobs), at(lp, "token_logprobs"));
}

TEST(Completions, DefaultLimitYieldsToTheContext) {
  Harness h({}, 20);
  const json::value v = h.complete(R"("prompt":"0123456789")").json();
  EXPECT_EQ(integer(v, "usage", "total_tokens"), 20);
  EXPECT_EQ(h.complete(R"("prompt":"0123456789","max_tokens":16)").status, 400);
}

}  // namespace
}  // namespace capstan::server::testing
