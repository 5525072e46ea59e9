#include "engine/stack_dump.h"

#include <cxxabi.h>
#include <dirent.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

namespace capstan::engine {
namespace {

constexpr int kMaxFrames = 64;
constexpr int64_t kPatienceNs = 500'000'000;

// One thread at a time is asked; its handler fills this and wakes the asker.
struct Answer {
  std::atomic<pid_t> wanted{0};
  void* frames[kMaxFrames];
  int count = 0;
  sem_t done;
};
Answer answer;
std::mutex one_dump;

int dump_signal() { return SIGRTMIN + 4; }

void take_frames(int) {
  const int error = errno;
  // A thread that answers too late must not write into another one's answer.
  pid_t self = static_cast<pid_t>(::syscall(SYS_gettid));
  if (answer.wanted.compare_exchange_strong(self, 0)) {
    answer.count = ::backtrace(answer.frames, kMaxFrames);
    ::sem_post(&answer.done);
  }
  errno = error;
}

bool ask(pid_t thread) {
  answer.wanted = thread;
  if (::syscall(SYS_tgkill, ::getpid(), thread, dump_signal()) != 0) {
    answer.wanted = 0;
    return false;
  }
  timespec deadline{};
  ::clock_gettime(CLOCK_REALTIME, &deadline);
  deadline.tv_nsec += kPatienceNs;
  deadline.tv_sec += deadline.tv_nsec / 1'000'000'000;
  deadline.tv_nsec %= 1'000'000'000;
  int rc = 0;
  while ((rc = ::sem_timedwait(&answer.done, &deadline)) != 0 && errno == EINTR) {
  }
  if (rc == 0) return true;
  pid_t still = thread;
  if (answer.wanted.compare_exchange_strong(still, 0)) return false;
  // It began to answer at the last moment.
  while (::sem_wait(&answer.done) != 0 && errno == EINTR) {
  }
  return true;
}

std::string frame_name(void* address) {
  char text[64];
  std::snprintf(text, sizeof(text), "%p", address);
  std::string out = text;
  Dl_info info{};
  if (::dladdr(address, &info) == 0) return out;
  if (info.dli_sname != nullptr) {
    int status = 0;
    char* plain = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
    out += std::string(" ") + (status == 0 ? plain : info.dli_sname);
    std::free(plain);
  } else if (info.dli_fname != nullptr) {
    std::snprintf(
        text, sizeof(text), "+0x%zx",
        static_cast<size_t>(static_cast<char*>(address) - static_cast<char*>(info.dli_fbase)));
    out += std::string(" ") + info.dli_fname + text;
  }
  return out;
}

std::vector<pid_t> threads() {
  std::vector<pid_t> out;
  DIR* folder = ::opendir("/proc/self/task");
  if (folder == nullptr) return out;
  while (const dirent* entry = ::readdir(folder)) {
    const int id = std::atoi(entry->d_name);
    if (id > 0) out.push_back(id);
  }
  ::closedir(folder);
  std::sort(out.begin(), out.end());
  return out;
}

void write_stack(pid_t thread) {
  std::string name;
  std::getline(std::ifstream("/proc/self/task/" + std::to_string(thread) + "/comm"), name);
  const std::string head = "Thread " + std::to_string(thread) + " (" + name + ")";
  if (!ask(thread)) {
    std::fprintf(stderr, "%s does not answer\n", head.c_str());
    return;
  }
  std::fprintf(stderr, "%s\n", head.c_str());
  constexpr int kOwnFrames = 2;  // the handler and the signal's return
  for (int i = std::min(kOwnFrames, answer.count); i < answer.count; ++i) {
    std::fprintf(stderr, "  %s\n", frame_name(answer.frames[i]).c_str());
  }
}

}  // namespace

void install_stack_dump() {
  static std::once_flag once;
  std::call_once(once, [] {
    ::sem_init(&answer.done, 0, 0);
    void* frame[1];
    ::backtrace(frame, 1);  // loads libgcc now; in the handler that would not be safe
    struct sigaction action {};
    action.sa_handler = take_frames;
    action.sa_flags = SA_RESTART;
    ::sigaction(dump_signal(), &action, nullptr);
  });
}

void dump_stacks(pid_t first) {
  const std::lock_guard lock(one_dump);
  const auto self = static_cast<pid_t>(::syscall(SYS_gettid));
  if (first > 0) write_stack(first);
  for (const pid_t thread : threads()) {
    if (thread != first && thread != self) write_stack(thread);
  }
  std::fflush(stderr);
}

}  // namespace capstan::engine
