// HTTP/1.1 itself: connections, bodies, limits, headers that every response carries.
#include <gtest/gtest.h>

#include "server_harness.h"

namespace capstan::server::testing {
namespace {

TEST(Transport, RefusesConnectionsBeforeStart) {
  auto listener = Listener::bind("127.0.0.1", 0);
  ASSERT_TRUE(listener.ok());
  EXPECT_NE(listener->port(), 0);
  EXPECT_FALSE(Client(listener->port()).connected());
}

TEST(Transport, PortInUseIsAnErrorThatNamesIt) {
  const Harness h;
  const auto second = Listener::bind("127.0.0.1", h.port());
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find("127.0.0.1:" + std::to_string(h.port())),
            std::string::npos);
  EXPECT_NE(second.error().message.find("in use"), std::string::npos);
  EXPECT_FALSE(Listener::bind("198.51.100.7", 0).ok());
  EXPECT_FALSE(Listener::bind("no such host", 0).ok());
}

TEST(Transport, ListensOnIpv6) {
  auto listener = Listener::bind("::1", 0);
  if (!listener.ok()) GTEST_SKIP() << "no IPv6 here: " << listener.error().message;
  EXPECT_NE(listener->port(), 0);
}

TEST(Transport, KeepsTheConnectionForManyRequests) {
  const Harness h;
  Client client(h.port());
  for (int i = 0; i < 5; ++i) {
    const Reply reply = client.get("/v1/models");
    ASSERT_EQ(reply.status, 200);
    EXPECT_EQ(reply.headers.count("connection"), 0u);
  }
  ASSERT_EQ(client.post("/v1/chat/completions", Harness::chat_body(R"(,"max_tokens":3)")).status,
            200);
  ASSERT_EQ(
      client.post("/v1/chat/completions", Harness::chat_body(R"(,"max_tokens":3,"stream":true)"))
          .status,
      200);
  EXPECT_EQ(client.get("/ping").status, 200);
}

TEST(Transport, ClosesWhenAskedTo) {
  const Harness h;
  Client client(h.port());
  const Reply reply = client.get("/ping", {{"Connection", "close"}});
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("connection"), "close");
  EXPECT_TRUE(client.ended());
}

TEST(Transport, IdleConnectionsAreClosedAfterTheKeepAliveTimeout) {
  const Harness h([](ServerConfig& c) { c.keep_alive_timeout = 0.05; });
  Client client(h.port());
  ASSERT_EQ(client.get("/ping").status, 200);
  EXPECT_TRUE(client.ended());
}

TEST(Transport, Http10GetsNoChunks) {
  const Harness h;
  Client client(h.port());
  const std::string body = Harness::chat_body(R"(,"max_tokens":2,"stream":true)");
  client.send(
      "POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body);
  const Reply head = client.head();
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.headers.count("transfer-encoding"), 0u);
  const std::string rest = client.rest();
  EXPECT_TRUE(rest.starts_with("data: ")) << rest;
  EXPECT_TRUE(rest.ends_with("data: [DONE]\n\n")) << rest;
}

TEST(Transport, PipelinedRequestsAreAnsweredInOrder) {
  const Harness h;
  Client client(h.port());
  client.request("POST", "/v1/chat/completions", Harness::chat_body(R"(,"max_tokens":2)"));
  client.request("GET", "/version");
  EXPECT_EQ(text_at(client.reply().json(), "object"), "chat.completion");
  EXPECT_EQ(text_at(client.reply().json(), "version"), "0.1.0");
}

TEST(Transport, ChunkedRequestBody) {
  const Harness h;
  Client client(h.port());
  client.send(
      "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\n\r\n");
  const std::string body = Harness::chat_body(R"(,"max_tokens":2)");
  for (size_t i = 0; i < body.size(); i += 7) {
    const std::string part = body.substr(i, 7);
    char size[8];
    std::snprintf(size, sizeof size, "%zx\r\n", part.size());
    client.send(size + part + "\r\n");
  }
  client.send("0\r\n\r\n");
  EXPECT_EQ(client.reply().status, 200);
}

TEST(Transport, Expect100Continue) {
  const Harness h([](ServerConfig&) {}, 8 << 20);
  Client client(h.port());
  const std::string text(5 << 20, 'x');
  const std::string body = R"({"prompt":")" + text + R"(","max_tokens":1})";
  client.send(
      "POST /v1/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
      "Expect: 100-continue\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n");
  EXPECT_EQ(client.head().status, 100);
  client.send(body);
  const Reply reply = client.reply();
  ASSERT_EQ(reply.status, 200) << reply.body.substr(0, 300);
  EXPECT_EQ(integer(reply.json(), "usage", "prompt_tokens"), (5 << 20) + 1);
}

TEST(Transport, OtherExpectationsAre417) {
  const Harness h;
  Client client(h.port());
  client.send(
      "POST /v1/completions HTTP/1.1\r\nHost: t\r\nExpect: cake\r\nContent-Length: 2\r\n\r\n{}");
  EXPECT_EQ(client.reply().status, 417);
}

