// Event streams of chat and completions: framing, order, usage, stop strings, errors on the way.
#include <gtest/gtest.h>

#include "server_harness.h"

namespace capstan::server::testing {
namespace {

Events events_of(const Reply& reply) {
  EXPECT_EQ(reply.status, 200) << reply.body;
  EXPECT_TRUE(reply.complete);
  Events events = parse_events(reply.body);
  EXPECT_EQ(events.error, "");
  EXPECT_TRUE(events.done);
  return events;
}

// Text, roles and finish reasons per choice of a stream.
struct Joined {
  std::vector<std::string> text, finish;
  std::vector<int> roles, finishes, deltas;
};
Joined join(const Events& events, size_t choices = 1) {
  Joined out;
  out.text.resize(choices);
  out.finish.resize(choices);
  out.roles.resize(choices);
  out.finishes.resize(choices);
  out.deltas.resize(choices);
  for (const json::value& event : events.items) {
    for (const json::value& choice : at(event, "choices").get_array()) {
      const auto i = static_cast<size_t>(integer(choice, "index"));
      EXPECT_EQ(out.finishes[i], 0) << "something after the finish chunk";
      if (const json::value* delta = choice.get_object().if_contains("delta")) {
        if (delta->get_object().contains("role")) {
          EXPECT_EQ(out.text[i], "");
          ++out.roles[i];
        }
        if (delta->get_object().contains("content")) {
          EXPECT_EQ(out.roles[i], 1) << "text before the role";
          out.text[i] += str(delta->at("content"));
          if (!delta->get_object().contains("role")) ++out.deltas[i];
        }
      } else {
        out.text[i] += text_at(choice, "text");
        ++out.deltas[i];
      }
      if (!at(choice, "finish_reason").is_null()) {
        out.finish[i] = text_at(choice, "finish_reason");
        ++out.finishes[i];
      }
    }
  }
  return out;
}

TEST(Stream, OrderAndHeaders) {
  Harness h;
  h.engine->say("Hello");
  const Reply reply = h.chat(R"(,"stream":true)");
  EXPECT_EQ(reply.headers.at("content-type"), "text/event-stream; charset=utf-8");
  EXPECT_EQ(reply.headers.at("cache-control"), "no-cache");
  EXPECT_EQ(reply.headers.at("x-accel-buffering"), "no");
  EXPECT_EQ(reply.headers.count("content-length"), 0u);
  const Events events = events_of(reply);
  const Joined joined = join(events);
  EXPECT_EQ(joined.text[0], "Hello");
  EXPECT_EQ(joined.roles[0], 1);
  EXPECT_EQ(joined.deltas[0], 5);  // one event per token
  EXPECT_EQ(joined.finish[0], "stop");
  ASSERT_EQ(events.items.size(), 7u);  // role, five letters, finish
  for (const json::value& event : events.items) {
    EXPECT_EQ(at(event, "id"), at(events.items[0], "id"));
    EXPECT_EQ(at(event, "created"), at(events.items[0], "created"));
    EXPECT_EQ(at(event, "model"), at(events.items[0], "model"));
    EXPECT_EQ(text_at(event, "object"), "chat.completion.chunk");
    EXPECT_TRUE(at(event, "usage").is_null());
    EXPECT_EQ(at(event, "choices").get_array().size(), 1u);
  }
  EXPECT_EQ(at(events.items[0], "choices", 0, "delta"),
            json::parse(R"({"role":"assistant","content":""})"));
  EXPECT_EQ(at(events.items[6], "choices", 0, "delta"), json::parse("{}"));
  EXPECT_EQ(integer(events.items[6], "choices", 0, "matched_stop"), FakeTokenizer::kEos);
}

TEST(Stream, EqualsTheNonStreamedText) {
  Harness h;
  h.engine->say("line\nquote\" back\\slash \t\x01 \xF0\x9F\x98\x80 \xE2\x80\xA8 \xE4\xBD\xA0 end");
  const std::string whole = text_at(h.chat().json(), "choices", 0, "message", "content");
  EXPECT_EQ(join(events_of(h.chat(R"(,"stream":true)"))).text[0], whole);
  h.engine->set_tokens_per_event(3);
  EXPECT_EQ(join(events_of(h.chat(R"(,"stream":true)"))).text[0], whole);
}

TEST(Stream, WholeUtf8SequencesOnly) {
  Harness h;
  h.engine->say("a\xF0\x9F\x98\x80z");
  const Events events = events_of(h.chat(R"(,"stream":true)"));
  EXPECT_EQ(join(events).text[0], "a\xF0\x9F\x98\x80z");
  EXPECT_EQ(join(events).deltas[0], 3);
  // Cut in the middle, the rest becomes one replacement character.
  const Events cut = events_of(h.chat(R"(,"stream":true,"max_tokens":3)"));
  EXPECT_EQ(join(cut).text[0], "a\xEF\xBF\xBD");
}

TEST(Stream, UsageOnlyWhenAskedFor) {
  Harness h;
  Events events = events_of(h.chat(R"(,"stream":true,"max_tokens":4)"));
  for (const json::value& e : events.items) EXPECT_FALSE(at(e, "choices").get_array().empty());
  events =
      events_of(h.chat(R"(,"stream":true,"max_tokens":4,"stream_options":{"include_usage":true})"));
  int empty = 0;
  for (const json::value& e : events.items) empty += at(e, "choices").get_array().empty() ? 1 : 0;
  EXPECT_EQ(empty, 1);
  EXPECT_EQ(integer(events.items.back(), "usage", "completion_tokens"), 4);
  EXPECT_EQ(integer(events.items.back(), "usage", "total_tokens"), 9);
  EXPECT_TRUE(at(events.items[1], "usage").is_null());
  events = events_of(
      h.chat(R"(,"stream":true,"max_tokens":4,"stream_options":{"continuous_usage_stats":true})"));
  int64_t last = 0;
  for (const json::value& e : events.items) {
    EXPECT_GE(integer(e, "usage", "completion_tokens"), last);
    last = integer(e, "usage", "completion_tokens");
  }
  EXPECT_EQ(last, 4);
  Harness always([](ServerConfig& c) { c.stream_default_include_usage = true; });
  events = events_of(always.chat(R"(,"stream":true,"max_tokens":1)"));
  EXPECT_TRUE(at(events.items.back(), "choices").get_array().empty());
}

TEST(Stream, Choices) {
  Harness h;
  h.engine->set_script(
      [](const engine::EngineRequest& r, int step) { return 'a' + r.choice_index * 10 + step; });
  const Joined joined = join(events_of(h.chat(R"(,"stream":true,"n":2,"max_tokens":3)")), 2);
  EXPECT_EQ(joined.text[0], "abc");
  EXPECT_EQ(joined.text[1], "klm");
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(joined.roles[i], 1);
    EXPECT_EQ(joined.finish[i], "length");
  }
}

TEST(Stream, Interval) {
  Harness h([](ServerConfig& c) { c.stream_interval = 4; });
  const Events events = events_of(h.chat(R"(,"stream":true,"max_tokens":10)"));
  std::vector<std::string> deltas;
  for (const json::value& e : events.items) {
    const json::object& delta = at(e, "choices", 0, "delta").get_object();
    if (!delta.contains("role") && delta.contains("content"))
      deltas.push_back(str(delta.at("content")));
  }
  EXPECT_EQ(deltas, (std::vector<std::string>{"a", "bcde", "fghi", "j"}));
  EXPECT_EQ(
      join(events_of(h.chat(R"(,"stream":true,"max_tokens":10,"stream_interval":1)"))).deltas[0],
      10);
}

TEST(Stream, ValidationErrorsAreJson) {
  Harness h;
  const Reply reply = h.post("/v1/chat/completions", R"({"messages":[],"stream":true})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_EQ(reply.headers.at("content-type"), "application/json");
}

TEST(Stream, FailureAfterTheFirstTokenIsOneEventThenDone) {
  Harness h;
  h.engine->fail_after(2, ErrorCode::kInternal, "the step failed");
  const Reply reply = h.chat(R"(,"stream":true)");
  ASSERT_EQ(reply.status, 200);
  const Events events = parse_events(reply.body);
  EXPECT_EQ(events.error, "");
  EXPECT_TRUE(events.done);
  const json::value& error = at(events.items.back(), "error");
  EXPECT_EQ(text_at(error, "message"), "the step failed");
  EXPECT_EQ(text_at(error, "object"), "error");
  EXPECT_EQ(integer(error, "code"), 500);
  EXPECT_EQ(text_at(error, "type"), "InternalServerError");
  int errors = 0;
  for (const json::value& e : events.items) errors += e.get_object().contains("error") ? 1 : 0;
  EXPECT_EQ(errors, 1);
}

TEST(Stream, NothingIsSentBeforeTheFirstToken) {
  Harness h;
  h.engine->allow_steps(0);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions", Harness::chat_body(R"(,"stream":true)"));
  ASSERT_TRUE(h.engine->wait_live(1));
  h.engine->fail_after(0, ErrorCode::kResourceExhausted, "evicted from the queue");
  h.engine->allow_steps(-1);
  EXPECT_EQ(client.reply().status, 503);
}

TEST(Stream, EachTokenLeavesAtOnce) {
  Harness h;
  h.engine->allow_steps(0);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions",
                 Harness::chat_body(R"(,"stream":true,"max_tokens":3)"));
  ASSERT_TRUE(h.engine->wait_live(1));
  h.engine->allow_steps(1);
  ASSERT_EQ(client.head().status, 200);
  EXPECT_NE(client.chunk().find(R"("content":"a")"), std::string::npos);
  h.engine->allow_steps(1);
  const std::string second = client.chunk();
  EXPECT_NE(second.find(R"("content":"b")"), std::string::npos);
  EXPECT_TRUE(second.ends_with("\n\n"));
  h.engine->allow_steps(-1);
}

TEST(Stream, PingsOnlyWhenAskedFor) {
  Harness h;
  h.engine->allow_steps(0);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions",
                 Harness::chat_body(R"(,"stream":true,"max_tokens":1)"),
                 {{"X-Stream-Ping", "0.1"}});
  ASSERT_EQ(client.head().status, 200);
  EXPECT_EQ(client.chunk(), ": ping\n\n");
  h.engine->allow_steps(-1);
  std::string body;
  for (std::string part = client.chunk(); !part.empty(); part = client.chunk()) body += part;
  EXPECT_TRUE(body.ends_with("data: [DONE]\n\n"));
}

