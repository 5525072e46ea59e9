// Nodes as processes that are killed, stopped and continued.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#include <csignal>

#include "comm/group_fixture.h"

namespace capstan::comm::testing {
namespace {

class Process {
 public:
  Process(int nodes, int node, uint16_t port, int timeout_ms) {
    int in[2], out[2];
    EXPECT_EQ(pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    const std::string n = std::to_string(nodes), i = std::to_string(node), p = std::to_string(port),
                      t = std::to_string(timeout_ms);
    const char* argv[] = {CAPSTAN_GROUP_NODE, n.c_str(), i.c_str(), p.c_str(), t.c_str(), nullptr};
    EXPECT_EQ(posix_spawn(&pid_, argv[0], &actions, nullptr, const_cast<char**>(argv), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    in_ = Fd(in[1]);
    out_ = Fd(out[0]);
  }
  ~Process() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  void signal(int number) { EXPECT_EQ(kill(pid_, number), 0); }
  void order(char c) { EXPECT_EQ(write(in_.get(), &c, 1), 1); }

  /// Reads on until a line begins with `start`; log lines are skipped. Empty at the end.
  std::string line(const std::string& start) {
    while (true) {
      size_t end = text_.find('\n');
      while (end == std::string::npos) {
        char more[512];
        if (!wait_for(out_.get(), 1 /* POLLIN */, Clock::now() + kHang, [] {
               return false;
             }).ok()) {
          ADD_FAILURE() << "no line '" << start << "'; so far: " << text_;
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
      if (line.starts_with(start)) return line;
    }
  }
  const std::string& log() const { return log_; }

  int exit_code() {
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  Fd in_, out_;
  std::string text_, log_;
};

class GroupProcessTest : public ::testing::Test {
 protected:
  void start(int nodes, int timeout_ms) {
    const uint16_t port = free_port();
    for (int i = 0; i < nodes; ++i) {
      nodes_.push_back(std::make_unique<Process>(nodes, i, port, timeout_ms));
    }
    for (auto& node : nodes_) EXPECT_EQ(node->line("joined"), "joined") << node->log();
    // Steps have been told.
    std::this_thread::sleep_for(200ms);
  }
  /// All but `culprit` leave with 3 and say the same.
  void expect_end(int culprit, const std::string& line, int but = -1) {
    for (int i = 0; i < static_cast<int>(nodes_.size()); ++i) {
      if (i == culprit || i == but) continue;
      const std::string seen = nodes_[i]->line("end: ");
      EXPECT_TRUE(seen.starts_with(line)) << "node " << i << ": " << seen;
      EXPECT_EQ(nodes_[i]->exit_code(), 3);
    }
  }

  std::vector<std::unique_ptr<Process>> nodes_;
};

TEST_F(GroupProcessTest, KilledNodeIsNamedByAll) {
  for (int culprit = 0; culprit < 3; ++culprit) {
    nodes_.clear();
    start(3, 20000);  // not the heartbeat tells of it
    nodes_[culprit]->signal(SIGKILL);
    expect_end(culprit, "end: node " + std::to_string(culprit) + " rank " +
                            std::to_string(2 * culprit) + " with step: its connection broke (");
  }
}

TEST_F(GroupProcessTest, StoppedMemberIsNamedByAllAndLearnsItWhenItGoesOn) {
  start(3, 1000);
  nodes_[1]->signal(SIGSTOP);
  expect_end(1, "end: node 1 rank 2 with step: no heartbeat for ");
  nodes_[1]->signal(SIGCONT);
  // It blames nobody else.
  EXPECT_TRUE(nodes_[1]->line("end: ").starts_with("end: node 1 rank 2 with step: "));
  EXPECT_TRUE(contains(nodes_[1]->log(), "this process did not run for ")) << nodes_[1]->log();
  EXPECT_EQ(nodes_[1]->exit_code(), 3);
}

TEST_F(GroupProcessTest, StoppedLeaderIsNamedByAllAndLearnsItWhenItGoesOn) {
  start(3, 1000);
  nodes_[0]->signal(SIGSTOP);
  expect_end(0, "end: node 0 rank 0 with step: no heartbeat for ");
  nodes_[0]->signal(SIGCONT);
  EXPECT_TRUE(nodes_[0]->line("end: ").starts_with("end: node 0 rank 0 with step: "));
  EXPECT_TRUE(contains(nodes_[0]->log(), "this process did not run for ")) << nodes_[0]->log();
  EXPECT_EQ(nodes_[0]->exit_code(), 3);
}

TEST_F(GroupProcessTest, ShortStopIsSurvived) {
  start(2, 20000);
  nodes_[1]->signal(SIGSTOP);
  std::this_thread::sleep_for(500ms);
  nodes_[1]->signal(SIGCONT);
  nodes_[0]->signal(SIGSTOP);
  std::this_thread::sleep_for(500ms);
  nodes_[0]->signal(SIGCONT);
  std::this_thread::sleep_for(200ms);
  nodes_[0]->order('r');
  for (auto& node : nodes_) EXPECT_EQ(node->exit_code(), 0) << node->log();
}

TEST_F(GroupProcessTest, FailureIsToldToAll) {
  start(3, 20000);
  nodes_[2]->order('f');
  expect_end(-1, "end: node 2 rank 5 with step: disk error");
}

TEST_F(GroupProcessTest, ReleaseLeavesAllWithSuccess) {
  start(3, 20000);
  nodes_[0]->order('r');
  for (auto& node : nodes_) EXPECT_EQ(node->exit_code(), 0) << node->log();
}

TEST_F(GroupProcessTest, ReleaseDoesNotWaitForAStoppedNodeForEver) {
  start(3, 20000);
  nodes_[1]->signal(SIGSTOP);
  nodes_[0]->order('r');
  EXPECT_EQ(nodes_[0]->exit_code(), 0);
  EXPECT_EQ(nodes_[2]->exit_code(), 0);
  nodes_[1]->signal(SIGCONT);
  EXPECT_EQ(nodes_[1]->exit_code(), 0);  // the orderly end waited in its socket
}

}  // namespace
}  // namespace capstan::comm::testing
