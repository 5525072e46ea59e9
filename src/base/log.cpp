#include "base/log.h"

#include <spdlog/pattern_formatter.h>

#include <atomic>
#include <memory>
#include <string>

namespace capstan {
namespace {

constexpr int kNone = -1;
std::atomic<int> process_rank{kNone};
thread_local int thread_rank = kNone;

/// %*: " TP8" where ranks are shown, else nothing.
class RankFlag final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg&, const std::tm&, spdlog::memory_buf_t& out) override {
    const int process = process_rank.load(std::memory_order_relaxed);
    if (process == kNone) return;
    const std::string text = " TP" + std::to_string(thread_rank == kNone ? process : thread_rank);
    out.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<RankFlag>();
  }
};

}  // namespace

void set_process_rank(int rank) { process_rank = rank; }
void set_thread_rank(int rank) { thread_rank = rank; }

Status init_logging(std::string_view level) {
  const std::string name(level);
  spdlog::level::level_enum parsed;
  if (name == "trace") {
    parsed = spdlog::level::trace;
  } else if (name == "debug") {
    parsed = spdlog::level::debug;
  } else if (name == "info") {
    parsed = spdlog::level::info;
  } else if (name == "warning" || name == "warn") {
    parsed = spdlog::level::warn;
  } else if (name == "error") {
    parsed = spdlog::level::err;
  } else if (name == "critical") {
    parsed = spdlog::level::critical;
  } else {
    return invalid_argument(
        "unknown log level '" + name + "'; use debug, info, warning, error or critical",
        "log-level");
  }
  spdlog::set_level(parsed);
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  formatter->add_flag<RankFlag>('*').set_pattern("[%Y-%m-%d %H:%M:%S.%e%*] %^%l%$ %v");
  spdlog::set_formatter(std::move(formatter));
  spdlog::flush_on(spdlog::level::info);
  return {};
}

}  // namespace capstan
