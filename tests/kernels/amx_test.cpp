// Tile products: the bits that AVX-512 computes, natively where the CPU has AMX
// and on an emulation of the registers everywhere.
#include <gtest/gtest.h>

#include "kernels/dot_choice.h"
#include "kernels/linear_fixture.h"
#include "platform/cpu.h"

namespace capstan::kernels {
namespace {

struct Tables {
  const char* name;
  const LinearKernels& tiles;
  const LinearKernels& vectors;
};

std::vector<Tables> tables() {
  const platform::IsaSupport& cpu = platform::isa_support();
  std::vector<Tables> all;
  if (!cpu.avx2) return all;
  all.push_back({"emulated", simde_amx_linear_kernels(), simde_avx512_linear_kernels()});
  if (cpu.amx) all.push_back({"native", amx_linear_kernels(), avx512_linear_kernels()});
  return all;
}

using linear_test::product;

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class Amx : public ::testing::TestWithParam<DType> {};

TEST_P(Amx, GivesTheBitsOfAvx512) {
  for (const Tables& t : tables()) {
    SCOPED_TRACE(t.name);
    for (int64_t k : {256, 1024}) {
      const linear_test::Matrix w(GetParam(), 37, k, static_cast<unsigned>(k));
      const linear_test::Packed packed(Isa::kAvx512, {&w, 1});
      for (int64_t m : {1, 4, 15, 16, 17, 19, 31, 32, 33, 48, 55, 272}) {
        const std::vector<float> x = linear_test::activations(0, m, k);
        const auto want = product(t.vectors, *packed.weight, x, m, 1);
        for (const int threads : {1, 3}) {
          EXPECT_TRUE(same_bits(want, product(t.tiles, *packed.weight, x, m, threads)))
              << "k " << k << ", " << m << " rows, " << threads << " threads";
        }
      }
    }
  }
}

// All signs and magnitudes of activations that fill their range.
TEST_P(Amx, DenseActivationsAndAllQuants) {
  const int64_t k = 512, m = 32;
  std::vector<float> x(static_cast<size_t>(m * k));
  for (size_t i = 0; i < x.size(); ++i) {
    const auto r = i / static_cast<size_t>(k);
    x[i] = r % 2 == 0 ? 1.0f : (i * 2654435761u >> 7) % 2 == 0 ? -1.0f : 1.0f;
    if (r % 4 >= 2) x[i] *= static_cast<float>(i % 128) / 127.0f;
  }
  linear_test::Matrix w(GetParam(), 64, k, 3);
  for (const bool largest : {false, true}) {
    if (largest) {
      // Quants and whole-number scales all ones; the half-precision scales stay.
      const DTypeInfo info = dtype_info(GetParam());
      const bool first = GetParam() != DType::kQ6_K;  // where the half-precision ones are
      const bool two =
          info.block_elems == 256 || GetParam() == DType::kQ4_1 || GetParam() == DType::kQ5_1;
      const size_t halves = first && two ? 4 : 2;
      auto* data = const_cast<std::byte*>(w.view.data);
      for (int64_t at = 0; at < w.view.elems() / info.block_elems; ++at) {
        std::memset(data + at * info.block_bytes + (first ? halves : 0), 0xff,
                    static_cast<size_t>(info.block_bytes) - halves);
      }
    }
    const linear_test::Packed packed(Isa::kAvx512, {&w, 1});
    for (const Tables& t : tables()) {
      EXPECT_TRUE(same_bits(product(t.vectors, *packed.weight, x, m, 1),
                            product(t.tiles, *packed.weight, x, m, 1)))
          << t.name << (largest ? ", largest quants" : "");
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Amx,
                         ::testing::Values(DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
                                           DType::kQ5_1, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

TEST(AmxTables, OnlyRoundedActivationsGoInTallTiles) {
  for (const Tables& t : tables()) {
    EXPECT_EQ(t.tiles.tall_forms, static_cast<unsigned>(kXInt8 | kXSuper)) << t.name;
    for (const DType dtype : {DType::kQ8_0, DType::kQ4_1, DType::kQ4_K, DType::kQ6_K}) {
      EXPECT_NE(t.tiles.panel(dtype, true), t.vectors.panel(dtype, true)) << t.name;
      EXPECT_EQ(t.tiles.panel(dtype, false), t.vectors.panel(dtype, false)) << t.name;
    }
    EXPECT_EQ(t.tiles.panel(DType::kBF16, true), t.vectors.panel(DType::kBF16, true)) << t.name;
  }
}

TEST(AmxChoice, IsOnlyMadeWhereTheCpuCan) {
  if (!platform::isa_support().amx) {
    EXPECT_FALSE(amx_pays());
  }
}

}  // namespace
}  // namespace capstan::kernels
