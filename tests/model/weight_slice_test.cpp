// Slices are parts of the whole, in every format.
#include "model/weight_slice.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "model/dummy_weights.h"
#include "model/weights.h"
#include "quant/codecs.h"
#include "quant/fp8.h"

namespace capstan::model {
namespace {

/// Random bytes of a matrix that dequantise to numbers.
std::vector<std::byte> random_matrix(DType dtype, int64_t rows, int64_t cols) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<std::byte> bytes(dtype_bytes(dtype, rows * cols));
  if (is_block_quantised(dtype) && dtype != DType::kQ8_0 && dtype != DType::kQ4_0 &&
      dtype != DType::kQ4_1) {
    for (std::byte& b : bytes) b = static_cast<std::byte>(random() & 0x3f);  // small F16 scales too
    return bytes;
  }
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (float& v : values) v = normal(random);
  EXPECT_TRUE(quant::quantize_row(dtype, values.data(), bytes.data(), rows * cols).ok());
  return bytes;
}

std::vector<float> decoded(const TensorView& t) {
  std::vector<float> values(static_cast<size_t>(t.elems()));
  quant::dequantize_row(t.dtype, t.data, values.data(), t.elems());
  return values;
}

TEST(WeightSlice, DequantisesToThePartOfTheWhole) {
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3, DType::kQ4_0, DType::kQ4_1,
        DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    const int64_t rows = 12, cols = 768, block = dtype_info(dtype).block_elems;
    const std::vector<std::byte> bytes = random_matrix(dtype, rows, cols);
    TensorView whole;
    whole.data = bytes.data();
    whole.dtype = dtype;
    whole.shape = {rows, cols};
    whole.name = "w";
    const std::vector<float> all = decoded(whole);
    for (const WeightSlice& slice :
         {WeightSlice{}, WeightSlice::rows(0, 5), WeightSlice::rows(5, 12),
          WeightSlice::columns(0, block), WeightSlice::columns(block, 3 * block),
          WeightSlice::columns(2 * block, cols)}) {
      AlignedBuffer storage;
      const TensorView part = slice_of(whole, slice, storage);
      EXPECT_EQ(part.shape, slice_shape(slice, whole.shape));
      EXPECT_EQ(storage.bytes() > 0, slice.axis == WeightSlice::Axis::kColumns);
      const bool by_rows = slice.axis == WeightSlice::Axis::kRows;
      const bool by_columns = slice.axis == WeightSlice::Axis::kColumns;
      const std::vector<float> values = decoded(part);
      bool equal = true;
      for (int64_t r = 0; r < part.rows(); ++r) {
        for (int64_t c = 0; c < part.cols(); ++c) {
          const int64_t from =
              (r + (by_rows ? slice.begin : 0)) * cols + c + (by_columns ? slice.begin : 0);
          equal &=
              values[static_cast<size_t>(r * part.cols() + c)] == all[static_cast<size_t>(from)];
        }
      }
      EXPECT_TRUE(equal) << dtype_info(dtype).name << " [" << slice.begin << ", " << slice.end
                         << ")";
    }
  }
}

TEST(WeightSlice, TakesTheBlockScalesAlong) {
  const WeightSpec spec{"w", {300, 384}, true, WeightSlice::rows(128, 300)};
  const WeightSpec scales = scale_spec(spec);
  EXPECT_EQ(scales.shape, (std::vector<int64_t>{3, 3}));
  EXPECT_EQ(slice_shape(scales.slice, scales.shape), (std::vector<int64_t>{2, 3}));
  WeightSpec columns = spec;
  columns.slice = WeightSlice::columns(256, 384);
  EXPECT_EQ(slice_shape(scale_spec(columns).slice, scales.shape), (std::vector<int64_t>{3, 1}));

  // Values of the slice, with its scales, are those of the whole.
  const std::vector<std::byte> bytes = random_matrix(DType::kF8E4M3, 300, 384);
  std::vector<float> scale_values(9);
  std::iota(scale_values.begin(), scale_values.end(), 1.0F);
  TensorView whole, whole_scales;
  whole.data = bytes.data();
  whole.dtype = DType::kF8E4M3;
  whole.shape = spec.shape;
  whole_scales.data = reinterpret_cast<const std::byte*>(scale_values.data());
  whole_scales.shape = {3, 3};
  std::vector<float> all(300 * 384);
  quant::dequantize_fp8_blocks(bytes.data(), scale_values.data(), 0, 300, 384, all.data());
  for (const WeightSpec& w : {spec, columns}) {
    AlignedBuffer storage, scale_storage;
    const TensorView part = slice_of(whole, w.slice, storage);
    const TensorView part_scales = slice_of(whole_scales, scale_spec(w).slice, scale_storage);
    std::vector<float> values(static_cast<size_t>(part.elems()));
    quant::dequantize_fp8_blocks(part.data, reinterpret_cast<const float*>(part_scales.data), 0,
                                 part.rows(), part.cols(), values.data());
    const bool by_rows = w.slice.axis == WeightSlice::Axis::kRows;
    for (int64_t r = 0; r < part.rows(); ++r) {
      for (int64_t c = 0; c < part.cols(); ++c) {
        const int64_t from = by_rows ? (r + w.slice.begin) * 384 + c : r * 384 + c + w.slice.begin;
        ASSERT_EQ(values[static_cast<size_t>(r * part.cols() + c)], all[static_cast<size_t>(from)]);
      }
    }
  }
}

TEST(WeightSlice, OfRandomWeightsIsThePartOfTheWhole) {
  for (const DType dtype : {DType::kF32, DType::kQ8_0, DType::kF8E4M3}) {
    const std::vector<int64_t> shape = {6, 4, 96};  // a stack by heads
    const WeightSpec whole{"model.layers.0.self_attn.k_b_proj.weight", shape, true};
    const auto fill = [&](const WeightSpec& spec) {
      TensorView view;
      view.dtype = dtype;
      view.shape = slice_shape(spec.slice, spec.shape);
      std::vector<std::byte> bytes(view.bytes());
      std::vector<float> scales(64);
      if (dtype == DType::kF8E4M3) {
        fill_dummy_fp8(spec, 3, bytes.data(), scales.data());
      } else {
        EXPECT_TRUE(fill_dummy(spec, dtype, 3, bytes.data()).ok());
      }
      return bytes;
    };
    const std::vector<std::byte> bytes = fill(whole);
    TensorView view;
    view.data = bytes.data();
    view.dtype = dtype;
    view.shape = shape;
    for (const WeightSlice& slice : {WeightSlice::rows(2, 5), WeightSlice::columns(32, 96)}) {
      WeightSpec part = whole;
      part.slice = slice;
      AlignedBuffer storage;
      const TensorView expected = slice_of(view, slice, storage);
      const std::vector<std::byte> actual = fill(part);
      ASSERT_EQ(actual.size(), expected.bytes());
      EXPECT_TRUE(std::equal(actual.begin(), actual.end(), expected.data));
    }
  }
  // A bias is a vector: its rows are its entries.
  WeightSpec bias{"q_proj.bias", {8}};
  std::vector<float> whole(8), part(3);
  ASSERT_TRUE(fill_dummy(bias, DType::kF32, 1, reinterpret_cast<std::byte*>(whole.data())).ok());
  bias.slice = WeightSlice::rows(4, 7);
  ASSERT_TRUE(fill_dummy(bias, DType::kF32, 1, reinterpret_cast<std::byte*>(part.data())).ok());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 4));
}

}  // namespace
}  // namespace capstan::model
