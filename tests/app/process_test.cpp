// The program as its users start it: exit codes, messages, ports and signals.
#include "app/process.h"

#include <gtest/gtest.h>

#include <future>

#include "comm/ucx_support.h"

namespace capstan {
namespace {

TEST(Process, WrongUsageExitsWithTwo) {
  for (const std::vector<std::string>& args : {std::vector<std::string>{"serve", "--nosuch-flag"},
                                               {"serve", "--port"},
                                               {"serve", "--port", "x"},
                                               {"serve", "--schedule-policy", "x"},
                                               {"nosuch"},
                                               {}}) {
    Process p(args);
    EXPECT_EQ(p.wait(), 2);
    EXPECT_TRUE(contains(p.output(), "usage: capstan")) << p.output();
  }
}

TEST(Process, HelpAndVersionExitWithZero) {
  for (const std::vector<std::string>& args : {std::vector<std::string>{"serve", "--help"},
                                               {"serve", "-h"},
                                               {"--help"},
                                               {"version"},
                                               {"serve", "--version"},
                                               {"serve", "--help-markdown"}}) {
    Process p(args);
    EXPECT_EQ(p.wait(), 0);
    EXPECT_FALSE(p.output().empty());
  }
}

TEST(Process, RefusalsExitWithOneAndOneLine) {
  const std::string missing = "/nonexistent/model";
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {serve({"--tp", "2"}), "--tp-size"},
      {serve({"--context-length", "100000"}), "100000"},
      {serve({"--model-path", missing}), missing},
      {serve({"--quantization", "awq"}), "awq"},
      {serve({"--chat-template", "/nonexistent.jinja"}), "/nonexistent.jinja"},
      {serve({"--max-total-tokens", "1T"}), "--max-total-tokens"},
      {serve({"--served-model-name", "a:b"}), "a:b"},
      {serve({"--host", "203.0.113.7"}), "203.0.113.7"},
  };
  for (const auto& [args, text] : cases) {
    Process p(args);
    EXPECT_EQ(p.wait(), 1) << p.output();
    EXPECT_TRUE(contains(p.output(), "capstan serve: error: ")) << p.output();
    EXPECT_TRUE(contains(p.output(), text)) << p.output();
  }
}

/// Built with UCX, on a machine without its libraries.
TEST(Process, TheBenchmarkOfAllTransportsSkipsAUcxThatIsNotInstalled) {
  if (!comm::ucx_built_in()) GTEST_SKIP() << "built without UCX";
  const auto folder =
      std::filesystem::temp_directory_path() / ("capstan_no_ucx_" + std::to_string(::getpid()));
  std::filesystem::create_directory(folder);
  std::ofstream(folder / "libucp.so.0");  // found first, and no library
  const auto bench = [&](const char* transport) {
    return Process({"bench", "comm", "--nnodes", "2", "--op", "barrier", "--elements", "1",
                    "--seconds", "0.001", "--comm-transport", transport},
                   {"LD_LIBRARY_PATH=" + folder.string()});
  };
  Process all = bench("all");
  EXPECT_EQ(all.wait(), 0) << all.output();
  EXPECT_TRUE(contains(all.output(), "tcp barrier")) << all.output();
  EXPECT_EQ(count(all.output(), "\n  ucx: skipped: UCX cannot be loaded ("), 1) << all.output();
  EXPECT_EQ(count(all.output(), "install Debian's package libucx0\n"), 1) << all.output();
  Process asked = bench("ucx");
  EXPECT_EQ(asked.wait(), 1);
  EXPECT_EQ(count(asked.output(), "capstan bench: --comm-transport ucx: UCX cannot be loaded ("), 1)
      << asked.output();
  EXPECT_TRUE(contains(asked.output(), "install Debian's package libucx0")) << asked.output();
  std::filesystem::remove_all(folder);
}

TEST(Process, MissingDefaultModelNamesTheRemedy) {
  Process p({"serve", "--port", "0"}, {"CAPSTAN_MODEL_DIR=/nonexistent"});
  EXPECT_EQ(p.wait(), 1);
  EXPECT_TRUE(contains(p.output(), "make model")) << p.output();
  EXPECT_TRUE(contains(p.output(), "/nonexistent")) << p.output();
}

TEST(Process, PortInUseEndsBeforeWeightsAreRead) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(fd, 1), 0);
  ASSERT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  const std::string port = std::to_string(ntohs(address.sin_port));
  Process p({"serve", "--model-path", checkpoint(), "--port", port});
  EXPECT_EQ(p.wait(), 1);
  EXPECT_TRUE(contains(p.output(), port)) << p.output();
  EXPECT_FALSE(contains(p.output(), "Weights loaded")) << p.output();
  ::close(fd);
}

