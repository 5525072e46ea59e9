// Models, information, keys, tokenizer endpoints, metrics, the page, and many streams at once.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "server/errors.h"
#include "server/json_text.h"
#include "server/metrics.h"
#include "server_harness.h"

namespace capstan::server::testing {
namespace {

TEST(Models, ListAndOne) {
  const Harness h;
  const json::value list = h.get("/v1/models").json();
  EXPECT_EQ(text_at(list, "object"), "list");
  ASSERT_EQ(at(list, "data").get_array().size(), 1u);
  const json::value& model = at(list, "data", 0);
  EXPECT_EQ(text_at(model, "id"), "org/fake");
  EXPECT_EQ(text_at(model, "name"), "org/fake");
  EXPECT_EQ(text_at(model, "object"), "model");
  EXPECT_EQ(text_at(model, "owned_by"), "sglang");
  EXPECT_EQ(integer(model, "max_model_len"), 512);
  EXPECT_TRUE(at(model, "parent").is_null());
  EXPECT_EQ(h.get("/models").json(), list);
  EXPECT_EQ(h.get("/v1/models/org/fake").json(), model);
  EXPECT_EQ(h.get("/v1/models/org%2Ffake").json(), model);
  const Reply missing = h.get("/v1/models/other");
  EXPECT_EQ(missing.status, 404);
  EXPECT_EQ(text_at(missing.json(), "error", "code"), "model_not_found");
  EXPECT_EQ(text_at(missing.json(), "param"), "model");
  EXPECT_NE(error_message(missing).find("'other'"), std::string::npos);
}

TEST(Info, ModelServerVersion) {
  const Harness h([](ServerConfig& c) {
    c.launch_args = R"({"tp_size":1,"api_key":"top","admin_api_key":null,"max_total_tokens":7,
                        "ssl_keyfile_password":"pw"})";
    c.weight_version = "w2";
  });
  const json::value model = h.get("/model_info").json();
  EXPECT_EQ(text_at(model, "model_path"), "/models/fake");
  EXPECT_EQ(text_at(model, "tokenizer_path"), "/models/fake");
  EXPECT_EQ(text_at(model, "model_type"), "fake");
  EXPECT_EQ(text_at(model, "architectures", 0), "FakeForCausalLM");
  EXPECT_TRUE(at(model, "is_generation").get_bool());
  EXPECT_EQ(h.get("/get_model_info").json(), model);
  const Reply reply = h.get("/server_info");
  EXPECT_EQ(reply.body.find("top"), std::string::npos);
  EXPECT_EQ(reply.body.find("\"pw\""), std::string::npos);
  const json::value info = reply.json();
  EXPECT_EQ(integer(info, "tp_size"), 1);
  EXPECT_EQ(integer(info, "max_total_tokens"), 7);
  EXPECT_EQ(text_at(info, "api_key"), "***");
  EXPECT_TRUE(at(info, "admin_api_key").is_null());
  EXPECT_EQ(text_at(info, "version"), "0.1.0");
  EXPECT_EQ(integer(info, "max_total_num_tokens"), 4096 * 16);
  EXPECT_EQ(integer(info, "internal_states", 0, "memory_usage", "token_capacity"), 4096 * 16);
  EXPECT_TRUE(at(info, "internal_states", 0).get_object().contains("last_gen_throughput"));
  EXPECT_EQ(h.get("/get_server_info").status, 200);
  EXPECT_EQ(h.get("/weight_version").body, "w2");
  EXPECT_EQ(text_at(h.get("/version").json(), "version"), "0.1.0");
}

