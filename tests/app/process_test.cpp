// The program as its users start it: exit codes, messages, ports and signals.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace capstan {
namespace {

using Clock = std::chrono::steady_clock;
// Nothing is measured by it: a hang must only not last for ever.
constexpr auto kPatience = std::chrono::seconds(90);

std::string checkpoint() { return std::string(CAPSTAN_TESTDATA) + "/model/tiny-smol-f32"; }

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++n;
  return n;
}

/// A `capstan` process; its output, both streams, goes to a file.
class Process {
 public:
  explicit Process(const std::vector<std::string>& args,
                   const std::vector<std::string>& environment = {}) {
    static int number = 0;
    log_ = std::filesystem::temp_directory_path() /
           ("capstan_process_" + std::to_string(::getpid()) + "_" + std::to_string(number++));
    std::vector<std::string> words = {CAPSTAN_PROGRAM};
    words.insert(words.end(), args.begin(), args.end());
    std::vector<char*> argv;
    for (std::string& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    const int out = ::open(log_.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(out, STDOUT_FILENO);
      ::dup2(out, STDERR_FILENO);
      for (const std::string& variable : environment) ::putenv(strdup(variable.c_str()));
      ::execv(CAPSTAN_PROGRAM, argv.data());
      ::_exit(127);
    }
    ::close(out);
  }
  ~Process() {
    if (!ended_) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    std::filesystem::remove(log_);
  }

  std::string output() const {
    std::ifstream in(log_);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  /// Until the output has `text`; false when the process ends or patience does.
  bool wait_for(const std::string& text) {
    for (const auto end = Clock::now() + kPatience; Clock::now() < end;) {
      if (contains(output(), text)) return true;
      if (poll_exit()) return contains(output(), text);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }
  bool ready() { return wait_for("The server is fired up and ready to roll!"); }
  void signal(int number) { ::kill(pid_, number); }
  /// Exit code, 128 + n for a signal that killed it, -1 when it does not end.
  int wait() {
    for (const auto end = Clock::now() + kPatience; Clock::now() < end;) {
      if (poll_exit()) return WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return -1;
  }
  /// From the line that names the address.
  int port() const {
    const std::string text = output();
    const size_t at = text.find("Chat page and API: http://127.0.0.1:");
    return at == std::string::npos ? 0 : std::stoi(text.substr(at + 36));
  }

 private:
  bool poll_exit() {
    if (!ended_) ended_ = ::waitpid(pid_, &status_, WNOHANG) == pid_;
    return ended_;
  }
  std::filesystem::path log_;
  pid_t pid_ = -1;
  bool ended_ = false;
  int status_ = 0;
};

/// One request on its own connection; the whole answer. Empty when the connection fails.
std::string http(int port, const std::string& method, const std::string& path,
                 const std::string& body = "") {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = method + " " + path +
                                " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                                "Content-Type: application/json\r\nContent-Length: " +
                                std::to_string(body.size()) + "\r\n\r\n" + body;
    if (::send(fd, request.data(), request.size(), MSG_NOSIGNAL) ==
        static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n; (n = ::recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
        answer.append(buffer, static_cast<size_t>(n));
      }
    }
  }
  ::close(fd);
  return answer;
}

std::string completion(int max_tokens) {
  return R"({"prompt": [5, 6, 7], "temperature": 0, "ignore_eos": true, "max_tokens": )" +
         std::to_string(max_tokens) + "}";
}

std::vector<std::string> serve(std::vector<std::string> more = {}) {
  std::vector<std::string> args = {"serve",      "--port",    "0", "--model-path",
                                   checkpoint(), "--threads", "1"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

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
