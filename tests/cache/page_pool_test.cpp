#include "cache/page_pool.h"

#include <gtest/gtest.h>

namespace capstan::cache {
namespace {

TEST(PagePool, HandsOutEachPageOnceAndTakesItBack) {
  PagePool pool(5, 16);
  std::vector<int32_t> pages;
  ASSERT_TRUE(pool.allocate(3, pages));
  EXPECT_EQ(pages, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_FALSE(pool.allocate(3, pages)) << "all or nothing";
  EXPECT_EQ(pages.size(), 3u);
  EXPECT_EQ(pool.free_pages(), 2);
  pool.give_to_tree(std::span(pages).first(2));
  EXPECT_EQ(pool.tree_pages(), 2);
  EXPECT_EQ(pool.request_pages(), 1);
  EXPECT_TRUE(pool.check().ok());
  pool.release_from_request(std::span(pages).last(1));
  pool.release_from_tree(std::span(pages).first(2));
  EXPECT_EQ(pool.free_pages(), 5);
  for (int i = 0; i < 5; ++i) EXPECT_GE(pool.allocate(), 0);
  EXPECT_EQ(pool.allocate(), -1);
  EXPECT_TRUE(pool.check().ok());
}

TEST(PagePool, DoubleReleaseIsRefusedAndRemembered) {
  PagePool pool(4, 1);
  const std::vector<int32_t> page{pool.allocate()};
  pool.release_from_request(page);
  pool.release_from_request(page);
  EXPECT_EQ(pool.free_pages(), 4) << "the page must not be on the free list twice";
  const Status status = pool.check();
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("page 0 was to move from request to free but is free"),
            std::string::npos)
      << status.error().message;
}

TEST(PagePool, ForeignOwnerAndUnknownPageAreRefused) {
  PagePool pool(4, 1);
  const std::vector<int32_t> page{pool.allocate()};
  pool.release_from_tree(page);
  EXPECT_EQ(pool.request_pages(), 1);
  EXPECT_FALSE(pool.check().ok());

  PagePool other(4, 1);
  other.give_to_tree(std::vector<int32_t>{9});
  EXPECT_NE(other.check().error().message.find("page 9"), std::string::npos);
}

}  // namespace
}  // namespace capstan::cache