TEST(Info, Loads) {
  Harness h;
  h.engine->allow_steps(0);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions", Harness::chat_body());
  ASSERT_TRUE(h.engine->wait_live(1));
  const json::value v = h.get("/v1/loads?include=core").json();
  const json::value& load = at(v, "loads", 0);
  EXPECT_EQ(integer(load, "num_waiting_reqs"), 1);
  EXPECT_EQ(integer(load, "num_running_reqs"), 0);
  EXPECT_EQ(at(load, "cache_hit_rate").to_number<double>(), 0.25);
  EXPECT_EQ(at(load, "gen_throughput").to_number<double>(), 12.5);
  EXPECT_EQ(integer(load, "max_total_num_tokens"), 4096 * 16);
  EXPECT_FALSE(load.get_object().contains("memory"));
  EXPECT_TRUE(
      at(h.get("/v1/loads?include=all").json(), "loads", 0).get_object().contains("memory"));
  EXPECT_TRUE(at(h.get("/v1/loads?include=core,queues").json(), "loads", 0)
                  .get_object()
                  .contains("queues"));
  const json::value spec = at(h.get("/v1/loads?include=spec").json(), "loads", 0, "speculative");
  EXPECT_EQ(at(spec, "accept_length").to_number<double>(), 2.5);
  EXPECT_EQ(at(spec, "accept_rate").to_number<double>(), 0.5);
  EXPECT_EQ(integer(spec, "verify_ct_total"), 10);
  EXPECT_EQ(integer(spec, "draft_tokens_total"), 30);
  EXPECT_EQ(integer(spec, "accepted_tokens_total"), 15);
  EXPECT_EQ(h.get("/v1/loads?include=core,junk").status, 400);
  EXPECT_EQ(h.get("/v1/loads?format=xml").status, 400);
  EXPECT_EQ(h.get("/v1/loads?dp_rank=3").status, 400);
  EXPECT_EQ(integer(h.get("/get_load").json(), 0, "num_waiting_reqs"), 1);
  h.engine->allow_steps(-1);
}

TEST(Auth, ApiKey) {
  const Harness h([](ServerConfig& c) {
    c.api_key = "secret";
    c.enable_metrics = true;
  });
  const auto with = [&](const std::string& name, const std::string& value) {
    return h.get("/v1/models", {{name, value}}).status;
  };
  EXPECT_EQ(h.get("/v1/models").status, 401);
  EXPECT_EQ(text_at(h.get("/v1/models").json(), "error", "type"), "Unauthorized");
  EXPECT_EQ(with("Authorization", "Bearer wrong"), 401);
  EXPECT_EQ(with("Authorization", "Bearer secret"), 200);
  EXPECT_EQ(with("Authorization", "bearer secret"), 200);
  EXPECT_EQ(with("Authorization", "Bearer secretsecret"), 401);
  EXPECT_EQ(with("Authorization", "Bearer "), 401);
  EXPECT_EQ(with("Authorization", "Basic secret"), 401);
  EXPECT_EQ(with("X-Api-Key", "secret"), 200);
  EXPECT_EQ(h.get("/nowhere").status, 401);
  for (const char* open : {"/health", "/metrics", "/ping", "/"}) {
    EXPECT_EQ(h.get(open).status, 200) << open;
  }
  EXPECT_EQ(h.get("/flush_cache", {{"Authorization", "Bearer secret"}}).status, 200);
}

TEST(Auth, AdminKey) {
  const Harness h([](ServerConfig& c) {
    c.api_key = "user";
    c.admin_api_key = "root";
  });
  EXPECT_EQ(h.get("/flush_cache", {{"Authorization", "Bearer user"}}).status, 401);
  EXPECT_EQ(h.get("/flush_cache", {{"Authorization", "Bearer root"}}).status, 200);
  EXPECT_EQ(h.post("/abort_request", "{}", {{"Authorization", "Bearer user"}}).status, 401);
  EXPECT_EQ(h.get("/v1/models", {{"Authorization", "Bearer user"}}).status, 200);
  const Harness admin_only([](ServerConfig& c) { c.admin_api_key = "root"; });
  EXPECT_EQ(admin_only.get("/v1/models").status, 200);
  EXPECT_EQ(admin_only.get("/flush_cache").status, 401);
}

