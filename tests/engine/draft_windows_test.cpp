#include "engine/draft_windows.h"

#include <gtest/gtest.h>

namespace capstan::engine {
namespace {

TEST(DraftWindows, GoOnWhereTheyWereWritten) {
  DraftWindows windows(4);
  const std::vector<int32_t> pages = {7, 3, 9};
  EXPECT_EQ(windows.cached(pages, 8), -1);
  EXPECT_EQ(windows.cached(pages, 0), -1);
  windows.wrote(pages, 0, 6, 0);
  windows.wrote(pages, 6, 11, 0);
  EXPECT_TRUE(windows.whole(pages, 0, 11));
  EXPECT_EQ(windows.cached(pages, 8), 0);
  EXPECT_EQ(windows.cached(pages, 10), -1) << "the cache has whole pages";
}

TEST(DraftWindows, ARowLeftOutEndsThem) {
  DraftWindows windows(4);
  const std::vector<int32_t> pages = {7, 3, 9};
  windows.wrote(pages, 0, 12, 0);
  windows.skipped(pages, 6, 7);
  EXPECT_TRUE(windows.whole(pages, 0, 4));
  EXPECT_FALSE(windows.whole(pages, 0, 8));
  EXPECT_EQ(windows.cached(pages, 8), -1);
  EXPECT_EQ(windows.cached(pages, 12), -1);
  windows.wrote(pages, 7, 8, 0);
  EXPECT_FALSE(windows.whole(pages, 0, 8)) << "the page lacks a row";
}

TEST(DraftWindows, BeginInTheMiddle) {
  DraftWindows windows(4);
  const std::vector<int32_t> pages = {7, 3, 9};
  windows.skipped(pages, 0, 4);
  windows.wrote(pages, 4, 12, 4);
  EXPECT_EQ(windows.next_page(1), 4);
  EXPECT_EQ(windows.cached(pages, 12), 4);
  EXPECT_EQ(windows.cached(pages, 4), -1);
  // The same page as another text's first.
  const std::vector<int32_t> other = {3, 9};
  EXPECT_EQ(windows.cached(other, 4), -1);
}

TEST(DraftWindows, OfTwoTextsDoNotMix) {
  DraftWindows windows(4);
  windows.wrote(std::vector<int32_t>{1, 2}, 0, 8, 0);
  windows.wrote(std::vector<int32_t>{5, 6}, 4, 8, 4);
  EXPECT_EQ(windows.cached(std::vector<int32_t>{1, 6}, 8), 4) << "page 6 alone is its window";
  windows.wrote(std::vector<int32_t>{5, 6, 8}, 8, 12, 0);
  EXPECT_EQ(windows.cached(std::vector<int32_t>{1, 6, 8}, 12), -1);
}

}  // namespace
}  // namespace capstan::engine
