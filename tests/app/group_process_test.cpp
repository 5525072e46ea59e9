// Several processes as one server, over loopback: what clients, operators and supervisors see.
#include <gtest/gtest.h>

#include <future>

#include "app/process.h"
#include "comm/ucx_support.h"

namespace capstan {
namespace {

using namespace std::chrono_literals;

std::string llama() { return std::string(CAPSTAN_TESTDATA) + "/model/tiny-llama3-f32"; }

/// A port that is free now. Rendezvous ports are given before anybody listens.
int free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  ::close(fd);
  return ntohs(address.sin_port);
}

// A context so long that a request outlasts the test.
const std::vector<std::string> kLongContext = {"--context-length", "2M", "--max-total-tokens",
                                               "2M"};
// What UCX finds on every machine.
const std::vector<std::string> kUcx = {"UCX_TLS=tcp"};
const std::string kAllowIt = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1";

std::vector<std::string> node_args(int node, int rendezvous, int nodes = 2,
                                   std::vector<std::string> more = {}, int tp = 0) {
  std::vector<std::string> args = {"serve",
                                   "--model-path",
                                   llama(),
                                   "--port",
                                   "0",
                                   "--threads",
                                   "1",
                                   "--tp",
                                   std::to_string(tp > 0 ? tp : nodes),
                                   "--nnodes",
                                   std::to_string(nodes),
                                   "--node-rank",
                                   std::to_string(node),
                                   "--dist-init-addr",
                                   "127.0.0.1:" + std::to_string(rendezvous),
                                   "--enable-metrics"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

int status_port(const Process& p) {
  const std::string text = p.output(), mark = "Health and metrics of this node: http://127.0.0.1:";
  const size_t at = text.find(mark);
  return at == std::string::npos ? 0 : std::stoi(text.substr(at + mark.size()));
}

/// Two nodes, ready.
struct Pair {
  explicit Pair(std::vector<std::string> more = {}, std::vector<std::string> environment = {},
                int rendezvous = free_port(), int tp = 2)
      : worker(node_args(1, rendezvous, 2, more, tp), environment),
        leader(node_args(0, rendezvous, 2, more, tp), environment) {
    EXPECT_TRUE(leader.ready()) << leader.output() << worker.output();
    EXPECT_TRUE(worker.wait_for("Health and metrics")) << worker.output();
  }
  Process worker, leader;
};

std::string text_of(int port) {
  const std::string answer = http(port, "POST", "/v1/completions", completion(30));
  const size_t from = answer.find("\"text\":"), to = answer.find("\"logprobs\"");
  EXPECT_NE(from, std::string::npos) << answer;
  return from == std::string::npos ? "" : answer.substr(from, to - from);
}

std::future<std::string> long_stream(int port) {
  return std::async(std::launch::async, [port] {
    return http(port, "POST", "/v1/completions",
                R"({"prompt": [5, 6, 7], "temperature": 0, "ignore_eos": true, "stream": true,
                    "max_tokens": 1900000})");
  });
}

TEST(GroupProcess, TwoNodesAnswerLikeOne) {
  Process one({"serve", "--model-path", llama(), "--port", "0", "--threads", "1"});
  ASSERT_TRUE(one.ready()) << one.output();
  const std::string expected = text_of(one.port());
  Process threads({"serve", "--model-path", llama(), "--port", "0", "--threads", "1", "--tp", "2"});
  ASSERT_TRUE(threads.ready()) << threads.output();
  EXPECT_EQ(text_of(threads.port()), expected);
  if (comm::ucx_built_in()) {
    Pair over_ucx({"--comm-transport", "ucx"}, kUcx, free_port(), /*tp=*/4);
    EXPECT_EQ(text_of(over_ucx.leader.port()), expected);
    EXPECT_TRUE(contains(over_ucx.leader.output(), "over shared memory + ucx"))
        << over_ucx.leader.output();
    over_ucx.leader.signal(SIGTERM);
    EXPECT_EQ(over_ucx.leader.wait(), 0) << over_ucx.leader.output();
    EXPECT_EQ(over_ucx.worker.wait(), 0) << over_ucx.worker.output();
  }
  Pair pair({"--comm-transport", "tcp"}, {}, free_port(), /*tp=*/4);
  EXPECT_EQ(text_of(pair.leader.port()), expected);
  EXPECT_TRUE(contains(pair.leader.output(), "TP0]")) << pair.leader.output();
  EXPECT_TRUE(contains(pair.worker.output(), "TP2]") && contains(pair.worker.output(), "TP3]"));
  EXPECT_TRUE(contains(pair.worker.output(), "Rank 3 read")) << pair.worker.output();

  const int status = status_port(pair.worker);
  for (const char* path : {"/ping", "/health", "/health_generate", "/livez", "/readyz"}) {
    EXPECT_TRUE(contains(http(status, "GET", path), " 200 ")) << path;
  }
  EXPECT_TRUE(contains(http(status, "GET", "/metrics"), "sglang:group_step"));
  for (const char* path : {"/", "/v1/models", "/model_info"}) {
    EXPECT_TRUE(contains(http(status, "GET", path), " 404 ")) << path;
  }
  EXPECT_TRUE(contains(http(pair.leader.port(), "GET", "/readyz"), "\"nodes\":2"));
  EXPECT_TRUE(contains(http(pair.leader.port(), "GET", "/health"), " 200 "));

  pair.leader.signal(SIGTERM);
  EXPECT_EQ(pair.leader.wait(), 0) << pair.leader.output();
  EXPECT_EQ(pair.worker.wait(), 0) << pair.worker.output();
}

TEST(GroupProcess, GroupsOfAttentionAnswerLikeOne) {
  Process one({"serve", "--model-path", llama(), "--port", "0", "--threads", "1"});
  ASSERT_TRUE(one.ready()) << one.output();
  Pair pair({"--dp-size", "2", "--enable-dp-attention"});
  auto other = std::async(std::launch::async, text_of, pair.leader.port());
  EXPECT_EQ(text_of(pair.leader.port()), text_of(one.port()));
  EXPECT_EQ(other.get(), text_of(one.port()));
}

TEST(GroupProcess, AllNodesDrainTogether) {
  Pair pair;
  auto answer = std::async(std::launch::async, [port = pair.leader.port()] {
    return http(port, "POST", "/v1/completions", completion(500));
  });
  ASSERT_TRUE(pair.leader.wait_for("Prefill batch.")) << pair.leader.output();
  pair.worker.signal(SIGTERM);
  pair.leader.signal(SIGTERM);
  const std::string text = answer.get();
  EXPECT_TRUE(contains(text, "\"completion_tokens\":500")) << text;
  EXPECT_EQ(pair.leader.wait(), 0) << pair.leader.output();
  EXPECT_EQ(pair.worker.wait(), 0) << pair.worker.output();
}

TEST(GroupProcess, ASignalToOneWorkerDrainsTheServer) {
  Pair pair;
  pair.worker.signal(SIGTERM);
  EXPECT_EQ(pair.leader.wait(), 0) << pair.leader.output();
  EXPECT_EQ(pair.worker.wait(), 0) << pair.worker.output();
}

TEST(GroupProcess, SecondSignalToAWorkerEndsItAtOnce) {
  Pair pair(kLongContext, {kAllowIt});
  auto stream = long_stream(pair.leader.port());
  ASSERT_TRUE(pair.leader.wait_for("Prefill batch.")) << pair.leader.output();
  pair.worker.signal(SIGTERM);
  ASSERT_TRUE(pair.worker.wait_for("a second one ends")) << pair.worker.output();
  pair.worker.signal(SIGTERM);
  EXPECT_EQ(pair.worker.wait(), 128 + SIGTERM) << pair.worker.output();
  EXPECT_NE(pair.leader.wait(), 0) << pair.leader.output();
  EXPECT_TRUE(contains(stream.get(), "\"error\""));
}

TEST(GroupProcess, AKilledWorkerEndsStreamsWithAnErrorAndIsNamed) {
  for (const char* transport : {"tcp", "auto", "ucx"}) {
    SCOPED_TRACE(transport);
    if (std::string(transport) == "ucx" && !comm::ucx_built_in()) continue;
    std::vector<std::string> flags = kLongContext;
    flags.insert(flags.end(), {"--comm-transport", transport});
    const int rendezvous = free_port();
    {
      Pair pair(flags, {kAllowIt, kUcx[0]}, rendezvous);
      auto stream = long_stream(pair.leader.port());
      ASSERT_TRUE(pair.leader.wait_for("Prefill batch.")) << pair.leader.output();
      auto whole = std::async(std::launch::async, [port = pair.leader.port()] {
        return http(port, "POST", "/v1/completions", completion(1900000));
      });
      EXPECT_TRUE(pair.leader.wait_for("#running-req: 2")) << pair.leader.output();
      pair.worker.signal(SIGKILL);
      const std::string refused = whole.get();
      EXPECT_TRUE(contains(refused, " 503 ") && contains(refused, "rank 1")) << refused;
      const std::string text = stream.get();
      EXPECT_TRUE(contains(text, "\"error\"") && contains(text, "rank 1")) << text.substr(0, 2000);
      EXPECT_TRUE(contains(text, "[DONE]"));
      EXPECT_EQ(pair.leader.wait(), 69) << pair.leader.output();
      const std::string log = pair.leader.output();
      EXPECT_EQ(count(log, "The group has ended: rank 1 (node 1"), 1u) << log;
    }
    // The same ports serve again at once.
    Pair again(flags, {kAllowIt, kUcx[0]}, rendezvous);
    EXPECT_TRUE(contains(http(again.leader.port(), "POST", "/v1/completions", completion(5)),
                         "\"completion_tokens\":5"));
  }
}

TEST(GroupProcess, AKilledLeaderEndsTheWorkers) {
  Pair pair;
  pair.leader.signal(SIGKILL);
  EXPECT_EQ(pair.worker.wait(), 69) << pair.worker.output();
  EXPECT_TRUE(contains(pair.worker.output(), "The group has ended: rank 0 (node 0"))
      << pair.worker.output();
}

TEST(GroupProcess, OverUcxAKilledLeaderEndsTheWorkersAmidAStream) {
  if (!comm::ucx_built_in()) GTEST_SKIP() << "built without UCX";
  std::vector<std::string> flags = kLongContext;
  flags.insert(flags.end(), {"--comm-transport", "ucx"});
  Pair pair(flags, {kAllowIt, kUcx[0]});
  auto stream = long_stream(pair.leader.port());
  ASSERT_TRUE(pair.leader.wait_for("Prefill batch.")) << pair.leader.output();
  pair.leader.signal(SIGKILL);
  EXPECT_EQ(pair.worker.wait(), 69) << pair.worker.output();
  EXPECT_TRUE(contains(pair.worker.output(), "The group has ended: rank 0 (node 0"))
      << pair.worker.output();
  stream.get();
}

TEST(GroupProcess, UcxThatANodeLacksIsAnErrorOfAll) {
  if (!comm::ucx_built_in()) GTEST_SKIP() << "built without UCX";
  const int rendezvous = free_port();
  const std::vector<std::string> flags = {"--comm-transport", "ucx"};
  // What the worker's UCX could use, it has not.
  Process worker(node_args(1, rendezvous, 2, flags), {"UCX_TLS=nosuch"});
  Process leader(node_args(0, rendezvous, 2, flags), kUcx);
  EXPECT_NE(leader.wait(), 0);
  EXPECT_NE(worker.wait(), 0);
  for (const Process* p : {&leader, &worker}) {
    EXPECT_TRUE(contains(p->output(), "UCX_TLS") && contains(p->output(), "--comm-transport tcp"))
        << p->output();
  }
  EXPECT_TRUE(contains(leader.output(), "node 1")) << leader.output();
}

TEST(GroupProcess, AStoppedWorkerIsGivenUp) {
  std::vector<std::string> flags = kLongContext;
  flags.insert(flags.end(), {"--heartbeat-timeout", "3"});
  Pair pair(flags, {kAllowIt});
  auto stream = long_stream(pair.leader.port());
  ASSERT_TRUE(pair.leader.wait_for("Prefill batch.")) << pair.leader.output();
  pair.worker.signal(SIGSTOP);
  EXPECT_TRUE(contains(stream.get(), "no heartbeat"));
  EXPECT_EQ(pair.leader.wait(), 69) << pair.leader.output();
  EXPECT_TRUE(contains(pair.leader.output(), "The group has ended: rank 1 (node 1"));
  pair.worker.signal(SIGCONT);
  EXPECT_EQ(pair.worker.wait(), 69) << pair.worker.output();
}

TEST(GroupProcess, TheWatchdogShowsWhereAStepHangs) {
  std::vector<std::string> flags = kLongContext;
  flags.insert(flags.end(), {"--heartbeat-timeout", "60", "--watchdog-timeout", "2"});
  Pair pair(flags, {kAllowIt});
  auto stream = long_stream(pair.leader.port());
  ASSERT_TRUE(pair.leader.wait_for("Prefill batch.")) << pair.leader.output();
  pair.worker.signal(SIGSTOP);
  EXPECT_EQ(pair.leader.wait(), 70) << pair.leader.output();
  const std::string log = pair.leader.output();
  EXPECT_TRUE(contains(log, "(engine)") && contains(log, "capstan::engine::GroupModel")) << log;
  EXPECT_TRUE(contains(log, "watchdog-timeout") && contains(log, "node 1 (")) << log;
  stream.get();
  pair.worker.signal(SIGCONT);
  EXPECT_NE(pair.worker.wait(), 0) << pair.worker.output();
}

TEST(GroupProcess, DrainIsBoundedOnAllNodes) {
  Pair pair(kLongContext, {kAllowIt, "SGLANG_SHUTDOWN_TIMEOUT=0.3"});
  auto stream = long_stream(pair.leader.port());
  ASSERT_TRUE(pair.leader.wait_for("Prefill batch.")) << pair.leader.output();
  pair.leader.signal(SIGTERM);
  pair.worker.signal(SIGTERM);
  EXPECT_EQ(pair.leader.wait(), 0) << pair.leader.output();
  EXPECT_EQ(pair.worker.wait(), 0) << pair.worker.output();
  stream.get();
}

TEST(GroupProcess, NodesThatDoNotFitAreToldTheDifference) {
  const int rendezvous = free_port();
  Process leader(node_args(0, rendezvous));
  Process worker(node_args(1, rendezvous, 2, {"--context-length", "256"}));
  EXPECT_EQ(leader.wait(), 1);
  EXPECT_EQ(worker.wait(), 1);
  for (const Process* p : {&leader, &worker}) {
    const std::string log = p->output();
    EXPECT_TRUE(contains(log, "context-length") && contains(log, "256") && contains(log, "512"))
        << log;
  }
}

TEST(GroupProcess, OtherWeightsAreRefused) {
  const int rendezvous = free_port();
  Process leader(node_args(0, rendezvous));
  Process worker(node_args(
      1, rendezvous, 2, {"--model-path", std::string(CAPSTAN_TESTDATA) + "/model/tiny-qwen3-f32"}));
  EXPECT_EQ(leader.wait(), 1);
  EXPECT_EQ(worker.wait(), 1);
  for (const Process* p : {&leader, &worker}) {
    const std::string log = p->output();
    EXPECT_TRUE(contains(log, "LlamaForCausalLM") && contains(log, "Qwen3ForCausalLM")) << log;
  }
}

TEST(GroupProcess, AWorkerThatCannotLoadIsNamedByAll) {
  const int rendezvous = free_port();
  Process leader(node_args(0, rendezvous));
  Process worker(node_args(1, rendezvous, 2, {"--max-total-tokens", "1T"}));
  EXPECT_EQ(leader.wait(), 1);
  EXPECT_EQ(worker.wait(), 1);
  for (const Process* p : {&leader, &worker}) {
    const std::string log = p->output();
    EXPECT_TRUE(contains(log, "rank 1 (node 1") && contains(log, "max-total-tokens")) << log;
  }
}

TEST(GroupProcess, SigtermWhileWaitingForOthersEndsInOrder) {
  Process leader(node_args(0, free_port()));
  ASSERT_TRUE(leader.wait_for("waiting at")) << leader.output();
  EXPECT_FALSE(contains(http(leader.port(), "GET", "/health"), "200"));
  leader.signal(SIGTERM);
  EXPECT_EQ(leader.wait(), 0) << leader.output();
}

TEST(GroupProcess, DistTimeoutEndsTheWait) {
  Process worker(node_args(1, free_port(), 2, {"--dist-timeout", "1"}));
  EXPECT_EQ(worker.wait(), 1);
  EXPECT_TRUE(contains(worker.output(), "dist-timeout")) << worker.output();
}

}  // namespace
}  // namespace capstan