TEST(Control, FlushCache) {
  Harness h;
  EXPECT_EQ(h.get("/flush_cache").status, 200);
  EXPECT_EQ(h.post("/flush_cache", "").status, 200);
  h.engine->allow_steps(0);
  Client client(h.port());
  client.request("POST", "/v1/chat/completions", Harness::chat_body(R"(,"max_tokens":2)"));
  ASSERT_TRUE(h.engine->wait_live(1));
  EXPECT_EQ(h.get("/flush_cache").status, 400);
  EXPECT_EQ(h.get("/flush_cache?timeout=x").status, 400);
  Client waiting(h.port());
  waiting.request("GET", "/flush_cache?timeout=30");
  h.engine->allow_steps(-1);
  EXPECT_EQ(waiting.reply().status, 200);
}

TEST(Tokenize, RoundTrip) {
  const Harness h;
  const auto post = [&](const std::string& path, const std::string& body) {
    return h.post(path, body);
  };
  json::value v = post("/tokenize", R"({"prompt":"hé"})").json();
  EXPECT_EQ(at(v, "tokens"), json::parse("[256,104,195,169]"));
  EXPECT_EQ(integer(v, "count"), 4);
  EXPECT_EQ(integer(v, "max_model_len"), 512);
  EXPECT_EQ(integer(post("/v1/tokenize", R"({"content":"h","add_special_tokens":false})").json(),
                    "count"),
            1);
  v = post("/tokenize", R"({"prompt":["a","bc"]})").json();
  EXPECT_EQ(at(v, "count"), json::parse("[2,3]"));
  EXPECT_EQ(text_at(post("/detokenize", R"({"tokens":[256,104,195,169]})").json(), "text"), "hé");
  EXPECT_EQ(
      text_at(post("/v1/detokenize", R"({"tokens":[256,104],"skip_special_tokens":false})").json(),
              "text"),
      "<s>h");
  EXPECT_EQ(at(post("/detokenize", R"({"tokens":[[104],[105]]})").json(), "text"),
            json::parse(R"(["h","i"])"));
  EXPECT_EQ(integer(post("/tokenize", R"({"messages":[{"role":"user","content":"hi"}]})").json(),
                    "count"),
            5);
  for (const char* bad : {"{}", R"({"prompt":"a","messages":[]})", R"({"prompt":5})"}) {
    EXPECT_EQ(post("/tokenize", bad).status, 400) << bad;
  }
  for (const char* bad :
       {"{}", R"({"tokens":[300]})", R"({"tokens":["a"]})", R"({"tokens":[[1],2]})"}) {
    EXPECT_EQ(post("/detokenize", bad).status, 400) << bad;
  }
}

TEST(Page, BrowserGetsThePageOthersALine) {
  static constexpr Asset kPage = {"/", "text/html; charset=utf-8", "<html>chat</html>", "\"e1\""};
  static constexpr Asset kScript = {"/app.js", "text/javascript; charset=utf-8", "run()", "\"e2\""};
  const Harness h([](ServerConfig& c) { c.assets = {kPage, kScript}; });
  const Reply page = h.get("/", {{"Accept", "text/html,*/*"}});
  EXPECT_EQ(page.body, "<html>chat</html>");
  EXPECT_EQ(page.headers.at("content-type"), "text/html; charset=utf-8");
  EXPECT_EQ(h.get("/").headers.at("content-type"), "text/plain; charset=utf-8");
  EXPECT_EQ(h.get("/app.js").body, "run()");
  const Reply again = h.get("/app.js", {{"If-None-Match", "\"e2\""}});
  EXPECT_EQ(again.status, 304);
  EXPECT_EQ(h.get("/app.js", {{"If-None-Match", "\"old\""}}).status, 200);
  EXPECT_EQ(Client(h.port()).call("HEAD", "/").status, 200);
}

