#include "kernels/mla_projection.h"

#include <gtest/gtest.h>

#include "kernels/mla_fixture.h"

namespace capstan::kernels {
namespace {

constexpr MlaShape kTiny{8, 32, 32, 32, 128};  // tiny-v3

const PackedMla& packed(const Result<std::unique_ptr<MlaProjection>>& result) {
  return static_cast<const PackedMla&>(**result);
}

std::vector<float> decoded(const MlaMatrix& m) {
  std::vector<float> out(static_cast<size_t>(m.k) * static_cast<size_t>((m.panels * kMlaColumns)),
                         NAN);
  PackedMla::decode(m, out.data());
  return out;
}

/// Every element of every head, padding included.
void expect_weights(const PackedMla& packed, const KvB& weights, float tolerance) {
  const MlaShape& s = weights.shape();
  for (int h = 0; h < s.heads; ++h) {
    const MlaMatrix key = packed.key(h), value = packed.value(h);
    ASSERT_EQ(key.k, s.nope_dim);
    ASSERT_EQ(value.k, s.rank);
    const auto k = decoded(key), v = decoded(value);
    for (int d = 0; d < s.nope_dim; ++d) {
      for (int e = 0; e < (key.panels * kMlaColumns); ++e) {
        const float expected = e < s.rank ? weights.k_row(h, d)[e] : 0.0f;
        ASSERT_NEAR(k[static_cast<size_t>(d * (key.panels * kMlaColumns) + e)], expected,
                    tolerance * std::fabs(expected))
            << "head " << h << " row " << d << " column " << e;
      }
    }
    for (int e = 0; e < s.rank; ++e) {
      for (int j = 0; j < (value.panels * kMlaColumns); ++j) {
        const float expected = j < s.value_dim ? weights.v_row(h, j)[e] : 0.0f;
        ASSERT_NEAR(v[static_cast<size_t>(e * (value.panels * kMlaColumns) + j)], expected,
                    tolerance * std::fabs(expected))
            << "head " << h << " row " << e << " column " << j;
      }
    }
  }
}

TEST(MlaProjection, KeepsEveryWeightOfEveryHead) {
  std::mt19937 random(1);
  // Block rows of 128 cut heads of 96 + 48 rows anywhere; 20 and 12 are no multiples of a vector.
  const MlaShape shapes[] = {
      kTiny, {5, 96, 64, 48, 192}, {3, 20, 4, 12, 24}, {1, 128, 64, 128, 512}};
  for (const MlaShape& shape : shapes) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3}) {
      const KvB weights(random, shape, dtype);
      const auto result = PackedMla::pack(weights.spec());
      ASSERT_TRUE(result.ok()) << result.error().message;
      expect_weights(packed(result), weights, 0);
    }
  }
}

TEST(MlaProjection, MemoryIsThatOfTheCheckpoint) {
  std::mt19937 random(1);
  const int64_t elems = 8 * 64 * 128;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const KvB weights(random, kTiny, dtype);
    const auto result = PackedMla::pack(weights.spec());
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(packed(result).dtype(), dtype);
    EXPECT_GE((*result)->bytes(), dtype_bytes(dtype, elems));
    EXPECT_LE((*result)->bytes(), dtype_bytes(dtype, elems) * 5 / 4);
  }
}

/// The same weights as newer GGUF files have them.
struct GgufPair {
  std::vector<std::byte> k, v;
  MlaProjectionSpec spec;

