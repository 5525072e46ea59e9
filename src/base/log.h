// Log lines of the whole program: spdlog, one line per event, timestamp and level first.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

#include "base/result.h"

namespace capstan {

/// Sets pattern and level: debug, info, warning, error, critical (SGLang's --log-level values).
Status init_logging(std::string_view level);

/// Lines of several ranks carry their number, " TP8", behind the time: this process's first rank,
/// or the one that the calling thread works for. Before other threads exist.
void set_process_rank(int rank);
void set_thread_rank(int rank);

}  // namespace capstan

#define LOG_DEBUG(...) ::spdlog::debug(__VA_ARGS__)
#define LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define LOG_WARN(...) ::spdlog::warn(__VA_ARGS__)
#define LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)
