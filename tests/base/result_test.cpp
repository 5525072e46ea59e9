#include "base/result.h"

#include <gtest/gtest.h>

#include "base/log.h"

namespace capstan {
namespace {

Result<int> half(int x) {
  if (x % 2 != 0) return invalid_argument("odd value " + std::to_string(x), "x");
  return x / 2;
}

Result<int> quarter(int x) {
  CAPSTAN_ASSIGN(const int h, half(x));
  return half(h);
}

TEST(Result, AssignPassesValuesAndErrorsOn) {
  EXPECT_EQ(*quarter(8), 2);
  ASSERT_FALSE(quarter(6).ok());
  EXPECT_EQ(quarter(6).error().message, "odd value 3");
  EXPECT_EQ(quarter(6).error().param, "x");
  EXPECT_EQ(quarter(6).error().code, ErrorCode::kInvalidArgument);
}

TEST(Logging, RefusesUnknownLevelWithItsName) {
  EXPECT_TRUE(init_logging("warning").ok());
  const Status status = init_logging("loud");
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("'loud'"), std::string::npos);
}

}  // namespace
}  // namespace capstan
