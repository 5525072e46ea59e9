// What the micro-benchmarks of the kernels share: lists on the command line, and the clock.
#pragma once

#include <algorithm>
#include <chrono>
#include <sstream>
#include <string>
#include <vector>

namespace capstan::bench {

/// "a,b,c" as three strings.
inline std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> out;
  std::stringstream in(text);
  for (std::string item; std::getline(in, item, ',');) out.push_back(item);
  return out;
}

/// Seconds of a clock that never goes back.
inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Best seconds of one call of f, repeated for about `seconds`.
template <class F>
double best_time(double seconds, F&& f) {
  double best = 1e30;
  const double stop = now() + seconds;
  do {
    const double start = now();
    f();
    best = std::min(best, now() - start);
  } while (now() < stop);
  return best;
}

}  // namespace capstan::bench
