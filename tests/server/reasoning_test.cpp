// Thinking apart from the answer in chat: one token per byte, so every tag comes in eight pieces.
#include <gtest/gtest.h>

#include "server_harness.h"

namespace capstan::server::testing {
namespace {

/// As R1's template: the prompt ends with the opening tag, unless told not to think.
constexpr char kForced[] =
    "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}";

struct Thinking : Harness {
  explicit Thinking(const char* chat_template = kForced, const std::string& parser = "deepseek-r1")
      : Harness([&parser](ServerConfig& c) { c.reasoning_parser = parser; }, 512, chat_template) {}
};

struct Answer {
  std::string reasoning, content, finish;
  json::value matched, usage, message, logprobs;
};

Answer ask(const Harness& h, const std::string& members = "") {
  const Reply reply = h.chat(members);
  EXPECT_EQ(reply.status, 200) << reply.body;
  const json::value v = reply.json();
  const json::value& choice = at(v, "choices", 0);
  Answer a;
  a.message = at(choice, "message");
  if (at(a.message, "reasoning_content").is_string()) {
    a.reasoning = text_at(a.message, "reasoning_content");
  }
  a.content = text_at(a.message, "content");
  a.finish = text_at(choice, "finish_reason");
  a.matched = at(choice, "matched_stop");
  a.usage = at(v, "usage");
  a.logprobs = at(choice, "logprobs");
  return a;
}

/// Deltas of one choice in order, "R:..." and "C:...".
struct Streamed {
  std::vector<std::string> deltas;
  std::string reasoning, content, finish, logprob_text;
  json::value usage;
};

std::vector<Streamed> stream(const Harness& h, const std::string& members = "", int n = 1) {
  const Reply reply = h.chat(R"(,"stream":true,"stream_options":{"include_usage":true})" + members);
  EXPECT_EQ(reply.status, 200) << reply.body;
  std::vector<Streamed> out(static_cast<size_t>(n));
  const Events events = parse_events(reply.body);
  EXPECT_EQ(events.error, "");
  EXPECT_TRUE(events.done);
  for (const json::value& event : events.items) {
    if (at(event, "choices").get_array().empty()) {
      for (Streamed& s : out) s.usage = at(event, "usage");
      continue;
    }
    const json::value& choice = at(event, "choices", 0);
    Streamed& s = out.at(static_cast<size_t>(integer(choice, "index")));
    const json::object& delta = at(choice, "delta").get_object();
    const bool reasoning = delta.contains("reasoning_content"), content = delta.contains("content");
    EXPECT_FALSE(reasoning && content) << json::serialize(choice);
    if (reasoning) {
      EXPECT_EQ(s.content, "") << "thinking after the answer began";
      s.reasoning += str(delta.at("reasoning_content"));
      s.deltas.push_back("R:" + str(delta.at("reasoning_content")));
    } else if (content && !delta.contains("role")) {
      s.content += str(delta.at("content"));
      s.deltas.push_back("C:" + str(delta.at("content")));
    }
    if (at(choice, "logprobs").is_object()) {
      for (const json::value& entry : at(choice, "logprobs", "content").get_array()) {
        s.logprob_text += text_at(entry, "token");
      }
    }
    if (!at(choice, "finish_reason").is_null()) s.finish = text_at(choice, "finish_reason");
  }
  return out;
}

TEST(Reasoning, IsSeparatedAndCounted) {
  Thinking h;
  h.engine->say("a</think>\n\nb");
  const Answer a = ask(h);
  EXPECT_EQ(a.reasoning, "a");
  EXPECT_EQ(a.content, "b");
  EXPECT_EQ(a.finish, "stop");
  // a</think> is 9 tokens; the line ends, b and the end of sequence are the answer's.
  EXPECT_EQ(integer(a.usage, "reasoning_tokens"), 9);
  EXPECT_EQ(integer(a.usage, "completion_tokens_details", "reasoning_tokens"), 9);
  EXPECT_EQ(integer(a.usage, "completion_tokens"), 13);
}

TEST(Reasoning, NoThoughtsAreNull) {
  Thinking h;
  h.engine->say("\n</think>\n\nb");
  const Answer a = ask(h);
  EXPECT_TRUE(at(a.message, "reasoning_content").is_null());
  EXPECT_EQ(a.content, "b");
}

TEST(Reasoning, LeadingTagIsDroppedAndWithoutAClosingOneAllIsThought) {
  Thinking h;
  h.engine->say("<think>\na</think>b");
  EXPECT_EQ(ask(h).reasoning, "a");
  h.engine->say("a <b");
  const Answer cut = ask(h);
  EXPECT_EQ(cut.reasoning, "a <b");
  EXPECT_EQ(cut.content, "");
  EXPECT_EQ(integer(cut.usage, "reasoning_tokens"), 5);  // and the end of sequence
}

TEST(Reasoning, LimitInsideTheThinking) {
  Thinking h;
  h.engine->say("abcdef</think>g");
  const Answer a = ask(h, R"(,"max_tokens":9)");  // abcdef</t
  EXPECT_EQ(a.reasoning, "abcdef</t");
  EXPECT_EQ(a.content, "");
  EXPECT_EQ(a.finish, "length");
  EXPECT_EQ(integer(a.usage, "reasoning_tokens"), 9);
  const Streamed s = stream(h, R"(,"max_tokens":9)")[0];
  EXPECT_EQ(s.reasoning, "abcdef</t");
  EXPECT_EQ(s.content, "");
  EXPECT_EQ(s.finish, "length");
}

TEST(Reasoning, WithoutAParserNothingChanges) {
  Harness h({}, 512, kForced);
  h.engine->say("a</think>\n\nb");
  const Answer a = ask(h);
  EXPECT_TRUE(at(a.message, "reasoning_content").is_null());
  EXPECT_EQ(a.content, "a</think>\n\nb");
  EXPECT_EQ(integer(a.usage, "reasoning_tokens"), 0);
}

TEST(Reasoning, TemplatesThatDoNotForceIt) {
  Thinking h(kTemplate);
  h.engine->say("<think>\na</think>\n\nb");
  EXPECT_EQ(ask(h).reasoning, "a");
  EXPECT_EQ(ask(h).content, "b");
  EXPECT_EQ(integer(ask(h).usage, "reasoning_tokens"), 17);
  h.engine->say("just <b> an answer");
  EXPECT_EQ(ask(h).content, "just <b> an answer");
  EXPECT_EQ(integer(ask(h).usage, "reasoning_tokens"), 0);
  const Streamed s = stream(h)[0];
  EXPECT_EQ(s.content, "just <b> an answer");
  EXPECT_EQ(s.reasoning, "");
  // This name promises thinking whatever the template does.
  Thinking always(kTemplate, "qwen3-thinking");
  always.engine->say("a</think>b");
  EXPECT_EQ(ask(always).reasoning, "a");
}

TEST(Reasoning, SwitchedOffInTheTemplate) {
  for (const char* parser : {"deepseek-r1", "deepseek-v3", "qwen3", "auto"}) {
    Thinking h(kForced, parser);
    h.engine->say("b");
    EXPECT_EQ(ask(h, R"(,"chat_template_kwargs":{"enable_thinking":false})").content, "b")
        << parser;
    EXPECT_EQ(ask(h, R"(,"reasoning_effort":"none")").content, "b") << parser;
  }
}

TEST(Reasoning, StreamHasNoPartOfATag) {
  Thinking h;
  for (const int tokens_per_event : {1, 3, 64}) {
    h.engine->set_tokens_per_event(tokens_per_event);
    h.engine->say("1 < 2 </th</think>\n\nso </think> yes");
    const Streamed s = stream(h)[0];
    EXPECT_EQ(s.reasoning, "1 < 2 </th") << tokens_per_event;
    EXPECT_EQ(s.content, "so </think> yes") << tokens_per_event;
    EXPECT_EQ(s.finish, "stop");
    EXPECT_EQ(integer(s.usage, "reasoning_tokens"), 18);
  }
  h.engine->set_tokens_per_event(1);
  h.engine->say("ab</think>\n\ncd");
  EXPECT_EQ(stream(h)[0].deltas, (std::vector<std::string>{"R:a", "R:b", "C:c", "C:d"}));
}

TEST(Reasoning, OneDeltaOnRequest) {
  Thinking h;
  h.engine->say("ab c</think>\n\nde");
  EXPECT_EQ(stream(h, R"(,"stream_reasoning":false)")[0].deltas,
            (std::vector<std::string>{"R:ab c", "C:d", "C:e"}));
  EXPECT_EQ(stream(h, R"(,"stream_reasoning":false,"max_tokens":6)")[0].deltas,
            (std::vector<std::string>{"R:ab c</"}));
}

TEST(Reasoning, LeftInTheContentOnRequest) {
  Thinking h;
  h.engine->say("ab</think>\n\nc");
  const Answer a = ask(h, R"(,"separate_reasoning":false)");
  EXPECT_TRUE(at(a.message, "reasoning_content").is_null());
  EXPECT_EQ(a.content, "ab</think>\n\nc");
  EXPECT_EQ(integer(a.usage, "reasoning_tokens"), 10);
  const Streamed s = stream(h, R"(,"separate_reasoning":false)")[0];
  EXPECT_EQ(s.content, "ab</think>\n\nc");
  EXPECT_EQ(s.reasoning, "");
  EXPECT_EQ(ask(h, R"(,"separate_reasoning":false,"stop":["b"])").content, "a");
  EXPECT_EQ(h.chat(R"(,"separate_reasoning":"no")").status, 400);
  EXPECT_EQ(h.chat(R"(,"stream_reasoning":1)").status, 400);
}

TEST(Reasoning, StopStringsAreForTheAnswer) {
  Thinking h;
  h.engine->say("one STOP two\n\nthree</think>\n\nfour STOP five");
  const std::string stop = R"(,"stop":["STOP","\n\n"])";
  const Answer a = ask(h, stop);
  EXPECT_EQ(a.reasoning, "one STOP two\n\nthree");
  EXPECT_EQ(a.content, "four ");
  EXPECT_EQ(a.finish, "stop");
  EXPECT_EQ(str(a.matched), "STOP");
  const Streamed s = stream(h, stop)[0];
  EXPECT_EQ(s.reasoning, a.reasoning);
  EXPECT_EQ(s.content, a.content);
  // A stop string does not reach over the closing tag.
  h.engine->say("x</think>yz");
  EXPECT_EQ(ask(h, R"(,"stop":["xy",">y"])").content, "yz");
}

TEST(Reasoning, EveryChoiceHasItsOwn) {
  Thinking h;
  h.engine->set_script([](const FakeEngine::Request& request, int step) {
    const std::string text = request.choice_index == 0   ? "a</think>bcd"
                             : request.choice_index == 1 ? "efghijkl"
                                                         : "</think>m";
    return step < static_cast<int>(text.size())
               ? static_cast<int32_t>(text[static_cast<size_t>(step)])
               : FakeTokenizer::kEos;
  });
  const std::vector<Streamed> s = stream(h, R"(,"n":3)", 3);
  EXPECT_EQ(s[0].reasoning + "|" + s[0].content, "a|bcd");
  EXPECT_EQ(s[1].reasoning + "|" + s[1].content, "efghijkl|");
  EXPECT_EQ(s[2].reasoning + "|" + s[2].content, "|m");
  EXPECT_EQ(integer(s[0].usage, "reasoning_tokens"), 9 + 9 + 8);
  const json::value v = h.chat(R"(,"n":3)").json();
  for (int i = 0; i < 3; ++i) {
    const json::value& message = at(v, "choices", i, "message");
    EXPECT_EQ(text_at(message, "content"), s[static_cast<size_t>(i)].content);
  }
  EXPECT_TRUE(at(v, "choices", 2, "message", "reasoning_content").is_null());
  EXPECT_EQ(integer(v, "usage", "reasoning_tokens"), 9 + 9 + 8);
}

TEST(Reasoning, LogprobsAreCompleteAndInOrder) {
  Thinking h;
  const std::string said = "ab</think>\n\ncd";
  h.engine->say(said);
  const Answer a = ask(h, R"(,"logprobs":true,"top_logprobs":1)");
  std::string tokens;
  for (const json::value& entry : at(a.logprobs, "content").get_array()) {
    tokens += text_at(entry, "token");
  }
  EXPECT_EQ(tokens, said + "</s>");
  for (const char* members : {"", R"(,"stream_reasoning":false)", R"(,"stream_interval":4)",
                              R"(,"separate_reasoning":false)"}) {
    for (const int tokens_per_event : {1, 5}) {
      h.engine->set_tokens_per_event(tokens_per_event);
      const Streamed s = stream(h, std::string(R"(,"logprobs":true)") + members)[0];
      EXPECT_EQ(s.logprob_text, said + "</s>") << members << ' ' << tokens_per_event;
    }
  }
}

TEST(Reasoning, AnUnfinishedMessageContinues) {
  Thinking h;
  const auto go_on = [&](const std::string& prefix) {
    const Reply reply = h.post("/v1/chat/completions",
                               R"({"messages":[{"role":"user","content":"hi"},
                                   {"role":"assistant","content":")" +
                                   prefix + R"("}],"continue_final_message":true})");
    EXPECT_EQ(reply.status, 200) << reply.body;
    return reply.json().at("choices").at(0).at("message");
  };
  h.engine->say("a</think>b");
  EXPECT_EQ(text_at(go_on("Well,"), "reasoning_content"), "a");
  h.engine->say("b");
  EXPECT_EQ(text_at(go_on("Well</think>\\n\\nThe "), "content"), "b");
}