TEST(StopStrings, SpanningTokensAreCutAndNeverPartlyShown) {
  Harness h;
  h.engine->say("abSTOPcd");
  const json::value v = h.chat(R"(,"stop":"STOP")").json();
  EXPECT_EQ(text_at(v, "choices", 0, "message", "content"), "ab");
  EXPECT_EQ(text_at(v, "choices", 0, "finish_reason"), "stop");
  EXPECT_EQ(text_at(v, "choices", 0, "matched_stop"), "STOP");
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 6);
  ASSERT_TRUE(h.engine->wait_live(0));

  const Events events = events_of(h.chat(R"(,"stop":["zzz","STOP"],"stream":true)"));
  const Joined joined = join(events);
  EXPECT_EQ(joined.text[0], "ab");
  EXPECT_EQ(joined.deltas[0], 2);
  EXPECT_EQ(text_at(events.items.back(), "choices", 0, "matched_stop"), "STOP");
  EXPECT_EQ(text_at(h.chat(R"(,"stop":"STOP","no_stop_trim":true)").json(), "choices", 0, "message",
                    "content"),
            "abSTOP");
}

TEST(StopStrings, NearMatchesAreDelivered) {
  Harness h;
  h.engine->say("xSTO");
  EXPECT_EQ(join(events_of(h.chat(R"(,"stop":"STOP","stream":true)"))).text[0], "xSTO");
  h.engine->say("xSTOSTOx");
  const json::value v = h.chat(R"(,"stop":"STOP")").json();
  EXPECT_EQ(text_at(v, "choices", 0, "message", "content"), "xSTOSTOx");
}