TEST(Page, TheBuiltInPageIsComplete) {
  bool root = false;
  for (const Asset& asset : embedded_assets()) {
    EXPECT_FALSE(asset.body.empty()) << asset.path;
    root = root || asset.path == "/";
  }
  EXPECT_TRUE(root);
  // What index.html refers to is there.
  for (const Asset& asset : embedded_assets()) {
    if (asset.path != "/") continue;
    EXPECT_NE(asset.body.find("</html>"), std::string_view::npos);
    for (const Asset& other : embedded_assets()) {
      if (other.path == "/app.js") return;
    }
    FAIL() << "no /app.js";
  }
}

// --- metrics ---

double metric(const std::string& text, const std::string& series) {
  const size_t begin = ("\n" + text).find("\n" + series + " ");
  if (begin == std::string::npos) return -1;
  return std::stod(text.substr(begin + series.size() + 1));
}

TEST(Metrics, OffMeans404) {
  const Harness h;
  EXPECT_EQ(h.get("/metrics").status, 404);
}

TEST(Metrics, ExactAfterKnownRequests) {
  Harness h([](ServerConfig& c) { c.enable_metrics = true; });
  const std::string label = "{model_name=\"org/fake\"}";
  std::string text = h.get("/metrics").body;
  EXPECT_EQ(text.find("cached_tokens_total{"), std::string::npos);
  ASSERT_EQ(h.chat(R"(,"max_tokens":3)").status, 200);
  ASSERT_EQ(h.chat(R"(,"max_tokens":5,"stream":true)").status, 200);
  h.engine->set_cached_tokens(4);
  ASSERT_EQ(h.chat(R"(,"max_tokens":1,"n":2)").status, 200);
  h.get("/health");
  const Reply reply = h.get("/metrics");
  EXPECT_EQ(reply.headers.at("content-type"), "text/plain; version=0.0.4; charset=utf-8");
  text = reply.body;
  EXPECT_EQ(metric(text, "sglang:prompt_tokens_total" + label), 15);
  EXPECT_EQ(metric(text, "sglang:generation_tokens_total" + label), 10);
  EXPECT_EQ(metric(text, "sglang:num_requests_total" + label), 4);
  EXPECT_EQ(metric(text, "sglang:num_aborted_requests_total" + label), 0);
  EXPECT_EQ(
      metric(text, "sglang:cached_tokens_total{cache_source=\"device\",model_name=\"org/fake\"}"),
      4);
  EXPECT_EQ(metric(text, "sglang:time_to_first_token_seconds_count" + label), 4);
  EXPECT_EQ(metric(text, "sglang:e2e_request_latency_seconds_count" + label), 4);
  EXPECT_EQ(metric(text, "sglang:inter_token_latency_seconds_count" + label),
            6);  // all but the first
  EXPECT_EQ(metric(text, "sglang:prompt_tokens_histogram_count" + label), 3);
  EXPECT_EQ(metric(text, "sglang:generation_tokens_histogram_sum" + label), 10);
  for (const char* gauge :
       {"num_running_reqs", "num_queue_reqs", "token_usage", "num_used_tokens", "gen_throughput"}) {
    EXPECT_EQ(metric(text, std::string("sglang:") + gauge + label), 0) << gauge;
  }
  EXPECT_EQ(metric(text, "sglang:cache_hit_rate" + label), 0.25);
  EXPECT_EQ(metric(text,
                   "sglang:http_requests_total{endpoint=\"/v1/chat/completions\",method=\"POST\","
                   "model_name=\"org/fake\"}"),
            3);
  EXPECT_EQ(text.find("endpoint=\"/health\""), std::string::npos);
}