TEST(Reasoning, PromptsOfIdsAreLookedAtToo) {
  Thinking h;
  h.engine->say("a</think>b");
  const auto with_ids = [&](const std::string& prompt) {
    json::array ids;
    for (const char byte : prompt) ids.emplace_back(static_cast<unsigned char>(byte));
    return ask(h, ",\"input_ids\":" + json::serialize(ids));
  };
  EXPECT_EQ(with_ids("hi<think>\n").reasoning, "a");
  EXPECT_EQ(with_ids("hi").content, "a</think>b");
}

// Tags that are special tokens are dropped from the text, but not overlooked.
TEST(Reasoning, TagsThatAreSpecialTokens) {
  class Special : public FakeTokenizer {
   public:
    std::string_view token_bytes(int32_t id) const override {
      return id == 270 ? "<think>" : id == 271 ? "</think>" : FakeTokenizer::token_bytes(id);
    }
    std::optional<int32_t> id_of(std::string_view token) const override {
      return token == "<think>"    ? std::optional<int32_t>(270)
             : token == "</think>" ? std::optional<int32_t>(271)
                                   : FakeTokenizer::id_of(token);
    }
  };
  ServerConfig config;
  config.port = 0;
  config.served_model_name = "m";
  config.access_log = false;
  config.reasoning_parser = "auto";
  const auto engine = std::make_shared<FakeEngine>();
  auto chat = text::ChatTemplate::compile(kTemplate, {"<s>", "</s>"});
  auto server = Server::create(config, engine, std::make_shared<Special>(), std::move(*chat));
  ASSERT_TRUE(server.ok()) << server.error().message;
  ASSERT_TRUE((*server)->bind().ok());
  ASSERT_TRUE((*server)->start().ok());
  engine->set_script([](const FakeEngine::Request&, int step) {
    static constexpr int32_t kSaid[] = {270, 'a', 271, 'b', FakeTokenizer::kEos};
    return kSaid[std::min(step, 4)];
  });
  const auto post = [&](const std::string& members) {
    const Reply reply =
        Client((*server)->port()).post("/v1/chat/completions", Harness::chat_body(members));
    EXPECT_EQ(reply.status, 200) << reply.body;
    return reply.json();
  };
  const json::value separated = post("");
  EXPECT_EQ(text_at(separated, "choices", 0, "message", "reasoning_content"), "a");
  EXPECT_EQ(text_at(separated, "choices", 0, "message", "content"), "b");
  EXPECT_EQ(integer(separated, "usage", "reasoning_tokens"), 3);
  const json::value raw = post(R"(,"separate_reasoning":false)");
  EXPECT_EQ(text_at(raw, "choices", 0, "message", "content"), "ab");
  EXPECT_EQ(integer(raw, "usage", "reasoning_tokens"), 3);
  const json::value kept = post(R"(,"separate_reasoning":false,"skip_special_tokens":false)");
  EXPECT_EQ(text_at(kept, "choices", 0, "message", "content"), "<think>a</think>b");
}

