// A node of a group as a process: tests/comm/group_node.cpp.
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <csignal>

#include "comm/group_fixture.h"

namespace capstan::comm::testing {

class Process {
 public:
  /// `prefix`: the command that starts it, such as "ip netns exec NAME".
  Process(int nodes, int node, const std::string& address, int timeout_ms,
          std::vector<std::string> prefix = {}) {
    int in[2], out[2];
    EXPECT_EQ(pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    std::vector<std::string> words = std::move(prefix);
    words.insert(words.end(), {CAPSTAN_GROUP_NODE, std::to_string(nodes), std::to_string(node),
                               address, std::to_string(timeout_ms)});
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    EXPECT_EQ(posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    in_ = Fd(in[1]);
    out_ = Fd(out[0]);
  }
  ~Process() {
    holding_ = false;
    if (holder_.joinable()) holder_.join();
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  void signal(int number) { EXPECT_EQ(kill(pid_, number), 0); }
  /// Stops it and keeps it stopped, also where somebody else stops and continues all processes.
  void hold() {
    signal(SIGSTOP);
    holding_ = true;
    holder_ = std::thread([this] {
      while (holding_) {
        kill(pid_, SIGSTOP);
        std::this_thread::sleep_for(20ms);
      }
    });
  }
  void go_on() {
    holding_ = false;
    holder_.join();
    signal(SIGCONT);
  }
  void order(char c) { EXPECT_EQ(write(in_.get(), &c, 1), 1); }

  /// Reads on until a line begins with `start`; others are skipped. Empty at the end.
  std::string line(const std::string& start) {
    return next([&](const std::string& line) { return line.starts_with(start); });
  }
  std::string line_with(const std::string& part) {
    return next([&](const std::string& line) { return contains(line, part); });
  }
  std::string next(const std::function<bool(const std::string&)>& wanted) {
    while (true) {
      size_t end = text_.find('\n');
      while (end == std::string::npos) {
        char more[512];
        if (!wait_for(out_.get(), 1 /* POLLIN */, Clock::now() + kHang, [] {
               return false;
             }).ok()) {
          ADD_FAILURE() << "the line does not come; so far: " << log_ << text_;
          return "";
        }
        const ssize_t n = read(out_.get(), more, sizeof more);
        if (n <= 0) return "";
        text_.append(more, static_cast<size_t>(n));
        end = text_.find('\n');
      }
      const std::string line = text_.substr(0, end);
      text_.erase(0, end + 1);
      log_ += line + "\n";
      if (wanted(line)) return line;
    }
  }
  const std::string& log() const { return log_; }

  int exit_code() {
    int status = 0;
    if (!wait_until([&] { return waitpid(pid_, &status, WNOHANG) == pid_; })) {
      ADD_FAILURE() << "the process does not end; so far: " << log_;
      return -1;
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  Fd in_, out_;
  std::string text_, log_;
  std::atomic<bool> holding_{false};
  std::thread holder_;
};

}  // namespace capstan::comm::testing
