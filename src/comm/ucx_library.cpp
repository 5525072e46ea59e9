#include "comm/ucx_library.h"

#include <dlfcn.h>
#include <ucs/debug/log_def.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <string>

#include "base/log.h"

namespace capstan::comm {
namespace {

/// UCX would write to stdout, in a form of its own.
ucs_log_func_rc_t log_line(const char*, unsigned, const char*, ucs_log_level_t level,
                           const ucs_log_component_config_t*, const char* format, va_list ap) {
  char text[1024];
  std::vsnprintf(text, sizeof(text), format, ap);
  // A peer that dies is an error to UCX; who died, and that it matters, the group says.
  if (level <= UCS_LOG_LEVEL_WARN) {
    LOG_WARN("UCX: {}", text);
  } else {
    LOG_INFO("UCX: {}", text);
  }
  return UCS_LOG_FUNC_RC_STOP;
}

/// Puts back the handlers of signals that loading UCX replaces: those of crashes, which it would
/// report in its own way, and SIGHUP, at which it would stop and wait for a debugger.
class SignalKeeper {
 public:
  SignalKeeper() {
    for (int number = 1; number < kSignals; ++number) sigaction(number, nullptr, &kept_[number]);
  }
  ~SignalKeeper() {
    for (int number = 1; number < kSignals; ++number) {
      struct sigaction now {};
      sigaction(number, nullptr, &now);
      // A union in glibc; the handlers' addresses are all that loading changes.
      if (now.sa_sigaction != kept_[number].sa_sigaction) {
        sigaction(number, &kept_[number], nullptr);
      }
    }
  }
  SignalKeeper(const SignalKeeper&) = delete;
  SignalKeeper& operator=(const SignalKeeper&) = delete;

 private:
  static constexpr int kSignals = 32;
  struct sigaction kept_[kSignals] = {};
};

Result<UcxLibrary> load() {
  const SignalKeeper keeper;
  constexpr const char* kName = "libucp.so.0";
  void* const handle = dlopen(kName, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    return unavailable(std::string("UCX cannot be loaded (") + dlerror() +
                       "); install Debian's package libucx0");
  }
  UcxLibrary library;
  std::string missing;
#define CAPSTAN_UCX(name)                                                        \
  library.name = reinterpret_cast<decltype(library.name)>(dlsym(handle, #name)); \
  if (library.name == nullptr) missing = #name;
#include "comm/ucx_functions.inc"
#undef CAPSTAN_UCX
  if (!missing.empty()) {
    return unavailable(std::string(kName) + " has no " + missing +
                       ": it is another UCX than this program was built for (" +
                       std::to_string(UCP_API_MAJOR) + "." + std::to_string(UCP_API_MINOR) +
                       "); install Debian's package libucx0");
  }
  unsigned major = 0;
  unsigned minor = 0;
  unsigned patch = 0;
  library.ucp_get_version(&major, &minor, &patch);
  library.version =
      std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(patch);
  if (major != UCP_API_MAJOR || minor < UCP_API_MINOR) {
    return unavailable("UCX " + library.version + " is installed, this program was built for " +
                       std::to_string(UCP_API_MAJOR) + "." + std::to_string(UCP_API_MINOR) +
                       " or later; install that package libucx0");
  }
  using PushHandler = decltype(&::ucs_log_push_handler);
  if (void* const push = dlsym(handle, "ucs_log_push_handler"); push != nullptr) {
    reinterpret_cast<PushHandler>(push)(&log_line);
  }
  return library;
}

}  // namespace

Result<const UcxLibrary*> ucx_library() {
  // Never unloaded: UCX does not support that.
  static const auto* const loaded = new Result<UcxLibrary>(load());
  if (!loaded->ok()) return loaded->error();
  return &loaded->value();
}

}  // namespace capstan::comm
