#include "app/up_process.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

namespace capstan::app {
namespace {

/// What went wrong in the child, sent to the parent through a pipe that exec closes.
struct Failure {
  int error = 0;
  char step[64] = {};
};

[[noreturn]] void give_up(int pipe, const char* step) {
  Failure failure;
  failure.error = errno;
  std::strncpy(failure.step, step, sizeof(failure.step) - 1);
  // Nothing can be done about a pipe that does not take it.
  [[maybe_unused]] const ssize_t n = ::write(pipe, &failure, sizeof failure);
  ::_exit(127);
}

/// A network and a host name of its own, and a /dev/shm: another host's processes can not meet
/// there either.
void enter_namespace(const NodeCommand& command, int report) {
  const int fd = ::open(command.network_namespace.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0 || ::setns(fd, CLONE_NEWNET) != 0) give_up(report, "enter the network namespace");
  if (::unshare(CLONE_NEWUTS | CLONE_NEWNS) != 0) give_up(report, "unshare host name and mounts");
  if (::sethostname(command.host_name.c_str(), command.host_name.size()) != 0) {
    give_up(report, "set the host name");
  }
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    give_up(report, "make mounts private");
  }
  if (::mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, nullptr) != 0) {
    give_up(report, "mount /dev/shm");
  }
}

[[noreturn]] void run_child(const NodeCommand& command, pid_t parent, int output, int report,
                            char* const* argv) {
  ::setpgid(0, 0);  // Ctrl-C is for `up`, which tells all nodes together
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) give_up(report, "prctl");
  if (::getppid() != parent) ::_exit(127);  // it died before the line above
  if (!command.network_namespace.empty()) enter_namespace(command, report);
  if (!command.cpus.empty()) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int cpu : command.cpus) CPU_SET(static_cast<size_t>(cpu), &set);
    if (::sched_setaffinity(0, sizeof set, &set) != 0) give_up(report, "set CPUs");
  }
  for (const std::string& variable : command.environment) {
    const size_t equal = variable.find('=');
    ::setenv(variable.substr(0, equal).c_str(), variable.c_str() + equal + 1, 1);
  }
  const int null = ::open("/dev/null", O_RDONLY);
  if (null < 0 || ::dup2(null, STDIN_FILENO) < 0 || ::dup2(output, STDOUT_FILENO) < 0 ||
      ::dup2(output, STDERR_FILENO) < 0) {
    give_up(report, "redirect output");
  }
  ::close(null);
  ::signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execv(command.program.c_str(), argv);
  give_up(report, "run the program");
}

}  // namespace

Result<NodeProcess> start_node(const NodeCommand& command) {
  int output[2], report[2];
  if (::pipe2(output, O_CLOEXEC) != 0) return unavailable(std::strerror(errno));
  if (::pipe2(report, O_CLOEXEC) != 0) {
    ::close(output[0]);
    ::close(output[1]);
    return unavailable(std::strerror(errno));
  }
  std::vector<std::string> words = {"capstan"};  // as ps shows it
  words.insert(words.end(), command.arguments.begin(), command.arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const pid_t self = ::getpid();
  const pid_t pid = ::fork();
  if (pid == 0) run_child(command, self, output[1], report[1], argv.data());
  ::close(output[1]);
  ::close(report[1]);
  Failure failure;
  const ssize_t n = pid < 0 ? 0 : ::read(report[0], &failure, sizeof failure);
  ::close(report[0]);
  if (pid < 0 || n == static_cast<ssize_t>(sizeof failure)) {
    const std::string why =
        pid < 0 ? std::string("fork: ") + std::strerror(errno)
                : "can not " + std::string(failure.step) + ": " + std::strerror(failure.error);
    ::close(output[0]);
    if (pid > 0) ::waitpid(pid, nullptr, 0);
    return unavailable(why);
  }
  ::fcntl(output[0], F_SETFL, O_NONBLOCK);
  return NodeProcess{pid, output[0]};
}

NodeExit node_exit(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    return {128 + WTERMSIG(wait_status), WTERMSIG(wait_status)};
  }
  return {WEXITSTATUS(wait_status), 0};
}

std::string NodeExit::describe() const {
  if (signal == 0) return "ended with code " + std::to_string(code);
  return "was killed by signal " + std::to_string(signal) + " (" + ::strsignal(signal) + ")";
}

uint64_t resident_bytes(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/statm");
  uint64_t total = 0, resident = 0;
  if (!(in >> total >> resident)) return 0;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

char process_state(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const size_t at = text.rfind(") ");  // the name before it may hold anything
  return at == std::string::npos || at + 2 >= text.size() ? '?' : text[at + 2];
}

}  // namespace capstan::app
