// The generator of recipe.h against values that tools/recipes.py gave: were they to differ, every
// golden comparison of a recipe's model would fail without saying why.
#include "recipe.h"

#include <gtest/gtest.h>

namespace capstan::model {
namespace {

FileTensor fill(const std::string& json) {
  return recipe_tensor(boost::json::parse(json).as_object(), 3);
}

uint64_t fnv1a(const std::string& bytes) {
  uint64_t h = 0xcbf29ce484222325;
  for (const char c : bytes) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
}

TEST(Recipe, BytesAreThoseOfThePythonGenerator) {
  // python3 tools/recipes.py prints these
  EXPECT_EQ(
      fnv1a(
          fill(
              R"({"name": "some.weight", "dtype": "F32", "shape": [3, 256], "amplitude": 0.7, "centre": 1.0})")
              .bytes),
      0xe7d0e0d655ebed2cu);
  EXPECT_EQ(
      fnv1a(fill(R"({"name": "some.weight", "dtype": "BF16", "shape": [3, 256], "amplitude": 0.7})")
                .bytes),
      0xd1de6054a45d40afu);
  EXPECT_EQ(
      fnv1a(fill(R"({"name": "some.weight", "dtype": "F16", "shape": [3, 256], "amplitude": 0.3})")
                .bytes),
      0x7152de5d3b8f2eeau);
  EXPECT_EQ(fnv1a(fill(R"({"name": "some.weight", "dtype": "F8_E4M3", "shape": [3, 256]})").bytes),
            0x85595e1a9b1aaf06u);
  EXPECT_EQ(
      fnv1a(fill(R"({"name": "some.weight", "dtype": "Q8_0", "shape": [3, 256], "scale": [0.01]})")
                .bytes),
      0x17a3a354b4c85858u);
  EXPECT_EQ(
      fnv1a(
          fill(
              R"({"name": "some.weight", "dtype": "Q4_K", "shape": [3, 256], "scale": [0.002, 0.015]})")
              .bytes),
      0x7c48e0ed413b87f5u);
  EXPECT_EQ(
      fnv1a(fill(R"({"name": "some.weight", "dtype": "Q6_K", "shape": [3, 256], "scale": [0.001]})")
                .bytes),
      0xaecd620a6db4c13u);
}

}  // namespace
}  // namespace capstan::model
