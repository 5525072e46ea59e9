#include "app/load_progress.h"

#include <algorithm>
#include <cstdio>

#include "base/log.h"

namespace capstan::app {

std::string progress_text(const model::LoadProgress& p) {
  const auto done = static_cast<double>(p.bytes_done), total = static_cast<double>(p.bytes_total);
  const double rate = p.seconds > 0 ? done / p.seconds : 0;
  char text[128];
  std::snprintf(text, sizeof(text), "%.2f of %.2f GB (%.0f%%), %.2f GB/s", done / 1e9, total / 1e9,
                total > 0 ? 100 * done / total : 100.0, rate / 1e9);
  std::string out = text;
  if (rate > 0 && done < total) {
    std::snprintf(text, sizeof(text), ", %.0f s left", (total - done) / rate);
    out += text;
  }
  return out;
}

void ProgressReporter::draw(const model::LoadProgress& p, bool last) {
  constexpr int kWidth = 30;
  const int filled = p.bytes_total == 0
                         ? kWidth
                         : static_cast<int>(static_cast<double>(p.bytes_done) * kWidth /
                                            static_cast<double>(p.bytes_total));
  std::string bar(static_cast<size_t>(std::clamp(filled, 0, kWidth)), '=');
  bar.resize(kWidth, ' ');
  // Clears to the end of the line: the text gets shorter as it goes.
  std::fprintf(stderr, "\r[%s] %s\033[K%s", bar.c_str(), progress_text(p).c_str(),
               last ? "\n" : "");
  std::fflush(stderr);
  bar_open_ = !last;
}

void ProgressReporter::update(const model::LoadProgress& p) {
  if (finished_) return;
  const bool last = p.bytes_done >= p.bytes_total;
  if (terminal_) draw(p, last);
  if (last) {
    finished_ = true;
    LOG_INFO("Weights loaded: {} in {:.1f} s", progress_text(p), p.seconds);
  } else if (!terminal_ && p.seconds - last_line_ >= kSecondsBetweenLines) {
    last_line_ = p.seconds;
    LOG_INFO("Loading weights: {}", progress_text(p));
  }
}

void ProgressReporter::abandon() {
  if (bar_open_) std::fputc('\n', stderr);
  bar_open_ = false;
}

}  // namespace capstan::app
