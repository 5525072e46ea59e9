#include "model/kv_store.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "checkpoint_files.h"

namespace capstan::model {
namespace {

ModelConfig config() {
  ModelConfig c;
  c.num_layers = 3;
  c.num_kv_heads = 2;
  c.head_dim = 8;
  return c;
}

TEST(KvStore, EveryElementHasItsOwnPlaceAndStartsAtZero) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    auto store = KvStore::create(config(), 5, 3, dtype);
    ASSERT_TRUE(store.ok()) << store.error().message;
    const auto row = static_cast<int64_t>(dtype_bytes(dtype, 8));
    std::set<const std::byte*> rows;
    for (int l = 0; l < 3; ++l) {
      const kernels::PagedKv kv = store->layer(l);
      EXPECT_EQ(kv.dtype, dtype);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(kv.base) % 64, 0u);
      for (int page = 0; page < 5; ++page) {
        for (int head = 0; head < 2; ++head) {
          for (int offset = 0; offset < 3; ++offset) {
            for (int64_t v : {int64_t{0}, kv.value_offset}) {
              std::byte* p =
                  kv.base + page * kv.page_stride + head * kv.head_stride + offset * row + v;
              for (int64_t i = 0; i < row; ++i) ASSERT_EQ(p[i], std::byte{0});
              std::memset(p, 0xff, static_cast<size_t>(row));  // an overlap shows as non-zero
              rows.insert(p);
            }
          }
        }
      }
    }
    EXPECT_EQ(rows.size(), 3u * 5 * 2 * 3 * 2);
    EXPECT_EQ(KvStore::bytes_per_token(config(), dtype), 3u * 2 * 2 * static_cast<size_t>(row));
    EXPECT_GE(store->bytes(), 15 * KvStore::bytes_per_token(config(), dtype));
  }
}

ModelConfig latent(int layers) {
  ModelConfig c;
  c.num_layers = layers;
  c.num_kv_heads = c.num_heads = 128;
  c.head_dim = 192;
  c.mla.kv_lora_rank = 512;
  c.mla.qk_nope_head_dim = 128;
  c.mla.qk_rope_head_dim = 64;
  c.mla.v_head_dim = 128;
  return c;
}

TEST(KvStore, LatentRowsLieOnePerTokenAndLayerDraftLayersIncluded) {
  const ModelConfig c = latent(2);
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    auto store = KvStore::create(c, 3, 4, dtype, 1);
    ASSERT_TRUE(store.ok()) << store.error().message;
    ASSERT_EQ(store->num_layers(), 3);
    const auto row = static_cast<int64_t>(dtype_bytes(dtype, 576));
    std::set<const std::byte*> rows;
    for (int l = 0; l < 3; ++l) {
      const kernels::PagedKv kv = store->layer(l);
      EXPECT_EQ(kv.kv_heads, 1);
      EXPECT_EQ(kv.head_dim, 576);
      EXPECT_EQ(kv.value_offset, 0);
      EXPECT_EQ(kv.value_dim, 512);
      for (int page = 0; page < 3; ++page) {
        for (int offset = 0; offset < 4; ++offset) {
          std::byte* p = kv.base + page * kv.page_stride + offset * row;
          for (int64_t i = 0; i < row; ++i) ASSERT_EQ(p[i], std::byte{0});
          std::memset(p, 0xff, static_cast<size_t>(row));
          rows.insert(p);
        }
      }
    }
    EXPECT_EQ(rows.size(), 3u * 3 * 4);
    EXPECT_EQ(KvStore::bytes_per_token(c, dtype), 2 * static_cast<size_t>(row));
    EXPECT_EQ(KvStore::bytes_per_token(c, dtype, 1), 3 * static_cast<size_t>(row));
  }
}

TEST(KvStore, BytesPerTokenOfLatentModels) {
  EXPECT_EQ(KvStore::bytes_per_token(latent(61), DType::kBF16), 70272u);  // V3
  EXPECT_EQ(KvStore::bytes_per_token(latent(61), DType::kBF16, 1), 71424u);
  EXPECT_EQ(KvStore::bytes_per_token(latent(61), DType::kF8E4M3), 35136u);
  EXPECT_EQ(KvStore::bytes_per_token(latent(27), DType::kF16), 31104u);  // V2-Lite
}

TEST(KvStore, BytesPerTokenOfKnownModels) {
  ModelConfig smol;
  smol.num_layers = 30;
  smol.num_kv_heads = 3;
  smol.head_dim = 64;
  EXPECT_EQ(KvStore::bytes_per_token(smol, DType::kBF16), 23040u);
  ModelConfig qwen;
  qwen.num_layers = 64;
  qwen.num_kv_heads = 8;
  qwen.head_dim = 128;
  EXPECT_EQ(KvStore::bytes_per_token(qwen, DType::kBF16), 262144u);
}

TEST(KvStore, LargeStoresCostNothingUntilTouched) {
  // 96 bytes a token and layer: 4 GiB in all, of which one page is written.
  auto store = KvStore::create(config(), 1 << 20, 16, DType::kF16);
  ASSERT_TRUE(store.ok()) << store.error().message;
  const kernels::PagedKv kv = store->layer(2);
  kv.base[((1 << 20) - 1) * kv.page_stride] = std::byte{1};
  EXPECT_EQ(kv.base[1000 * kv.page_stride], std::byte{0});
}

TEST(KvStore, RefusesBadSizes) {
  expect_error(KvStore::create(config(), 0, 16, DType::kF32), ErrorCode::kInvalidArgument, {"0"});
  expect_error(KvStore::create(config(), 1, -1, DType::kF32), ErrorCode::kInvalidArgument, {"-1"});
  expect_error(KvStore::create(config(), 1, 1, DType::kQ8_0), ErrorCode::kInvalidArgument,
               {"Q8_0"});
  expect_error(KvStore::create(config(), 1, 1, DType::kF8E4M3), ErrorCode::kInvalidArgument,
               {"F8_E4M3", "latent attention", "BF16"});
  ModelConfig wide = config();
  wide.num_kv_heads = 65536;
  wide.head_dim = 65536;
  expect_error(KvStore::create(wide, INT32_MAX, INT32_MAX, DType::kF32),
               ErrorCode::kInvalidArgument, {"2147483647"});
  wide.num_kv_heads = 1024;
  wide.head_dim = 1024;
  expect_error(KvStore::create(wide, INT32_MAX, 128, DType::kF32), ErrorCode::kResourceExhausted,
               {"bytes"});
}

}  // namespace
}  // namespace capstan::model