TEST(Metrics, HelpAndTypeOncePerFamilyAndStandardEdges) {
  Harness h([](ServerConfig& c) { c.enable_metrics = true; });
  h.chat(R"(,"max_tokens":2)");
  const std::string text = h.get("/metrics").body;
  std::map<std::string, int> types;
  for (size_t at = 0; (at = text.find("# TYPE ", at)) != std::string::npos; at += 7) {
    ++types[text.substr(at + 7, text.find(' ', at + 7) - at - 7)];
  }
  EXPECT_GE(types.size(), 20u);
  for (const auto& [name, count] : types) {
    EXPECT_EQ(count, 1) << name;
    EXPECT_TRUE(name.starts_with("sglang:")) << name;
  }
  const auto edges = [&](const std::string& name) {
    std::vector<double> found;
    const std::string key = "sglang:" + name + "_bucket{model_name=\"org/fake\",le=\"";
    for (size_t at = 0; (at = text.find(key, at)) != std::string::npos; ++at) {
      const std::string value = text.substr(at + key.size(), 8);
      if (value[0] != '+') found.push_back(std::stod(value));
    }
    return found;
  };
  EXPECT_EQ(
      edges("time_to_first_token_seconds"),
      (std::vector<double>{.1, .2, .4, .6, .8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400}));
  EXPECT_EQ(edges("e2e_request_latency_seconds"),
            (std::vector<double>{.1, .2, .4, .6, .8,  1,   2,   4,   6,    8,    10,
                                 20, 40, 60, 80, 100, 200, 400, 600, 1200, 1800, 2400}));
  EXPECT_EQ(edges("inter_token_latency_seconds"),
            (std::vector<double>{.002, .004, .006, .008, .01, .015, .02, .025, .03, .035, .04, .06,
                                 .08,  .1,   .2,   .4,   .6,  .8,   1,   2,    4,   6,    8}));
  EXPECT_EQ(queue_edges().back(), 3000);
  EXPECT_EQ(queue_edges()[queue_edges().size() - 2], 2800);
  EXPECT_EQ(token_count_edges().size(), 7u + 8 + 8 + 12);
}

TEST(Metrics, TokensPerExpertOfModelsWithExperts) {
  Harness h([](ServerConfig& c) { c.enable_metrics = true; });
  EXPECT_EQ(h.get("/metrics").body.find("expert_tokens_total"), std::string::npos);
  h.engine->set_expert_load({{}, {}});  // dense layers only
  EXPECT_EQ(h.get("/metrics").body.find("expert_tokens_total"), std::string::npos);
  h.engine->set_expert_load({{}, {7, 0, 5}, {1, 2, uint64_t{1} << 40}});
  const std::string text = h.get("/metrics").body;
  const auto tokens = [&](const char* layer, const char* expert) {
    return metric(text, std::string("sglang:expert_tokens_total{layer=\"") + layer +
                            "\",expert=\"" + expert + "\",model_name=\"org/fake\"}");
  };
  EXPECT_EQ(tokens("1", "0"), 7);
  EXPECT_EQ(tokens("1", "1"), 0);
  EXPECT_EQ(tokens("1", "2"), 5);
  EXPECT_EQ(tokens("2", "2"), 1099511627776.0);
  EXPECT_EQ(tokens("0", "0"), -1) << "a layer without experts";
  EXPECT_EQ(tokens("1", "3"), -1);
  const std::string type = "# TYPE sglang:expert_tokens_total counter";
  const size_t at = text.find(type);
  ASSERT_NE(at, std::string::npos);
  EXPECT_EQ(text.find(type, at + 1), std::string::npos) << "one family";
}

TEST(Metrics, OwnEdgesAndPrefixStyles) {
  Harness h([](ServerConfig& c) {
    c.enable_metrics = true;
    c.bucket_time_to_first_token = {0.5, 7};
    c.metrics_prefix_style = MetricsPrefixStyle::kBoth;
  });
  const std::string text = h.get("/metrics").body;
  EXPECT_NE(
      text.find("sglang:time_to_first_token_seconds_bucket{model_name=\"org/fake\",le=\"7\"}"),
      std::string::npos);
  EXPECT_NE(text.find("\nsglang_num_running_reqs{"), std::string::npos);
  EXPECT_NE(text.find("\nsglang:num_running_reqs{"), std::string::npos);
}

