// Clients that leave, administrators who abort, servers that shut down.
#include <gtest/gtest.h>

#include <thread>

#include "server_harness.h"

namespace capstan::server::testing {
namespace {

std::string metric_line(const Harness& h, const std::string& prefix) {
  const std::string all = h.get("/metrics").body;
  size_t begin = 0;
  while (begin < all.size()) {
    const size_t end = all.find('\n', begin);
    const std::string line = all.substr(begin, end - begin);
    if (line.starts_with(prefix)) return line.substr(line.rfind(' ') + 1);
    begin = end + 1;
  }
  return "";
}

Harness with_metrics() {
  return Harness([](ServerConfig& c) { c.enable_metrics = true; });
}

TEST(Disconnect, WhileStreaming) {
  Harness h = with_metrics();
  h.engine->allow_steps(3);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions", Harness::chat_body(R"(,"stream":true,"n":2)"));
  ASSERT_EQ(client.head().status, 200);
  client.chunk();
  client.close();
  EXPECT_TRUE(h.engine->wait_live(0));  // both children, without another step
  EXPECT_TRUE(h.engine->wait_for(
      [&] { return metric_line(h, "sglang:num_aborted_requests_total") == "2"; }));
}

TEST(Disconnect, ByReset) {
  Harness h = with_metrics();
  h.engine->allow_steps(1);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions", Harness::chat_body(R"(,"stream":true)"));
  ASSERT_EQ(client.head().status, 200);
  client.reset();
  EXPECT_TRUE(h.engine->wait_live(0));
}

TEST(Disconnect, WhileWaitingForAWholeAnswer) {
  Harness h = with_metrics();
  h.engine->allow_steps(2);
  Client client(h.port());
  client.request("POST", "/v1/completions", R"({"prompt":["a","b"],"n":2})");
  ASSERT_TRUE(h.engine->wait_live(4));
  client.close();
  EXPECT_TRUE(h.engine->wait_live(0));
  EXPECT_TRUE(h.engine->wait_for(
      [&] { return metric_line(h, "sglang:num_aborted_requests_total") == "4"; }));
  // No output was sent of those without a token, and none has a latency.
  EXPECT_EQ(metric_line(h, "sglang:num_requests_total"),
            metric_line(h, "sglang:e2e_request_latency_seconds_count"));
}

TEST(Disconnect, InTheQueue) {
  Harness h;
  h.engine->allow_steps(0);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions", Harness::chat_body(R"(,"stream":true)"));
  ASSERT_TRUE(h.engine->wait_live(1));
  client.close();
  EXPECT_TRUE(h.engine->wait_live(0));
}

TEST(Disconnect, AfterPipelinedBytes) {
  Harness h;
  h.engine->allow_steps(0);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions", Harness::chat_body());
  client.send("GET /ping HTTP/1.1\r\n\r\n");
  ASSERT_TRUE(h.engine->wait_live(1));
  client.close();
  EXPECT_TRUE(h.engine->wait_live(0));
}

TEST(Disconnect, OthersGoOn) {
  Harness h;
  h.engine->allow_steps(0);
  Client leaves(h.port()), stays(h.port());
  leaves.request("POST", "/v1/chat/completions", Harness::chat_body(R"(,"max_tokens":4)"));
  stays.request("POST", "/v1/chat/completions", Harness::chat_body(R"(,"max_tokens":4)"));
  ASSERT_TRUE(h.engine->wait_live(2));
  leaves.close();
  ASSERT_TRUE(h.engine->wait_live(1));
  h.engine->allow_steps(-1);
  EXPECT_EQ(text_at(stays.reply().json(), "choices", 0, "message", "content"), "abcd");
}

TEST(Abort, ByRid) {
  Harness h;
  h.engine->allow_steps(2);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions",
                 Harness::chat_body(R"(,"stream":true,"rid":"r1","n":2)"));
  ASSERT_EQ(client.head().status, 200);
  EXPECT_EQ(h.post("/abort_request", R"({"rid":""})").status, 200);
  EXPECT_EQ(h.post("/abort_request", R"({"rid":"unknown"})").status, 200);
  EXPECT_EQ(h.engine->live(), 2);
  EXPECT_EQ(h.post("/abort_request", R"({"rid":"r1"})").status, 200);
  std::string body;
  for (std::string part = client.chunk(); !part.empty(); part = client.chunk()) body += part;
  const Events events = parse_events(body);
  EXPECT_TRUE(events.done);
  int aborted = 0;
  for (const json::value& e : events.items) {
    const json::value& reason = at(e, "choices", 0, "finish_reason");
    if (!reason.is_null() && str(reason) == "abort") ++aborted;
  }
  EXPECT_EQ(aborted, 2);
}

TEST(Abort, All) {
  Harness h;
  h.engine->allow_steps(1);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions", Harness::chat_body());
  ASSERT_TRUE(h.engine->wait_live(1));
  EXPECT_EQ(h.post("/abort_request", R"({"abort_all":true})").status, 200);
  const json::value v = client.reply().json();
  EXPECT_EQ(text_at(v, "choices", 0, "finish_reason"), "abort");
}

TEST(Drain, RunningRequestsFinishAndNewOnesGet503) {
  Harness h;
  EXPECT_EQ(h.get("/health").status, 200);
  h.engine->allow_steps(0);
  Client running(h.port());
  running.request("POST", "/v1/chat/completions",
                  Harness::chat_body(R"(,"stream":true,"max_tokens":3)"));
  ASSERT_TRUE(h.engine->wait_live(1));
  h.server->begin_drain();
  EXPECT_EQ(h.get("/health").status, 503);
  EXPECT_EQ(h.get("/health_generate").status, 503);
  EXPECT_EQ(h.get("/ping").status, 200);
  const Reply refused = h.chat();
  EXPECT_EQ(refused.status, 503);
  EXPECT_EQ(refused.headers.at("retry-after"), "1");
  EXPECT_EQ(refused.headers.at("connection"), "close");
  EXPECT_FALSE(h.server->wait_idle(std::chrono::milliseconds(1)));
  h.engine->allow_steps(-1);
  EXPECT_TRUE(h.server->wait_idle(std::chrono::seconds(20)));
  const Reply finished = running.reply();
  EXPECT_TRUE(parse_events(finished.body).done);
  EXPECT_NE(finished.body.find(R"("finish_reason":"length")"), std::string::npos);
  EXPECT_TRUE(running.ended());
}

TEST(Drain, StopEndsWhatIsLeftWithAbort) {
  Harness h;
  h.engine->allow_steps(1);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions", Harness::chat_body(R"(,"stream":true)"));
  ASSERT_EQ(client.head().status, 200);
  h.server->stop();
  const std::string rest = client.rest();
  EXPECT_NE(rest.find(R"("finish_reason":"abort")"), std::string::npos) << rest;
  EXPECT_NE(rest.find("data: [DONE]"), std::string::npos);
  EXPECT_FALSE(Client(h.port()).connected());
}

TEST(Drain, ServerDiesWithRequestsAndConnectionsOpen) {
  auto h = std::make_unique<Harness>();
  h->engine->allow_steps(0);
  Client idle(h->port()), half(h->port());
  half.send("POST /v1/chat");
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 8; ++i) {
    clients.push_back(std::make_unique<Client>(h->port()));
    clients.back()->request("POST", "/v1/chat/completions",
                            Harness::chat_body(R"(,"stream":true)"));
  }
  ASSERT_TRUE(h->engine->wait_live(8));
  h->server.reset();
  EXPECT_TRUE(h->engine->wait_live(0));
}

