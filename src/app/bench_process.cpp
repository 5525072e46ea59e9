#include "app/bench_process.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace capstan::app {
namespace {

Error failed(const char* call) {
  return internal_error(std::string(call) + ": " + std::strerror(errno));
}

}  // namespace

Status write_sample(int fd, const BenchSample& sample) {
  // Less than PIPE_BUF, so that it goes out whole.
  if (write(fd, &sample, sizeof(sample)) == static_cast<ssize_t>(sizeof(sample))) return {};
  return failed("write");
}

Result<std::vector<BenchSample>> run_processes(const std::vector<BenchProcess>& processes) {
  int ends[2];
  if (pipe(ends) != 0) return failed("pipe");
  std::fflush(nullptr);
  std::vector<pid_t> children;
  const pid_t parent = getpid();
  for (const BenchProcess& process : processes) {
    const pid_t pid = fork();
    if (pid < 0) {
      const Error why = failed("fork");
      for (const pid_t child : children) kill(child, SIGKILL);
      for (const pid_t child : children) waitpid(child, nullptr, 0);
      close(ends[0]);
      close(ends[1]);
      return why;
    }
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() != parent) _exit(1);
      close(ends[0]);
      const Status status = process(ends[1]);
      if (!status.ok()) std::fprintf(stderr, "capstan bench: %s\n", status.error().message.c_str());
      _exit(status.ok() ? 0 : 1);
    }
    children.push_back(pid);
  }
  close(ends[1]);
  std::vector<BenchSample> samples;
  BenchSample sample;
  for (;;) {
    const ssize_t n = read(ends[0], &sample, sizeof(sample));
    if (n < 0 && errno == EINTR) continue;
    if (n != static_cast<ssize_t>(sizeof(sample))) break;
    samples.push_back(sample);
  }
  close(ends[0]);
  bool ok = true;
  for (const pid_t child : children) {
    int code = 0;
    while (waitpid(child, &code, 0) < 0 && errno == EINTR) {
    }
    ok = ok && WIFEXITED(code) && WEXITSTATUS(code) == 0;
  }
  if (!ok) return internal_error("a process of the benchmark failed; its reason stands above");
  return samples;
}

Result<std::string> ask_process(const std::function<std::string()>& question) {
  int ends[2];
  if (pipe(ends) != 0) return failed("pipe");
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    const std::string answer = question();
    const ssize_t n = write(ends[1], answer.data(), answer.size());
    _exit(n == static_cast<ssize_t>(answer.size()) ? 0 : 1);
  }
  const Error why = failed("fork");
  close(ends[1]);
  std::string answer;
  char some[512];
  while (child > 0) {
    const ssize_t n = read(ends[0], some, sizeof(some));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    answer.append(some, static_cast<size_t>(n));
  }
  close(ends[0]);
  if (child < 0) return why;
  int code = 0;
  while (waitpid(child, &code, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(code) || WEXITSTATUS(code) != 0) {
    return internal_error("a process of the benchmark failed");
  }
  return answer;
}

Status tcp_pair(int fds[2]) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) return failed("socket");
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  fds[1] = -1;
  if (fds[0] >= 0 && bind(listener, generic, length) == 0 && listen(listener, 1) == 0 &&
      getsockname(listener, generic, &length) == 0 && connect(fds[0], generic, length) == 0) {
    fds[1] = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  }
  const Error why = failed("loopback TCP");
  close(listener);
  if (fds[1] < 0) {
    if (fds[0] >= 0) close(fds[0]);
    return why;
  }
  for (int i = 0; i < 2; ++i) {
    const int on = 1;
    setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  return {};
}

}  // namespace capstan::app
