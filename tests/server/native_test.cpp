// POST /generate.
#include <gtest/gtest.h>

#include "server_harness.h"

namespace capstan::server::testing {
namespace {

TEST(Native, OneText) {
  Harness h;
  h.engine->set_cached_tokens(2);
  const Reply reply =
      h.post("/generate", R"({"text":"hey","sampling_params":{"max_new_tokens":2}})");
  ASSERT_EQ(reply.status, 200) << reply.body;
  const json::value v = reply.json();
  EXPECT_EQ(text_at(v, "text"), "ab");
  EXPECT_EQ(at(v, "output_ids"), json::parse("[97,98]"));
  EXPECT_EQ(text_at(v, "meta_info", "id").size(), 32u);
  EXPECT_EQ(at(v, "meta_info", "finish_reason"), json::parse(R"({"type":"length","length":2})"));
  EXPECT_EQ(integer(v, "meta_info", "prompt_tokens"), 4);
  EXPECT_EQ(integer(v, "meta_info", "completion_tokens"), 2);
  EXPECT_EQ(integer(v, "meta_info", "cached_tokens"), 2);
  EXPECT_EQ(text_at(v, "meta_info", "weight_version"), "default");
  EXPECT_GE(at(v, "meta_info", "e2e_latency").to_number<double>(), 0);
}

TEST(Native, DefaultsStopsAndPut) {
  Harness h;
  EXPECT_EQ(
      integer(h.post("/generate", R"({"text":"x"})").json(), "meta_info", "completion_tokens"),
      128);
  h.engine->say("Xy");
  json::value v = h.post("/generate", R"({"input_ids":[1],"rid":"mine"})").json();
  EXPECT_EQ(at(v, "meta_info", "finish_reason"), json::parse(R"({"type":"stop","matched":257})"));
  EXPECT_EQ(text_at(v, "meta_info", "id"), "mine");
  v = Client(h.port())
          .call("PUT", "/generate", R"({"text":"x","sampling_params":{"stop":"y"}})")
          .json();
  EXPECT_EQ(at(v, "meta_info", "finish_reason"), json::parse(R"({"type":"stop","matched":"y"})"));
  EXPECT_EQ(text_at(v, "text"), "X");
  v = h.post("/generate", R"({"text":"x","sampling_params":{"max_new_tokens":0}})").json();
  EXPECT_EQ(text_at(v, "text"), "");
  EXPECT_EQ(integer(v, "meta_info", "completion_tokens"), 0);
}

// However full the object is whose fields are copied: adding to it moves what it holds.
TEST(Native, FieldsInCommonWithOtherCallsAreReadFromObjectsOfAnySize) {
  Harness h;
  const std::string value(32, 'v');
  std::string more;
  for (int i = 0; i < 24; ++i) {
    const Reply reply =
        h.post("/generate", R"({"text":"x","stream":")" + value + "\"" + more + "}");
    EXPECT_EQ(reply.status, 400);
    EXPECT_NE(reply.body.find(value), std::string::npos) << reply.body;
    more += ",\"unknown" + std::to_string(i) + "\":1";
  }
}

TEST(Native, Batches) {
  Harness h;
  h.engine->set_script([](const engine::EngineRequest& r, int) { return r.prompt.back(); });
  const json::value v = h.post("/generate", R"({"text":["x","y"],"rid":["r1","r2"],
      "sampling_params":[{"max_new_tokens":1,"n":2},{"max_new_tokens":2,"n":2}]})")
                            .json();
  ASSERT_EQ(v.get_array().size(), 4u);
  const char* expected[] = {"x", "x", "yy", "yy"};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(text_at(v, i, "text"), expected[i]);
    EXPECT_EQ(text_at(v, i, "meta_info", "id"), i < 2 ? "r1" : "r2");
  }
  EXPECT_TRUE(h.post("/generate", R"({"input_ids":[[97]],"sampling_params":{"max_new_tokens":1}})")
                  .json()
                  .is_array());
}

