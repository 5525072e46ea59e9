#include "text/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace capstan::text {
namespace {

TEST(StopMatcher, WithholdsWhatMayBecomeAStop) {
  StopMatcher m({"STOP"});
  EXPECT_EQ(m.push("abcS"), "abc");
  EXPECT_EQ(m.push("T"), "");
  EXPECT_EQ(m.push("ART"), "START");
  EXPECT_EQ(m.push("xSTO"), "x");
  EXPECT_EQ(m.push("P and more"), "");
  EXPECT_TRUE(m.matched());
  EXPECT_EQ(m.matched_stop(), "STOP");
  EXPECT_EQ(m.push("nothing"), "");
  EXPECT_EQ(m.finish(), "");
}

TEST(StopMatcher, FinishReleasesTheRest) {
  StopMatcher m({"</s>", "\n\n"});
  EXPECT_EQ(m.push("hi\n"), "hi");
  EXPECT_EQ(m.finish(), "\n");
  EXPECT_FALSE(m.matched());
  EXPECT_EQ(m.matched_stop(), "");
  EXPECT_EQ(m.matched_index(), std::nullopt);
}

TEST(StopMatcher, KeepsTheStopOnRequest) {
  StopMatcher m({"END"}, true);
  EXPECT_EQ(m.push("a EN"), "a ");
  EXPECT_EQ(m.push("D b"), "END");
  EXPECT_TRUE(m.matched());
}

TEST(StopMatcher, FirstToEndThenLongestThenFirst) {
  StopMatcher nested({"abcd", "bc"});
  EXPECT_EQ(nested.push("xabcd"), "xa");
  EXPECT_EQ(nested.matched_stop(), "bc");
  StopMatcher same_end({"c", "bc", "abc"});
  EXPECT_EQ(same_end.push("xabc"), "x");
  EXPECT_EQ(same_end.matched_index(), 2u);
  StopMatcher equal({"", "x", "x"});
  EXPECT_EQ(equal.push("ax"), "a");
  EXPECT_EQ(equal.matched_index(), 1u);
}

TEST(StopMatcher, WithoutStopsTextPasses) {
  StopMatcher none({});
  EXPECT_EQ(none.push("abc"), "abc");
  StopMatcher empty({""});
  EXPECT_EQ(empty.push("abc"), "abc");
  EXPECT_EQ(empty.finish(), "");
}

TEST(StopMatcher, OverlapsWithItself) {
  StopMatcher m({"aab"});
  EXPECT_EQ(m.push("aaa"), "a");
  EXPECT_EQ(m.push("b"), "");
  EXPECT_TRUE(m.matched());
}

TEST(StopMatcher, CutsAtCharacters) {
  StopMatcher m({"\u4E2D\u6587", "\U0001F600!"});
  EXPECT_EQ(m.push("a\u4E2D"), "a");
  EXPECT_EQ(m.push("\u56FD\U0001F600"), "\u4E2D\u56FD");
  EXPECT_EQ(m.push("\U0001F600!x"), "\U0001F600");
  EXPECT_EQ(m.matched_index(), 1u);
}

// The definition, spelt out: look at every prefix of the text, shortest first.
std::pair<std::string, std::optional<size_t>> by_definition(const std::string& text,
                                                            const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    std::optional<size_t> best;
    for (size_t i = 0; i < stops.size(); ++i) {
      if (stops[i].empty() || !std::string_view(text).substr(0, end).ends_with(stops[i])) continue;
      if (!best || stops[i].size() > stops[*best].size()) best = i;
    }
    if (best) return {text.substr(0, end - stops[*best].size()), best};
  }
  return {text, std::nullopt};
}

TEST(StopMatcher, AnyCutGivesTheSame) {
  std::mt19937 rng(11);
  const auto word = [&](size_t longest) {
    std::string text;
    for (size_t n = rng() % (longest + 1); n > 0; --n) text += static_cast<char>('a' + rng() % 2);
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops;
    for (size_t n = 1 + rng() % 3; n > 0; --n) stops.push_back(word(5) + (rng() % 4 ? "a" : ""));
    const std::string text = word(24);
    StopMatcher m(stops);
    std::string out;
    for (size_t i = 0; i < text.size();) {
      const size_t n = 1 + rng() % 4;
      out += m.push(std::string_view(text).substr(i, n));
      // Nothing that is shown may later turn out to belong to a stop string.
      EXPECT_EQ(out, by_definition(text, stops).first.substr(0, out.size()));
      i += n;
    }
    out += m.finish();
    EXPECT_EQ(out, by_definition(text, stops).first);
    EXPECT_EQ(m.matched_index(), by_definition(text, stops).second);
  }
}

}  // namespace
}  // namespace capstan::text
