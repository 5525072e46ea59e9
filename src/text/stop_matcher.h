// Finds stop strings in text that arrives piece by piece, and says what may already be shown.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace capstan::text {

/// Text that could be the beginning of a stop string is withheld until it cannot be one any more.
///
/// Of several stop strings the one whose last byte comes first wins, as if the text had been
/// checked after every byte; of those that end at the same byte the longest (which begins
/// leftmost), and of equal strings the first in the list. The result so does not depend on how the
/// text is cut into pieces, and generation never has to continue in the hope of a longer match.
///
/// Pieces and stop strings are UTF-8 made of whole characters (what Detokenizer gives); then so is
/// everything returned. Time per byte is proportional to the number of stop strings.
class StopMatcher {
 public:
  /// Empty stop strings are ignored. `keep_stop` (SGLang's no_stop_trim) leaves the matched string
  /// in the text; otherwise the text ends before it.
  explicit StopMatcher(std::vector<std::string> stops, bool keep_stop = false);

  /// Text that may be emitted now. After a match: the empty string, whatever is pushed.
  std::string push(std::string_view text);
  /// The text still withheld, when generation ends for another reason.
  std::string finish();

  bool matched() const { return matched_.has_value(); }
  /// Index into the list given, of the string that matched.
  std::optional<size_t> matched_index() const { return matched_; }
  /// The string that matched; empty if none did.
  const std::string& matched_stop() const;

 private:
  struct Stop {
    size_t index;                  // in stops_
    std::vector<uint32_t> border;  // Knuth-Morris-Pratt: longest proper border of each prefix
    size_t state = 0;              // length of the prefix that the text now ends with
  };
  /// Advances one stop string by a byte; true if it is complete.
  bool advance(Stop& stop, char byte) const;

  std::vector<std::string> stops_;
  std::vector<Stop> active_;
  bool keep_stop_;
  std::string withheld_;  // a proper prefix of some stop string
  std::optional<size_t> matched_;
};

}  // namespace capstan::text