TEST(Transport, TooLargeBodiesAre413WhileTheClientIsStillSending) {
  const Harness h([](ServerConfig& c) { c.max_body_bytes = 1000; });
  const Reply declared = h.post("/v1/completions", std::string(200000, 'x'));
  EXPECT_EQ(declared.status, 413);
  EXPECT_NE(error_message(declared).find("1000 bytes"), std::string::npos);

  Client client(h.port());
  client.send("POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 50; ++i) client.send("40\r\n" + std::string(64, 'x') + "\r\n");
  EXPECT_EQ(client.reply().status, 413);
}

TEST(Transport, MalformedRequestsGet400AndOversizedHeaders431) {
  const Harness h;
  for (const char* bad :
       {"GARBAGE\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "GET / HTTP/1.1\r\nBroken Header: x\r\n\r\n"}) {
    Client client(h.port());
    client.send(bad);
    const Reply reply = client.reply();
    EXPECT_EQ(reply.status, 400) << bad;
    EXPECT_TRUE(client.ended()) << bad;
  }
  Client client(h.port());
  client.send("GET /ping HTTP/1.1\r\nX-Long: " + std::string(100000, 'a') + "\r\n\r\n");
  EXPECT_EQ(client.reply().status, 431);
}

TEST(Transport, HalfARequestEndsWithTheHeaderTimeout) {
  const Harness h([](ServerConfig& c) { c.header_timeout = 0.05; });
  Client client(h.port());
  client.send("GET /ping HT");
  EXPECT_EQ(client.reply().status, 408);
}

TEST(Transport, UnknownPathsAndMethods) {
  const Harness h;
  const Reply missing = h.get("/v1/nothing");
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(text_at(missing.json(), "error", "type"), "NotFoundError");
  EXPECT_EQ(integer(missing.json(), "code"), 404);

  const Reply wrong = h.get("/v1/chat/completions");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers.at("allow"), "POST, OPTIONS");
  EXPECT_EQ(h.post("/v1/models", "{}").headers.at("allow"), "GET, HEAD, OPTIONS");
  EXPECT_EQ(Client(h.port()).call("BREW", "/v1/models").status, 405);
}

TEST(Transport, TrailingSlashAndQueryFindTheSameHandler) {
  const Harness h;
  EXPECT_EQ(h.get("/v1/models/").status, 200);
  EXPECT_EQ(h.get("/v1/models?x=1").status, 200);
  EXPECT_EQ(h.get("http://host:80/v1/models").status, 200);
}

TEST(Transport, HeadSendsNoBody) {
  const Harness h;
  Client client(h.port());
  const Reply reply = client.call("HEAD", "/v1/models");
  EXPECT_EQ(reply.status, 200);
  EXPECT_GT(std::stoi(reply.headers.at("content-length")), 20);
  EXPECT_EQ(client.get("/ping").status, 200);  // nothing of a body was left in between
}

TEST(Transport, JsonEndpointsNeedTheMediaType) {
  const Harness h;
  const std::string body = Harness::chat_body(R"(,"max_tokens":1)");
  const auto with = [&](const char* type) {
    return h.post("/v1/chat/completions", body, {{"Content-Type", type}});
  };
  EXPECT_EQ(with("text/plain").status, 400);
  EXPECT_NE(error_message(with("text/plain")).find("'text/plain'"), std::string::npos);
  EXPECT_EQ(with("application/json; charset=utf-8").status, 200);
  EXPECT_EQ(with("Application/JSON").status, 200);
  EXPECT_EQ(with("application/jsonl").status, 400);
  Client client(h.port());
  client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Length: " +
              std::to_string(body.size()) + "\r\n\r\n" + body);
  EXPECT_EQ(client.reply().status, 400);
}

TEST(Transport, RequestIdOnEveryResponse) {
  const Harness h;
  const Client::Headers id = {{"X-Request-Id", "abc"}};
  EXPECT_EQ(h.get("/v1/models", id).headers.at("x-request-id"), "abc");
  EXPECT_EQ(h.get("/nowhere", id).headers.at("x-request-id"), "abc");
  EXPECT_EQ(h.post("/v1/chat/completions", "{", id).headers.at("x-request-id"), "abc");
  EXPECT_EQ(
      h.post("/v1/chat/completions", Harness::chat_body(R"(,"stream":true,"max_tokens":1)"), id)
          .headers.at("x-request-id"),
      "abc");
  EXPECT_EQ(h.get("/ping").headers.at("x-request-id").size(), 32u);
  EXPECT_EQ(
      h.get("/ping", {{"X-Request-Id", std::string(200, 'a')}}).headers.at("x-request-id").size(),
      32u);
}

TEST(Transport, Cors) {
  const Harness h([](ServerConfig& c) { c.api_key = "k"; });
  Client client(h.port());
  const Reply preflight = client.call("OPTIONS", "/v1/chat/completions", {},
                                      {{"Origin", "http://ui.example"},
                                       {"Access-Control-Request-Method", "POST"},
                                       {"Access-Control-Request-Headers", "authorization,x-a"}});
  EXPECT_EQ(preflight.status, 200);
  EXPECT_EQ(preflight.headers.at("access-control-allow-origin"), "http://ui.example");
  EXPECT_EQ(preflight.headers.at("access-control-allow-credentials"), "true");
  EXPECT_EQ(preflight.headers.at("access-control-allow-headers"), "authorization,x-a");
  EXPECT_NE(preflight.headers.at("access-control-allow-methods").find("POST"), std::string::npos);
  const Reply denied = h.get("/v1/models", {{"Origin", "http://ui.example"}});
  EXPECT_EQ(denied.status, 401);
  EXPECT_EQ(denied.headers.at("access-control-allow-origin"), "http://ui.example");
  EXPECT_EQ(h.get("/ping").headers.count("access-control-allow-origin"), 0u);
}

TEST(Transport, ManyIoThreads) {
  const Harness h([](ServerConfig& c) { c.io_threads = 3; });
  for (int i = 0; i < 9; ++i) {
    const Reply reply = h.chat(R"(,"max_tokens":4)");
    ASSERT_EQ(reply.status, 200);
    EXPECT_EQ(text_at(reply.json(), "choices", 0, "message", "content"), "abcd");
  }
}

}  // namespace
}  // namespace capstan::server::testing
