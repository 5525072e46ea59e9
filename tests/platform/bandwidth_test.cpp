#include "platform/bandwidth.h"

#include <gtest/gtest.h>

namespace capstan::platform {
namespace {

TEST(Bandwidth, IsAPlausibleRate) {
  ThreadPool pool(2);
  const double rate = measure_dram_read(pool, 0.01);
  EXPECT_GT(rate, 1e7);   // a machine under heavy load
  EXPECT_LT(rate, 1e13);  // no machine reads 10 TB/s: the loop was optimised away
}

}  // namespace
}  // namespace capstan::platform