TEST(StopStrings, StopTheEngine) {
  Harness h;
  h.engine->set_script([](const engine::EngineRequest&, int) { return 'x'; });
  h.engine->allow_steps(3);
  const Reply reply = h.chat(R"(,"stop":"xx")");
  EXPECT_EQ(integer(reply.json(), "usage", "completion_tokens"), 2);
  EXPECT_TRUE(h.engine->wait_live(0));
}

TEST(StopStrings, StopTokenIdsAreNotShownUnlessWanted) {
  Harness h;
  h.engine->say("ab!cd");
  const json::value v = h.chat(R"(,"stop_token_ids":[33])").json();
  EXPECT_EQ(text_at(v, "choices", 0, "message", "content"), "ab");
  EXPECT_EQ(integer(v, "choices", 0, "matched_stop"), 33);
  EXPECT_EQ(integer(v, "usage", "completion_tokens"), 3);
  EXPECT_EQ(text_at(h.chat(R"(,"stop_token_ids":[33],"no_stop_trim":true)").json(), "choices", 0,
                    "message", "content"),
            "ab!");
}

TEST(StopStrings, SpecialTokensAreSkippedUnlessWanted) {
  Harness h;
  h.engine->set_script([](const engine::EngineRequest&, int step) {
    return step == 0 ? 'a' : step == 1 ? FakeTokenizer::kUser : step == 2 ? 'b' : 257;
  });
  EXPECT_EQ(text_at(h.chat().json(), "choices", 0, "message", "content"), "ab");
  EXPECT_EQ(
      text_at(h.chat(R"(,"skip_special_tokens":false)").json(), "choices", 0, "message", "content"),
      "a<|user|>b");
}

