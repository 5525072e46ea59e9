// The server on the real engine, with a model that costs nothing: what only the two together show.
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "base/log.h"
#include "engine/null_model.h"
#include "fake_tokenizer.h"
#include "http_client.h"
#include "server/server.h"
#include "text/chat_template.h"

namespace capstan::server::testing {
namespace {

namespace json = boost::json;

struct RealEngine {
  explicit RealEngine(const std::function<void(engine::EngineConfig&)>& configure = {}) {
    EXPECT_TRUE(init_logging("warning").ok());  // the engine's batch lines
    engine::NullModelOptions options;
    options.vocab_size = FakeTokenizer::kVocab;
    engine::EngineConfig config;
    config.scheduler.num_pages = 2048;
    config.scheduler.context_length = 512;
    config.random_seed = 5;
    if (configure) configure(config);
    auto created = engine::Engine::create(std::make_unique<engine::NullModel>(options), config);
    EXPECT_TRUE(created.ok()) << created.error().message;
    engine = std::move(created).value();
    ServerConfig server_config;
    server_config.port = 0;
    server_config.served_model_name = "null";
    server_config.access_log = false;
    server_config.enable_metrics = true;
    server_config.enable_cache_report = true;
    auto made = Server::create(
        server_config, engine, std::make_shared<FakeTokenizer>(),
        text::ChatTemplate::compile("{{ messages[0].content }}", {"<s>", "</s>"}).value());
    EXPECT_TRUE(made.ok());
    server = std::move(made).value();
    EXPECT_TRUE(server->bind().ok());
    EXPECT_TRUE(server->warm_up().ok());
    EXPECT_TRUE(server->start().ok());
  }
  Reply complete(const std::string& members) const {
    return Client(server->port()).post("/v1/completions", "{" + members + "}");
  }
  json::value load() const {
    return Client(server->port()).get("/v1/loads").json().at("loads").at(0);
  }
  bool idle() const {
    for (int i = 0; i < 20000; ++i) {
      const json::value l = load();
      if (l.at("num_running_reqs").to_number<int>() + l.at("num_waiting_reqs").to_number<int>() +
              l.at("num_used_tokens").to_number<int>() ==
          0) {
        return true;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  std::shared_ptr<engine::Engine> engine;
  std::unique_ptr<Server> server;
};

TEST(WithEngine, GreedyAndSeededTextsRepeatAloneAndInACrowd) {
  const RealEngine r;
  const std::string greedy = R"("prompt":"abc","max_tokens":30,"temperature":0)";
  const std::string seeded = R"("prompt":"abc","max_tokens":30,"temperature":1,"seed":7)";
  const auto text = [&](const std::string& members) {
    const Reply reply = r.complete(members);
    EXPECT_EQ(reply.status, 200) << reply.body;
    return json::serialize(reply.json().at("choices").at(0).at("text"));
  };
  const std::string alone = text(greedy), alone_seeded = text(seeded);
  std::vector<std::thread> crowd;
  std::vector<std::string> greedy_texts(8), seeded_texts(8);
  for (size_t i = 0; i < 8; ++i) {
    crowd.emplace_back([&, i] {
      greedy_texts[i] = text(greedy);
      seeded_texts[i] = text(seeded);
    });
  }
  for (std::thread& thread : crowd) thread.join();
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_EQ(greedy_texts[i], alone);
    EXPECT_EQ(seeded_texts[i], alone_seeded);
  }
  EXPECT_NE(text(R"("prompt":"abc","max_tokens":30,"temperature":1,"seed":8)"), alone_seeded);
}

TEST(WithEngine, EchoWithLogprobsCoversPromptAndOutput) {
  const RealEngine r;
  const json::value v =
      r.complete(R"("prompt":[104,105,33],"max_tokens":2,"echo":true,"logprobs":2,"temperature":0)")
          .json();
  const json::value& lp = v.at("choices").at(0).at("logprobs");
  ASSERT_EQ(lp.at("tokens").get_array().size(), 5u);
  EXPECT_TRUE(lp.at("token_logprobs").at(0).is_null());
  for (size_t i = 1; i < 5; ++i) EXPECT_LE(lp.at("token_logprobs").at(i).to_number<double>(), 0);
}

TEST(WithEngine, CachedTokensAreReported) {
  const RealEngine r;
  const std::string prompt(100, 'p');
  const auto cached = [&] {
    return r.complete("\"max_tokens\":1,\"prompt\":\"" + prompt + "\"")
        .json()
        .at("usage")
        .at("prompt_tokens_details")
        .at("cached_tokens")
        .to_number<int>();
  };
  EXPECT_EQ(cached(), 0);
  EXPECT_EQ(cached(), 96);  // whole pages of 16
  Client(r.server->port()).get("/flush_cache");
  EXPECT_EQ(cached(), 0);
}

TEST(WithEngine, QueueFullIs503AndOthersSucceed) {
  const RealEngine r([](engine::EngineConfig& c) {
    c.scheduler.max_running_requests = 1;
    c.scheduler.max_queued_requests = 1;
  });
  r.engine->set_paused(true);
  const std::string body = R"({"prompt":"x","max_tokens":2})";
  int full = 0, fine = 0;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 6; ++i) {
    clients.push_back(std::make_unique<Client>(r.server->port()));
    clients.back()->request("POST", "/v1/completions", body);
  }
  EXPECT_EQ(Client(r.server->port()).get("/ping").status, 200);
  r.engine->set_paused(false);
  for (const auto& client : clients) {
    const Reply reply = client->reply();
    if (reply.status == 200) ++fine;
    if (reply.status == 503) {
      ++full;
      EXPECT_NE(reply.body.find("The request queue is full."), std::string::npos);
      EXPECT_EQ(reply.headers.at("retry-after"), "1");
    }
  }
  EXPECT_EQ(full + fine, 6);
  EXPECT_GE(fine, 1);
}

TEST(WithEngine, DisconnectsAtRandomLeaveNothingBehind) {
  const RealEngine r;
  std::mt19937 random(1);
  for (int round = 0; round < 4; ++round) {
    std::vector<std::unique_ptr<Client>> clients;
    for (int i = 0; i < 60; ++i) {
      clients.push_back(std::make_unique<Client>(r.server->port()));
      const bool stream = random() % 2 == 0;
      clients.back()->request("POST", "/v1/completions",
                              R"({"prompt":"q","ignore_eos":true,"max_tokens":)" +
                                  std::to_string(1 + random() % 400) + R"(,"n":)" +
                                  std::to_string(1 + random() % 3) +
                                  (stream ? R"(,"stream":true})" : "}"));
    }
    for (const auto& client : clients) {
      switch (random() % 4) {
        case 0:
          client->close();
          break;
        case 1:
          client->reset();
          break;
        case 2:
          client->head();
          client->close();
          break;
        default:
          EXPECT_EQ(client->reply().status, 200);
      }
    }
    EXPECT_TRUE(r.idle());
  }
}

TEST(WithEngine, EngineMayOutliveTheServer) {
  RealEngine r;
  r.engine->set_paused(true);
  Client client(r.server->port());
  client.request("POST", "/v1/completions", R"({"prompt":"x","max_tokens":50,"stream":true})");
  EXPECT_EQ(Client(r.server->port()).get("/ping").status, 200);
  r.server.reset();
  r.engine->set_paused(false);
  r.engine.reset();
}

}  // namespace
}  // namespace capstan::server::testing
