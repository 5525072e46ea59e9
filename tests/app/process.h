// The program as its users start it, and requests to it.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace capstan {

using Clock = std::chrono::steady_clock;
// Nothing is measured by it: a hang must only not last for ever.
inline constexpr auto kPatience = std::chrono::seconds(90);

inline std::string checkpoint() { return std::string(CAPSTAN_TESTDATA) + "/model/tiny-smol-f32"; }

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline size_t count(const std::string& text, const std::string& part) {
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
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // not to outlive a test that is killed
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
inline std::string http(int port, const std::string& method, const std::string& path,
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

inline std::string completion(int max_tokens) {
  return R"({"prompt": [5, 6, 7], "temperature": 0, "ignore_eos": true, "max_tokens": )" +
         std::to_string(max_tokens) + "}";
}

inline std::vector<std::string> serve(std::vector<std::string> more = {}) {
  std::vector<std::string> args = {"serve",      "--port",    "0", "--model-path",
                                   checkpoint(), "--threads", "1"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

}  // namespace capstan