TEST(Health, ProbesDoNotCountAndNeedTheEngine) {
  Harness h([](ServerConfig& c) {
    c.enable_metrics = true;
    c.health_timeout = 0.1;
  });
  EXPECT_EQ(h.get("/health").status, 200);
  EXPECT_EQ(h.get("/health").body, "");
  EXPECT_EQ(h.engine->submitted().size(), 0u);  // probes are marked
  EXPECT_EQ(metric_line(h, "sglang:num_requests_total"), "0");
  h.engine->set_max_live(0);  // a full queue admits probes
  EXPECT_EQ(h.get("/health").status, 200);
  h.engine->allow_steps(0);  // a frozen engine
  EXPECT_EQ(h.get("/health").status, 503);
  EXPECT_EQ(h.get("/health_generate").status, 503);
  h.engine->allow_steps(-1);
  EXPECT_TRUE(h.engine->wait_for([&] { return h.get("/health").status == 200; }));
}

TEST(Health, BusyWithOneStepIsAliveUntilTheTimeout) {
  Harness h;  // 20 s
  h.engine->allow_steps(0);
  EXPECT_EQ(h.get("/health").status, 200);
  EXPECT_EQ(h.get("/health").status, 200);
  h.engine->allow_steps(-1);
}

TEST(Health, ALongPrefillChunkIsAliveUntilTheWatchdogsTimeout) {
  Harness h([](ServerConfig& c) { c.health_timeout = 0.1; });
  h.engine->set_step_prefill_tokens(2048);
  h.engine->allow_steps(0);
  EXPECT_EQ(h.get("/health").status, 200);
  EXPECT_EQ(h.get("/health").status, 200);
  h.engine->set_step_prefill_tokens(0);
  EXPECT_EQ(h.get("/health").status, 503);
  h.engine->allow_steps(-1);
}

TEST(Health, WithoutGeneration) {
  Harness h([](ServerConfig& c) {
    c.health_generation = false;
    c.health_timeout = 0.1;
  });
  h.engine->allow_steps(0);
  EXPECT_EQ(h.get("/health").status, 200);
}

TEST(WarmUp, GeneratesAndReportsFailure) {
  Harness h;
  EXPECT_TRUE(h.server->warm_up().ok());
  EXPECT_TRUE(h.engine->submitted().empty());
  h.engine->allow_steps(0);
  const Status status = h.server->warm_up(std::chrono::seconds(0));
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("warm-up"), std::string::npos);
  h.engine->allow_steps(-1);
}

}  // namespace
}  // namespace capstan::server::testing