  GgufPair(const KvB& weights, DType k_dtype, DType v_dtype) {
    const MlaShape& s = weights.shape();
    std::vector<float> kb, vb;
    for (int h = 0; h < s.heads; ++h) {
      for (int e = 0; e < s.rank; ++e) {
        for (int d = 0; d < s.nope_dim; ++d) kb.push_back(weights.k_row(h, d)[e]);
      }
      for (int j = 0; j < s.value_dim; ++j) {
        vb.insert(vb.end(), weights.v_row(h, j), weights.v_row(h, j) + s.rank);
      }
    }
    k.resize(dtype_bytes(k_dtype, static_cast<int64_t>(kb.size())));
    v.resize(dtype_bytes(v_dtype, static_cast<int64_t>(vb.size())));
    EXPECT_TRUE(
        quant::quantize_row(k_dtype, kb.data(), k.data(), static_cast<int64_t>(kb.size())).ok());
    EXPECT_TRUE(
        quant::quantize_row(v_dtype, vb.data(), v.data(), static_cast<int64_t>(vb.size())).ok());
    spec.shape = s;
    spec.k_b = {k.data(), k_dtype, {s.heads, s.rank, s.nope_dim}, "blk.0.attn_k_b.weight"};
    spec.v_b = {v.data(), v_dtype, {s.heads, s.value_dim, s.rank}, "blk.0.attn_v_b.weight"};
  }
};

TEST(MlaProjection, PairOfNewerGgufFilesMeansTheSameWeights) {
  std::mt19937 random(2);
  const KvB weights(random, kTiny, DType::kBF16);
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    GgufPair pair(weights, dtype, dtype);
    const auto result = PackedMla::pack(pair.spec);
    ASSERT_TRUE(result.ok()) << result.error().message;
    EXPECT_EQ(packed(result).dtype(), dtype);
    expect_weights(packed(result), weights, 0);
    pair.spec.k_b.shape = {8 * 128, 32};  // flattened to a matrix
    EXPECT_TRUE(PackedMla::pack(pair.spec).ok());
  }
  GgufPair mixed(weights, DType::kF32, DType::kBF16);
  const auto result = PackedMla::pack(mixed.spec);
  ASSERT_TRUE(result.ok());
  expect_weights(packed(result), weights, 0);
}

TEST(MlaProjection, BlockFormatsAreStoredAsF16) {
  std::mt19937 random(3);
  const KvB weights(random, kTiny, DType::kQ8_0);
  const auto result = PackedMla::pack(weights.spec());
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_EQ(packed(result).dtype(), DType::kF16);
  expect_weights(packed(result), weights, 0x1p-11f);
}

void expect_refused(const MlaProjectionSpec& spec, const std::vector<std::string>& words) {
  const auto result = PackedMla::pack(spec);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
  for (const std::string& word : words) {
    EXPECT_NE(result.error().message.find(word), std::string::npos)
        << word << " is not in: " << result.error().message;
  }
}

TEST(MlaProjection, RefusesWhatDoesNotFitAndSaysWhy) {
  std::mt19937 random(4);
  const KvB plain(random, kTiny, DType::kF32);
  MlaProjectionSpec spec = plain.spec();
  spec.kv_b.shape = {512, 127};
  expect_refused(spec, {"layer.kv_b_proj.weight", "[512, 127]", "[512, 128]"});
  spec = plain.spec();
  spec.kv_b.dtype = DType::kI32;
  expect_refused(spec, {"layer.kv_b_proj.weight", "I32"});
  spec = plain.spec();
  spec.shape.rope_dim = 31;
  expect_refused(spec, {"31"});
  spec = {};
  spec.shape = kTiny;
  expect_refused(spec, {"kv_b", "k_b", "v_b"});
  GgufPair pair(plain, DType::kF32, DType::kF32);
  pair.spec.v_b.data = nullptr;
  expect_refused(pair.spec, {"v_b is missing"});

  KvB fp8(random, kTiny, DType::kF8E4M3);
  spec = fp8.spec();
  spec.kv_b_scale = {};
  expect_refused(spec, {"layer.kv_b_proj.weight", "scale"});
  spec = fp8.spec();
  spec.kv_b_scale.shape = {3, 1};
  expect_refused(spec, {"weight_scale_inv", "[3, 1]", "[4, 1]"});
  fp8.bytes()[5 * 128 + 7] = std::byte{0xff};
  expect_refused(fp8.spec(), {"layer.kv_b_proj.weight", "255", "row 5", "column 7"});
}

}  // namespace
}  // namespace capstan::kernels
