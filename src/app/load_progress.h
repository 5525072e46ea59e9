// Tells how far loading is: a live bar on a terminal, otherwise a log line at least every 10 s, so
// that nobody takes a large checkpoint for a hang.
#pragma once

#include <string>

#include "model/checkpoint.h"

namespace capstan::app {

/// "1.20 of 4.80 GB (25%), 0.85 GB/s, 4 s left"
std::string progress_text(const model::LoadProgress& progress);

/// Of several ranks as of one: call update() with any rank's progress, from any thread.
class ProgressReporter {
 public:
  explicit ProgressReporter(bool terminal) : terminal_(terminal) {}
  /// Called at most every 100 ms and at the end.
  void update(const model::LoadProgress& progress);
  /// Ends the line of a bar that stopped half-way.
  void abandon();

 private:
  static constexpr double kSecondsBetweenLines = 10;

  void draw(const model::LoadProgress& progress, bool last);

  const bool terminal_;
  bool bar_open_ = false;
  bool finished_ = false;
  double last_line_ = 0;
};

}  // namespace capstan::app