TEST(Process, ServesAndEndsInOrder) {
  Process p(serve({"--served-model-name", "tiny", "--enable-metrics", "--cuda-graph-max-bs", "8"}));
  ASSERT_TRUE(p.ready()) << p.output();
  EXPECT_EQ(count(p.output(), "The server is fired up and ready to roll!"), 1u);
  EXPECT_EQ(count(p.output(), "--cuda-graph-max-bs has no effect"), 1u);
  EXPECT_TRUE(contains(p.output(), "context_len=512"));
  ASSERT_GT(p.port(), 0) << p.output();
  EXPECT_TRUE(contains(http(p.port(), "GET", "/health"), " 200 "));
  EXPECT_TRUE(contains(http(p.port(), "GET", "/v1/models"), "\"tiny\""));
  const std::string answer = http(p.port(), "POST", "/v1/completions", completion(20));
  EXPECT_TRUE(contains(answer, "\"completion_tokens\":20")) << answer;
  p.signal(SIGTERM);
  EXPECT_EQ(p.wait(), 0) << p.output();
}

TEST(Process, ConfigFileLiesBeneathTheCommandLine) {
  const auto file = std::filesystem::temp_directory_path() /
                    ("capstan_config_" + std::to_string(::getpid()) + ".yaml");
  std::ofstream(file) << "context-length: 100\nserved-model-name: from-file\n";
  Process p(serve({"--config", file.string(), "--context-length", "200"}));
  ASSERT_TRUE(p.ready()) << p.output();
  const std::string models = http(p.port(), "GET", "/v1/models");
  EXPECT_TRUE(contains(models, "from-file") && contains(models, "200")) << models;
  std::filesystem::remove(file);
}

TEST(Process, DummyWeightsNeedOnlyTheConfiguration) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("capstan_dummy_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  for (const char* name : {"config.json", "tokenizer.json", "tokenizer_config.json"}) {
    std::filesystem::copy_file(std::filesystem::path(checkpoint()) / name, folder / name,
                               std::filesystem::copy_options::overwrite_existing);
  }
  Process p(serve({"--model-path", folder.string(), "--load-format", "dummy"}));
  ASSERT_TRUE(p.ready()) << p.output();
  EXPECT_TRUE(contains(http(p.port(), "POST", "/v1/completions", completion(3)), "\"length\""));
  p.signal(SIGINT);
  EXPECT_EQ(p.wait(), 0) << p.output();
  std::filesystem::remove_all(folder);
}

TEST(Process, SigtermLetsARunningRequestFinish) {
  Process p(serve());
  ASSERT_TRUE(p.ready()) << p.output();
  auto answer = std::async(std::launch::async, [port = p.port()] {
    return http(port, "POST", "/v1/completions", completion(400));
  });
  ASSERT_TRUE(p.wait_for("Prefill batch.")) << p.output();
  p.signal(SIGTERM);
  const std::string text = answer.get();
  EXPECT_TRUE(contains(text, "\"completion_tokens\":400")) << text;
  EXPECT_EQ(p.wait(), 0) << p.output();
}

// A context so long that the request outlasts the test.
const std::vector<std::string> kLongContext = {"--context-length", "2M", "--max-total-tokens",
                                               "2M"};
const std::string kAllowIt = "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1";

TEST(Process, SecondSignalEndsAtOnce) {
  Process p(serve(kLongContext), {kAllowIt});
  ASSERT_TRUE(p.ready()) << p.output();
  auto answer = std::async(std::launch::async, [port = p.port()] {
    return http(port, "POST", "/v1/completions", completion(1900000));
  });
  ASSERT_TRUE(p.wait_for("Prefill batch.")) << p.output();
  p.signal(SIGTERM);
  ASSERT_TRUE(p.wait_for("a second one ends the process at once")) << p.output();
  p.signal(SIGTERM);
  EXPECT_EQ(p.wait(), 128 + SIGTERM) << p.output();
  answer.get();
}

TEST(Process, DrainIsBounded) {
  Process p(serve(kLongContext), {kAllowIt, "SGLANG_SHUTDOWN_TIMEOUT=0.2"});
  ASSERT_TRUE(p.ready()) << p.output();
  auto answer = std::async(std::launch::async, [port = p.port()] {
    return http(port, "POST", "/v1/completions", completion(1900000));
  });
  ASSERT_TRUE(p.wait_for("Prefill batch.")) << p.output();
  p.signal(SIGTERM);
  EXPECT_EQ(p.wait(), 0) << p.output();
  EXPECT_TRUE(contains(p.output(), "SGLANG_SHUTDOWN_TIMEOUT")) << p.output();
  answer.get();
}

TEST(Process, ForcedShutdownNeedsOneSignal) {
  Process p(serve(), {"SGLANG_FORCE_SHUTDOWN=1"});
  ASSERT_TRUE(p.ready()) << p.output();
  p.signal(SIGTERM);
  EXPECT_EQ(p.wait(), 128 + SIGTERM) << p.output();
}

TEST(Process, SigtermWhileStartingEndsTheProcess) {
  Process p(serve());
  ASSERT_TRUE(p.wait_for("arguments:")) << p.output();
  p.signal(SIGTERM);
  EXPECT_EQ(p.wait(), 0) << p.output();
}

}  // namespace
}  // namespace capstan