// --- defaults of a model ---

TEST(GenerationConfig, ReadsDefaults) {
  const std::string dir = ::testing::TempDir() + "/generation_config_test";
  std::filesystem::create_directories(dir);
  const auto read = [&](const std::string& text) {
    std::ofstream(dir + "/generation_config.json") << text;
    return read_generation_config(dir);
  };
  auto defaults = read(R"({"temperature":0.6,"top_p":0.95,"top_k":0,"eos_token_id":[1,2]})");
  ASSERT_TRUE(defaults.ok());
  EXPECT_EQ(defaults->temperature, 0.6);
  EXPECT_EQ(defaults->top_p, 0.95);
  EXPECT_EQ(defaults->top_k, -1);
  EXPECT_FALSE(defaults->min_p.has_value());
  EXPECT_EQ(read(R"({"do_sample":false,"temperature":0.6})")->temperature, 0.0);
  EXPECT_FALSE(read(R"({"temperature":"hot"})").ok());
  const auto broken = read("{");
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().message.find("generation_config.json"), std::string::npos);
  std::filesystem::remove_all(dir);
  EXPECT_TRUE(read_generation_config(dir).ok());
}

// --- JSON by hand ---

TEST(JsonText, EscapesReadBack) {
  std::string all;
  for (int c = 0; c < 128; ++c) all += static_cast<char>(c);
  all += "\xE2\x80\xA8\xE2\x80\xA9\xE2\x82\xAC\xF0\x9F\x98\x80";
  std::string out;
  append_json_string(out, all);
  EXPECT_EQ(str(json::parse(out)), all);
  EXPECT_EQ(out.find('\n'), std::string::npos);
  EXPECT_EQ(out.find("\xE2\x80\xA8"), std::string::npos);
}

TEST(JsonText, NumbersAreFinite) {
  std::string out;
  append_json_float(out, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(static_cast<float>(json::parse(out).to_number<double>()),
            std::numeric_limits<float>::lowest());
  out.clear();
  append_json_float(out, 0.1F);
  EXPECT_EQ(out, "0.1");
}

TEST(JsonText, LossyUtf8FollowsPython) {
  EXPECT_EQ(utf8_lossy("a\xFFz"), "a\xEF\xBF\xBDz");
  EXPECT_EQ(utf8_lossy("\xF0\x9F\x98"), "\xEF\xBF\xBD");  // one cut sequence
  EXPECT_EQ(utf8_lossy("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate
  EXPECT_EQ(utf8_lossy("\xC0\xAF"), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(utf8_lossy("\xE4\xBD\xA0"), "\xE4\xBD\xA0");
}

TEST(Load, ManyConcurrentStreams) {
#ifdef CAPSTAN_TSAN
  constexpr int kStreams = 200;
#else
  constexpr int kStreams = 1000;
#endif
  Harness h([](ServerConfig& c) { c.enable_metrics = true; });
  h.engine->allow_steps(0);
  std::vector<std::unique_ptr<Client>> clients;
  const std::string body = Harness::chat_body(R"(,"stream":true,"max_tokens":20)");
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(std::make_unique<Client>(h.port()));
    ASSERT_TRUE(clients.back()->connected()) << i;
    ASSERT_TRUE(clients.back()->request("POST", "/v1/chat/completions", body));
  }
  ASSERT_TRUE(h.engine->wait_live(kStreams));
  EXPECT_EQ(h.get("/health").status, 200);
  h.engine->allow_steps(-1);
  for (const auto& client : clients) {
    const Reply reply = client->reply();
    ASSERT_EQ(reply.status, 200);
    const Events events = parse_events(reply.body);
    ASSERT_EQ(events.error, "");
    ASSERT_TRUE(events.done);
    ASSERT_EQ(events.items.size(), 22u);  // role, 20 tokens, finish
  }
}

}  // namespace
}  // namespace capstan::server::testing
