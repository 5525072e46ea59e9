#include "engine/ngram_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace capstan::engine {
namespace {

std::vector<int32_t> drafts_after(const std::vector<int32_t>& text, int most,
                                  int* match = nullptr) {
  NgramIndex index;
  for (const int32_t token : text) index.append(token);
  std::vector<int32_t> out;
  const int length = index.find(most, out);
  if (match != nullptr) *match = length;
  return out;
}

TEST(NgramIndex, NothingFollowsWhatIsNew) {
  EXPECT_TRUE(drafts_after({}, 4).empty());
  EXPECT_TRUE(drafts_after({1}, 4).empty());
  EXPECT_TRUE(drafts_after({1, 2, 3, 4}, 4).empty());
  EXPECT_TRUE(drafts_after({1, 2, 3, 2}, 4).empty()) << "one token is no match";
}

TEST(NgramIndex, TheLongestMatchWins) {
  int match = 0;
  // 2 3 came with 9 before it, later with 1.
  EXPECT_EQ(drafts_after({9, 2, 3, 50, 1, 2, 3, 60, 9, 2, 3}, 1, &match),
            (std::vector<int32_t>{50}));
  EXPECT_EQ(match, 3);
}

TEST(NgramIndex, OfEqualMatchesTheLatest) {
  EXPECT_EQ(drafts_after({2, 3, 50, 8, 2, 3, 60, 9, 2, 3}, 1), (std::vector<int32_t>{60}));
}

TEST(NgramIndex, ARepetitionGoesOn) {
  EXPECT_EQ(drafts_after({7, 1, 2, 3, 1, 2, 3, 1, 2}, 7),
            (std::vector<int32_t>{3, 1, 2, 3, 1, 2, 3}));
  EXPECT_EQ(drafts_after({5, 5, 5}, 4), (std::vector<int32_t>{5, 5, 5, 5}));
}

TEST(NgramIndex, GivesNoMoreThanAsked) {
  EXPECT_EQ(drafts_after({1, 2, 3, 4, 5, 1, 2}, 2), (std::vector<int32_t>{3, 4}));
  EXPECT_TRUE(drafts_after({1, 2, 3, 4, 5, 1, 2}, 0).empty());
}

TEST(NgramIndex, RandomTextsAgainstTheDefinition) {
  std::mt19937 random(5);
  int matches = 0;
  for (int round = 0; round < 300; ++round) {
    const auto vocabulary = 5 + random() % 40;
    NgramIndex index;
    std::vector<int32_t> text, drafts;
    for (int i = 0; i < 120; ++i) {
      // Now and then something said before, so that matches of all lengths come.
      if (!text.empty() && random() % 12 == 0) {
        const size_t from = random() % text.size();
        const size_t count = std::min<size_t>(random() % 40, text.size() - from);
        for (size_t j = 0; j < count; ++j) {
          text.push_back(text[from + j]);
          index.append(text.back());
        }
      }
      text.push_back(static_cast<int32_t>(random() % vocabulary));
      index.append(text.back());
      const int found = index.find(3, drafts);
      const auto n = static_cast<int>(text.size());
      int longest = 0;
      bool follows = false;  // some place with so long a match goes on like the drafts
      for (int end = 0; end + 1 < n; ++end) {
        int length = 0;
        while (length < NgramIndex::kLongest && length <= end &&
               text[static_cast<size_t>(end - length)] ==
                   text[static_cast<size_t>(n - 1 - length)]) {
          ++length;
        }
        longest = std::max(longest, length);
        follows |= length == found && !drafts.empty() &&
                   text[static_cast<size_t>(end + 1)] == drafts.front();
      }
      // Chains are cut after a number of looks; a match found then is shorter, never wrong.
      ASSERT_LE(found, longest);
      if (found == 0) {
        ASSERT_TRUE(drafts.empty());
        continue;
      }
      ASSERT_TRUE(follows);
      ASSERT_EQ(drafts.size(), 3u);
      matches += found == longest;
      matches -= found != longest ? 20 : 0;
    }
  }
  EXPECT_GT(matches, 5000) << "the longest match is found in at least 95% of the cases";
}

TEST(NgramIndex, KeepsItsPlaceInALongText) {
  // "4 4" comes everywhere; what follows it is told by the place alone.
  NgramIndex index;
  std::vector<int32_t> page;
  for (int i = 0; i < 300; ++i) page.insert(page.end(), {4, 4, 1000 + i});
  for (const int32_t token : page) index.append(token);
  std::vector<int32_t> drafts;
  int right = 0;
  for (size_t i = 0; i + 1 < page.size(); ++i) {
    index.append(page[i]);
    index.find(1, drafts);
    right += !drafts.empty() && drafts[0] == page[i + 1];
  }
  EXPECT_GT(right, 890);
}

}  // namespace
}  // namespace capstan::engine