TEST(Native, StreamsAreCumulative) {
  Harness h;
  const std::string body = R"({"text":"x","stream":true,"sampling_params":{"max_new_tokens":3}})";
  Events events = parse_events(h.post("/generate", body).body);
  EXPECT_TRUE(events.done);
  ASSERT_EQ(events.items.size(), 3u);
  EXPECT_EQ(text_at(events.items[0], "text"), "a");
  EXPECT_EQ(text_at(events.items[1], "text"), "ab");
  EXPECT_EQ(text_at(events.items[2], "text"), "abc");
  EXPECT_EQ(at(events.items[2], "output_ids"), json::parse("[97,98,99]"));
  EXPECT_TRUE(at(events.items[1], "meta_info", "finish_reason").is_null());
  EXPECT_EQ(text_at(events.items[2], "meta_info", "finish_reason", "type"), "length");
  EXPECT_EQ(integer(events.items[1], "meta_info", "completion_tokens"), 2);
  events = parse_events(
      h.post("/generate",
             R"({"text":["x","y"],"stream":true,"sampling_params":{"max_new_tokens":1}})")
          .body);
  EXPECT_EQ(integer(events.items[0], "index") + integer(events.items[1], "index"), 1);
  Harness deltas([](ServerConfig& c) { c.incremental_streaming_output = true; });
  events = parse_events(deltas.post("/generate", body).body);
  EXPECT_EQ(text_at(events.items[1], "text"), "b");
  EXPECT_EQ(at(events.items[1], "output_ids"), json::parse("[98]"));
}

TEST(Native, Logprobs) {
  Harness h;
  const json::value v = h.post("/generate", R"({"input_ids":[104,105],"return_logprob":true,
      "logprob_start_len":0,"top_logprobs_num":2,"return_text_in_logprobs":true,
      "sampling_params":{"max_new_tokens":1}})")
                            .json();
  const json::value& meta = at(v, "meta_info");
  EXPECT_EQ(at(meta, "input_token_logprobs"), json::parse(R"([[null,104,"h"],[-0.5,105,"i"]])"));
  EXPECT_EQ(at(meta, "output_token_logprobs"), json::parse(R"([[-0.5,97,"a"]])"));
  EXPECT_EQ(at(meta, "output_top_logprobs"), json::parse(R"([[[-0.5,97,"a"],[-1.5,98,"b"]]])"));
  const json::value plain = h.post("/generate", R"({"text":"x","return_logprob":true,
      "sampling_params":{"max_new_tokens":1}})")
                                .json();
  EXPECT_EQ(at(plain, "meta_info", "input_token_logprobs"), json::parse("[]"));
  EXPECT_EQ(at(plain, "meta_info", "output_token_logprobs"), json::parse("[[-0.5,97,null]]"));
}

TEST(Native, Refusals) {
  Harness h;
  for (const char* body : {"{}",
                           R"({"text":"a","input_ids":[1]})",
                           R"({"text":5})",
                           R"({"text":[]})",
                           R"({"text":["a",5]})",
                           R"({"input_ids":[]})",
                           R"({"input_ids":[300]})",
                           R"({"input_ids":[[1],[]]})",
                           R"({"text":"a","sampling_params":5})",
                           R"({"text":"a","sampling_params":{"top_p":0}})",
                           R"({"text":["a","b"],"sampling_params":[{}]})",
                           R"({"text":["a","b"],"rid":["r"]})",
                           R"({"text":["a","b"],"sampling_params":[{"n":1},{"n":2}]})",
                           R"({"text":["a","b"],"rid":["r","r"]})",
                           R"({"text":"a","return_logprob":true,"token_ids_logprob":[300]})",
                           R"({"text":"a","return_logprob":true,"logprob_start_len":9})",
                           R"({"text":"a","sampling_params":{"max_new_tokens":600}})",
                           R"({"input_embeds":[[1]]})",
                           R"({"text":"a","lora_path":"x"})",
                           R"({"text":"a","sampling_params":{"regex":"a"}})"}) {
    const Reply reply = h.post("/generate", body);
    EXPECT_EQ(reply.status, 400) << body << reply.body;
    EXPECT_GT(error_message(reply).size(), 10u);
  }
  EXPECT_NE(error_message(h.post("/generate", R"({"text":"a","sampling_params":{"top_p":0}})"))
                .find("sampling_params.top_p"),
            std::string::npos);
  EXPECT_EQ(h.post("/generate", R"({"text":"a","lora_path":null,"return_logprob":false,
      "logprob_start_len":-1,"stream":false,"image_data":null,"sampling_params":{"max_new_tokens":1,
      "temperature":0,"ignore_eos":true}})")
                .status,
            200);
}

}  // namespace
}  // namespace capstan::server::testing
