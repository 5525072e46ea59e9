#include "text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace capstan::text {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool keep_stop)
    : stops_(std::move(stops)), keep_stop_(keep_stop) {
  for (size_t index = 0; index < stops_.size(); ++index) {
    const std::string& text = stops_[index];
    if (text.empty()) continue;
    Stop stop{index, std::vector<uint32_t>(text.size(), 0)};
    for (size_t i = 1, length = 0; i < text.size(); ++i) {
      while (length > 0 && text[i] != text[length]) length = stop.border[length - 1];
      if (text[i] == text[length]) ++length;
      stop.border[i] = static_cast<uint32_t>(length);
    }
    active_.push_back(std::move(stop));
  }
}

bool StopMatcher::advance(Stop& stop, char byte) const {
  const std::string& text = stops_[stop.index];
  while (stop.state > 0 && text[stop.state] != byte) stop.state = stop.border[stop.state - 1];
  if (text[stop.state] == byte) ++stop.state;
  return stop.state == text.size();
}

std::string StopMatcher::push(std::string_view text) {
  if (matched_) return {};
  if (active_.empty()) return std::string(text);
  std::string out = std::move(withheld_);
  withheld_.clear();
  const size_t before = out.size();
  out.append(text);
  for (size_t i = before; i < out.size(); ++i) {
    for (Stop& stop : active_) {
      if (!advance(stop, out[i])) continue;
      if (!matched_ || stops_[stop.index].size() > stops_[*matched_].size()) {
        matched_ = stop.index;
      }
    }
    if (matched_) {
      out.resize(keep_stop_ ? i + 1 : i + 1 - stops_[*matched_].size());
      return out;
    }
  }
  size_t hold = 0;
  for (const Stop& stop : active_) hold = std::max(hold, stop.state);
  withheld_ = out.substr(out.size() - hold);
  out.resize(out.size() - hold);
  return out;
}

std::string StopMatcher::finish() {
  for (Stop& stop : active_) stop.state = 0;
  return std::exchange(withheld_, {});
}

const std::string& StopMatcher::matched_stop() const {
  static const std::string kNone;
  return matched_ ? stops_[*matched_] : kNone;
}

}  // namespace capstan::text