TEST(Logprobs, ChatEntryPerToken) {
  Harness h;
  const json::value v = h.chat(R"(,"max_tokens":3,"logprobs":true,"top_logprobs":2)").json();
  const json::array& entries = at(v, "choices", 0, "logprobs", "content").get_array();
  ASSERT_EQ(entries.size(), 3u);
  std::string joined;
  for (const json::value& entry : entries) {
    joined += text_at(entry, "token");
    EXPECT_EQ(at(entry, "logprob").to_number<double>(), -0.5);
    EXPECT_EQ(at(entry, "bytes"),
              json::array{static_cast<unsigned char>(text_at(entry, "token")[0])});
    const json::array& top = at(entry, "top_logprobs").get_array();
    ASSERT_EQ(top.size(), 2u);
    EXPECT_EQ(text_at(top[0], "token"), text_at(entry, "token"));
    EXPECT_GT(at(top[0], "logprob").to_number<double>(), at(top[1], "logprob").to_number<double>());
  }
  EXPECT_EQ(joined, text_at(v, "choices", 0, "message", "content"));
  // top_logprobs alone implies logprobs.
  EXPECT_EQ(at(h.chat(R"(,"max_tokens":3,"top_logprobs":2)").json(), "choices", 0, "logprobs"),
            at(v, "choices", 0, "logprobs"));
}

TEST(Logprobs, StreamLosesNoneAndBytesRecoverSplitCharacters) {
  Harness h;
  h.engine->say("a\xF0\x9F\x98\x80STOx");
  const std::string members = R"(,"logprobs":true,"top_logprobs":1,"stop":"STOP")";
  const json::value whole = at(h.chat(members).json(), "choices", 0, "logprobs", "content");
  json::array streamed;
  std::string bytes;
  for (const json::value& e : events_of(h.chat(members + R"(,"stream":true)")).items) {
    const json::value& logprobs = at(e, "choices", 0, "logprobs");
    if (logprobs.is_null()) continue;
    for (const json::value& entry : at(logprobs, "content").get_array()) {
      streamed.push_back(entry);
      for (const json::value& b : at(entry, "bytes").get_array()) {
        bytes += static_cast<char>(b.to_number<int>());
      }
    }
  }
  EXPECT_EQ(json::value(streamed), whole);
  EXPECT_EQ(bytes, "a\xF0\x9F\x98\x80STOx</s>");  // the token that ended it is reported as well
  EXPECT_EQ(text_at(whole, 1, "token"), "\xEF\xBF\xBD");
}

}  // namespace
}  // namespace capstan::server::testing