TEST(Reasoning, OtherDialectsShowTheRawText) {
  Thinking h;
  h.engine->say("a</think>b");
  EXPECT_EQ(
      text_at(h.complete(R"("prompt":"x<think>","max_tokens":20)").json(), "choices", 0, "text"),
      "a</think>b");
  const json::value native = h.post("/generate", R"({"text":"x<think>"})").json();
  EXPECT_EQ(text_at(native, "text"), "a</think>b");
  EXPECT_EQ(integer(native, "meta_info", "reasoning_tokens"), 0);
}

TEST(Reasoning, SeparateReasoningEndpoint) {
  Thinking h;
  const auto post = [&](const std::string& body) { return h.post("/separate_reasoning", body); };
  json::value v = post(R"({"text":"a</think>\n\nb","reasoning_parser":"deepseek-r1"})").json();
  EXPECT_EQ(text_at(v, "reasoning_text"), "a");
  EXPECT_EQ(text_at(v, "text"), "b");
  v = post(R"({"text":"<think>a</think>b","reasoning_parser":"qwen3"})").json();
  EXPECT_EQ(text_at(v, "reasoning_text"), "a");
  v = post(R"({"text":"a","reasoning_parser":"qwen3"})").json();
  EXPECT_EQ(text_at(v, "text"), "a");
  EXPECT_EQ(text_at(post(R"({"text":"a</think>"})").json(), "reasoning_text"), "a");
  const Reply unknown = post(R"({"text":"a","reasoning_parser":"gpt-oss"})");
  EXPECT_EQ(unknown.status, 400);
  EXPECT_NE(error_message(unknown).find("gpt-oss"), std::string::npos);
  EXPECT_NE(error_message(unknown).find("deepseek-r1"), std::string::npos);
  EXPECT_EQ(post(R"({"reasoning_parser":"qwen3"})").status, 400);
  EXPECT_EQ(Harness().post("/separate_reasoning", R"({"text":"a"})").status, 400);
}

TEST(Reasoning, UnknownNamesAreRefusedAtTheStart) {
  ServerConfig config;
  config.served_model_name = "m";
  config.reasoning_parser = "r2";
  const Status status = validate_config(config);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("'r2'"), std::string::npos);
  EXPECT_NE(status.error().message.find("deepseek-r1"), std::string::npos);
}

}  // namespace
}  // namespace capstan::server::testing
