#include <gtest/gtest.h>

#include "kernels/cpu_ops.h"
#include "kernels/mla_fixture.h"

namespace capstan::kernels {
namespace {

std::shared_ptr<Ops> make(Isa isa, platform::ThreadPool& pool) {
  CpuOpsOptions options;
  options.isa = isa;
  auto ops = make_cpu_ops(options, pool);
  EXPECT_TRUE(ops.ok());
  return *ops;
}

std::vector<float> stored(const PagedKv& kv, int64_t slot) {
  std::vector<float> row(static_cast<size_t>(kv.head_dim));
  quant::dequantize_row(kv.dtype, key_row_of_slot(kv, slot, 0), row.data(), kv.head_dim);
  return row;
}

TEST(MlaStore, WorkedExample) {
  // x = [1,2,3,4] at position 3, frequencies 1 and 0.01, pairs of neighbours.
  const float rotated[] = {-1.2722325f, -1.838865f, 2.8786681f, 4.0881866f};
  const float cos[] = {std::cos(3.0f), std::cos(0.03f)}, sin[] = {std::sin(3.0f), std::sin(0.03f)};
  const MlaShape shape{2, 3, 4, 5, 2};
  const std::vector<float> norm = {2.0f, 0.5f};
  for (const Isa isa : supported_isas()) {
    platform::ThreadPool pool(1);
    LatentCache cache(shape, DType::kF32, 4, 8, 1);
    std::vector<float> q = {7, 8, 9, 1, 2, 3, 4, -7, -8, -9, 1, 2, 3, 4};
    std::vector<float> kv = {3, 4, 1, 2, 3, 4};
    const std::vector<float> kv_before = kv;
    const int64_t slot = 6;
    MlaStoreArgs args;
    args.shape = shape;
    args.q = {q.data(), 1, 14, 14};
    args.kv = {kv.data(), 1, 6, 6};
    args.norm = norm.data();
    args.eps = 0;
    args.cos = cos;
    args.sin = sin;
    args.cache = cache.kv();
    args.slots = {&slot, 1};
    make(isa, pool)->mla_store(args);
    const std::vector<float> row = stored(cache.kv(), slot);
    // The norm is over the latent alone: rms of (3, 4) is sqrt(12.5).
    EXPECT_NEAR(row[0], 2.0 * 3 / std::sqrt(12.5), 1e-6);
    EXPECT_NEAR(row[1], 0.5 * 4 / std::sqrt(12.5), 1e-6);
    for (int i = 0; i < 4; ++i) {
      EXPECT_NEAR(row[static_cast<size_t>(2 + i)], rotated[i], 1e-6);
      EXPECT_NEAR(q[static_cast<size_t>(3 + i)], rotated[i], 1e-6);
      EXPECT_NEAR(q[static_cast<size_t>(10 + i)], rotated[i], 1e-6);
    }
    EXPECT_EQ((std::vector<float>{q[0], q[1], q[2], q[7], q[8], q[9]}),
              (std::vector<float>{7, 8, 9, -7, -8, -9}));
    EXPECT_EQ(kv, kv_before);
    EXPECT_TRUE(std::isnan(stored(cache.kv(), 5)[5]));
    EXPECT_TRUE(std::isnan(stored(cache.kv(), 7)[0]));
  }
}

TEST(MlaStore, EveryIsaDtypeAndShapeAgreesWithTheOracle) {
  std::mt19937 random(2);
  const MlaShape shapes[] = {{16, 128, 64, 128, 512}, {8, 32, 32, 32, 128}, {3, 20, 6, 12, 28}};
  for (const MlaShape& shape : shapes) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3}) {
      for (const RopeStyle style : {RopeStyle::kInterleaved, RopeStyle::kHalfSplit}) {
        constexpr int kRows = 19;
        const int q_width = shape.heads * shape.query_dim(), kv_stride = shape.cache_dim() + 8;
        const auto q = random_floats(random, static_cast<size_t>(kRows * q_width), 2.0f);
        const auto kv = random_floats(random, static_cast<size_t>(kRows * kv_stride), 3.0f);
        const auto norm = random_floats(random, static_cast<size_t>(shape.rank));
        std::vector<float> cos, sin;
        for (int i = 0; i < kRows * shape.rope_dim / 2; ++i) {
          cos.push_back(std::cos(0.37f * static_cast<float>(i)));
          sin.push_back(std::sin(0.37f * static_cast<float>(i)));
        }
        std::vector<int64_t> slots(kRows);
        std::iota(slots.begin(), slots.end(), 2);
        std::vector<float> expected_q, expected_rows;
        for (const Isa isa : supported_isas()) {
          for (const int threads : {1, 3}) {
            platform::ThreadPool pool(threads);
            LatentCache cache(shape, dtype, 5, kRows + 4, 1);
            std::vector<float> q_now = q, kv_now = kv;
            MlaStoreArgs args;
            args.shape = shape;
            args.q = {q_now.data(), kRows, q_width, q_width};
            args.kv = {kv_now.data(), kRows, shape.cache_dim(), kv_stride};
            args.norm = norm.data();
            args.eps = 1e-6f;
            args.rope = style;
            args.cos = cos.data();
            args.sin = sin.data();
            args.cache = cache.kv();
            args.slots = slots;
            make(isa, pool)->mla_store(args);
            std::vector<float> rows;
            for (const int64_t slot : slots) {
              const auto row = stored(cache.kv(), slot);
              rows.insert(rows.end(), row.begin(), row.end());
            }
            if (isa == Isa::kRef && threads == 1) {
              expected_q = q_now;
              expected_rows = rows;
            }
            // One rounding to the cache's precision may fall to the other side of a tie.
            const float step = dtype == DType::kF32    ? 1e-6f
                               : dtype == DType::kF16  ? 0x1p-10f
                               : dtype == DType::kBF16 ? 0x1p-7f
                                                       : 0x1p-3f;
            for (size_t i = 0; i < rows.size(); ++i) {
              ASSERT_NEAR(rows[i], expected_rows[i], step * std::fabs(expected_rows[i]) + 2e-6f);
            }
            for (size_t i = 0; i < q.size(); ++i) ASSERT_NEAR(q_now[i], expected_q[i], 3e-6f);
          }
        }
      }
    }
  }
}

TEST(MlaStore, LargeValuesSaturate) {
  const MlaShape shape{1, 4, 2, 4, 4};
  const std::vector<float> norm = {1e6f, -1e6f, 400.0f, 1.0f};
  const float cos[] = {1}, sin[] = {0};
  const int64_t slot = 0;
  for (const Isa isa : supported_isas()) {
    for (const auto& [dtype, largest] :
         {std::pair{DType::kF16, 65504.0f}, std::pair{DType::kF8E4M3, 448.0f}}) {
      platform::ThreadPool pool(1);
      LatentCache cache(shape, dtype, 4, 4, 1);
      std::vector<float> q(6, 0.0f), kv = {1, 1, 1, 1, 1e9f, 2};
      MlaStoreArgs args;
      args.shape = shape;
      args.q = {q.data(), 1, 6, 6};
      args.kv = {kv.data(), 1, 6, 6};
      args.norm = norm.data();
      args.cos = cos;
      args.sin = sin;
      args.cache = cache.kv();
      args.slots = {&slot, 1};
      make(isa, pool)->mla_store(args);
      EXPECT_EQ(stored(cache.kv(), 0),
                (std::vector<float>{largest, -largest, dtype == DType::kF16 ? 400.0f : 384.0f, 1,
                                    largest, 2}));
    }
  }
}

}  // namespace
}  // namespace capstan::kernels
