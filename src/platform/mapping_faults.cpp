#include "platform/mapping_faults.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <mutex>

namespace capstan::platform {
namespace {

// Fixed and read without a lock: a signal handler may neither allocate nor wait.
struct Mapping {
  std::atomic<const std::byte*> data{nullptr};
  std::atomic<size_t> size{0};
  std::array<char, 512> path{};
};
std::array<Mapping, 512> mappings;
std::mutex writing;

/// Puts text at the end of a line that fits or is cut.
struct Line {
  std::array<char, 900> text;
  size_t length = 0;
  void add(const char* more) {
    while (*more != '\0' && length + 1 < text.size()) text[length++] = *more++;
  }
  void add(size_t number) {
    char digits[24];
    size_t at = sizeof(digits);
    digits[--at] = '\0';
    do {
      digits[--at] = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number > 0);
    add(digits + at);
  }
};

void on_bus_error(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Mapping& mapping : mappings) {
    const auto begin = reinterpret_cast<uintptr_t>(mapping.data.load(std::memory_order_acquire));
    if (begin == 0 || address < begin || address >= begin + mapping.size) continue;
    Line line;
    line.add("capstan: error: '");
    line.add(mapping.path.data());
    line.add("' can not be read at byte ");
    line.add(address - begin);
    line.add(
        " any more: it was truncated while in use, or its disk failed; replace checkpoints by "
        "renaming, not by writing in place\n");
    // Nothing can be done about a stderr that does not take it.
    [[maybe_unused]] const ssize_t n = ::write(STDERR_FILENO, line.text.data(), line.length);
    break;
  }
  // The handler is gone (SA_RESETHAND): the same access again now kills.
}

}  // namespace

void explain_mapping_faults() {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

void note_mapping(const std::byte* data, size_t size, const std::string& path) {
  const std::lock_guard lock(writing);
  for (Mapping& mapping : mappings) {
    if (mapping.data.load(std::memory_order_relaxed) != nullptr) continue;
    // The end of a long path says more than its beginning.
    const size_t skip =
        path.size() < mapping.path.size() ? 0 : path.size() - mapping.path.size() + 1;
    std::strncpy(mapping.path.data(), path.c_str() + skip, mapping.path.size() - 1);
    mapping.size = size;
    mapping.data.store(data, std::memory_order_release);
    return;
  }
}

void forget_mapping(const std::byte* data) {
  const std::lock_guard lock(writing);
  for (Mapping& mapping : mappings) {
    if (mapping.data.load(std::memory_order_relaxed) != data) continue;
    mapping.data.store(nullptr, std::memory_order_release);
    return;
  }
}

}  // namespace capstan::platform
