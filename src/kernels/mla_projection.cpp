#include "kernels/mla_projection.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "quant/codecs.h"

namespace capstan::kernels {
namespace {

constexpr int kScaleBlock = 128;

std::string shape_text(const TensorView& t) {
  std::string out = "[";
  for (size_t i = 0; i < t.shape.size(); ++i) {
    out += (i > 0 ? ", " : "") + std::to_string(t.shape[i]);
  }
  return out + "]";
}

Status check_shape(const TensorView& t, const std::vector<int64_t>& expected) {
  // A stacked tensor may also come flattened to a matrix of the same rows.
  int64_t elems = 1;
  for (const int64_t d : expected) elems *= d;
  if (t.shape == expected ||
      (t.shape.size() == 2 && t.cols() == expected.back() && t.elems() == elems)) {
    return {};
  }
  TensorView wanted;
  wanted.shape = expected;
  return invalid_argument("tensor " + t.name + " has shape " + shape_text(t) +
                          "; latent attention of this model needs " + shape_text(wanted));
}

Status check_fp8(const TensorView& w, const TensorView& scale) {
  const int64_t rows = (w.rows() + kScaleBlock - 1) / kScaleBlock;
  const int64_t cols = (w.cols() + kScaleBlock - 1) / kScaleBlock;
  if (scale.data == nullptr) {
    return invalid_argument("tensor " + w.name + " is F8_E4M3 but has no block scales (" + w.name +
                            "_scale_inv)");
  }
  if (scale.dtype != DType::kF32 || scale.shape != std::vector<int64_t>{rows, cols}) {
    return invalid_argument("scales " + scale.name + " of " + w.name + " are " +
                            std::string(dtype_info(scale.dtype).name) + " " + shape_text(scale) +
                            "; F32 [" + std::to_string(rows) + ", " + std::to_string(cols) +
                            "] is needed");
  }
  const auto* bytes = reinterpret_cast<const uint8_t*>(w.data);
  for (int64_t i = 0; i < w.elems(); ++i) {
    if ((bytes[i] & 0x7f) == 0x7f) {
      return invalid_argument(
          "tensor " + w.name + " holds a NaN (byte " + std::to_string(static_cast<int>(bytes[i])) +
          ") in row " + std::to_string(i / w.cols()) + ", column " + std::to_string(i % w.cols()));
    }
  }
  return {};
}

float scale_at(const TensorView& scale, int64_t row, int64_t col) {
  float value;
  const int64_t i = row / kScaleBlock * scale.cols() + col / kScaleBlock;
  std::memcpy(&value, scale.data + i * static_cast<int64_t>(sizeof(float)), sizeof(value));
  return value;
}

/// Rows [begin, begin + rows) of a tensor in float32, without the block scales of F8_E4M3.
std::vector<float> decode_rows(const TensorView& t, int64_t begin, int64_t rows) {
  std::vector<float> out(static_cast<size_t>(rows * t.cols()));
  quant::dequantize_row(t.dtype,
                        t.data + static_cast<size_t>(begin) * dtype_bytes(t.dtype, t.cols()),
                        out.data(), rows * t.cols());
  return out;
}

std::vector<float> transposed(const std::vector<float>& in, int rows, int cols) {
  std::vector<float> out(in.size());
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < cols; ++c) {
      out[static_cast<size_t>(c) * static_cast<size_t>(rows) + static_cast<size_t>(r)] =
          in[static_cast<size_t>(r) * static_cast<size_t>(cols) + static_cast<size_t>(c)];
    }
  }
  return out;
}

/// Writes a matrix [k, n] as panels to the (zeroed) store.
void put(const std::vector<float>& in, int k, int n, DType dtype, std::byte* out) {
  const size_t piece = dtype_bytes(dtype, kMlaColumns);
  for (int c = 0; c < n; c += kMlaColumns) {
    for (int i = 0; i < k; ++i, out += piece) {  // cannot fail: no block formats here
      (void)quant::quantize_row(dtype, in.data() + int64_t{i} * n + c, out,
                                std::min(kMlaColumns, n - c));
    }
  }
}

bool fits_half(const TensorView& t) {
  for (int64_t r = 0; r < t.rows(); ++r) {
    for (const float v : decode_rows(t, r, 1)) {
      if (!(std::fabs(v) <= 65504.0f)) return false;
    }
  }
  return true;
}

/// What a tensor is stored as; an error if it cannot be.
Result<DType> stored_dtype(const TensorView& t, bool exact) {
  const std::string name(dtype_info(t.dtype).name);
  if (t.dtype == DType::kF32 || t.dtype == DType::kF16 || t.dtype == DType::kBF16 ||
      t.dtype == DType::kF8E4M3) {
    return t.dtype;
  }
  if (!is_block_quantised(t.dtype)) {
    return invalid_argument("tensor " + t.name + " has dtype " + name +
                            ", which no projection of latent attention can have");
  }
  const int block = dtype_info(t.dtype).block_elems;
  if (t.cols() % block != 0) {
    return invalid_argument("tensor " + t.name + " has rows of " + std::to_string(t.cols()) +
                            " elements, no multiple of the " + std::to_string(block) + " of a " +
                            name + " block");
  }
  return !exact && fits_half(t) ? DType::kF16 : DType::kF32;
}

}  // namespace

MlaMatrix PackedMla::key(int head) const {
  const auto h = static_cast<size_t>(head);
  MlaMatrix m;
  m.data = data_.data() + h * key_bytes_;
  m.dtype = dtype_;
  m.k = shape_.nope_dim;
  m.panels = mla_padded(shape_.rank) / kMlaColumns;
  m.panel_stride = int64_t{m.k} * kMlaColumns;
  if (dtype_ == DType::kF8E4M3) {
    m.scales = scales_.data() + h * (key_scales_ + value_scales_);
    m.k_offset = head * (shape_.nope_dim + shape_.value_dim) % kScaleBlock;
  }
  return m;
}

MlaMatrix PackedMla::value(int head) const {
  const auto h = static_cast<size_t>(head);
  MlaMatrix m;
  m.data = data_.data() + static_cast<size_t>(shape_.heads) * key_bytes_ + h * value_bytes_;
  m.dtype = dtype_;
  m.k = shape_.rank;
  m.panels = mla_padded(shape_.value_dim) / kMlaColumns;
  m.panel_stride = int64_t{m.k} * kMlaColumns;
  if (dtype_ == DType::kF8E4M3) {
    m.scales = scales_.data() + h * (key_scales_ + value_scales_) + key_scales_;
  }
  return m;
}

void PackedMla::decode(const MlaMatrix& m, float* out) {
  std::vector<float> panel(static_cast<size_t>(m.k) * kMlaColumns);
  for (int p = 0; p < m.panels; ++p) {
    quant::dequantize_row(m.dtype, m.panel(p), panel.data(), int64_t{m.k} * kMlaColumns);
    for (int i = 0; i < m.k; ++i) {
      const float scale =
          m.scales == nullptr ? 1.0f : m.scales[(i + m.k_offset) / kScaleBlock * m.panels + p];
      for (int j = 0; j < kMlaColumns; ++j) {
        out[(int64_t{i} * m.panels + p) * kMlaColumns + j] =
            panel[static_cast<size_t>(i * kMlaColumns + j)] * scale;
      }
    }
  }
}

Result<std::unique_ptr<MlaProjection>> PackedMla::pack(const MlaProjectionSpec& spec, bool exact) {
  const MlaShape& s = spec.shape;
  if (s.heads < 1 || s.nope_dim < 1 || s.rope_dim < 2 || s.rope_dim % 2 != 0 || s.value_dim < 1 ||
      s.rank < 1) {
    return invalid_argument("latent attention with " + std::to_string(s.heads) + " heads, nope " +
                            std::to_string(s.nope_dim) + ", rope " + std::to_string(s.rope_dim) +
                            ", value " + std::to_string(s.value_dim) + ", rank " +
                            std::to_string(s.rank) +
                            ": all must be positive and the rope part even");
  }
  const bool joint = spec.kv_b.data != nullptr;
  if (!joint && (spec.k_b.data == nullptr || spec.v_b.data == nullptr)) {
    return invalid_argument("latent attention needs kv_b or both k_b and v_b; " +
                            std::string(spec.k_b.data != nullptr   ? "v_b is missing"
                                        : spec.v_b.data != nullptr ? "k_b is missing"
                                                                   : "none is given"));
  }
  DType dtype;
  if (joint) {
    CAPSTAN_RETURN_IF_ERROR(
        check_shape(spec.kv_b, {int64_t{s.heads} * (s.nope_dim + s.value_dim), s.rank}));
    CAPSTAN_ASSIGN(dtype, stored_dtype(spec.kv_b, exact));
    if (dtype == DType::kF8E4M3) {
      CAPSTAN_RETURN_IF_ERROR(check_fp8(spec.kv_b, spec.kv_b_scale));
    }
  } else {
    CAPSTAN_RETURN_IF_ERROR(check_shape(spec.k_b, {s.heads, s.rank, s.nope_dim}));
    CAPSTAN_RETURN_IF_ERROR(check_shape(spec.v_b, {s.heads, s.value_dim, s.rank}));
    CAPSTAN_ASSIGN(const DType k_dtype, stored_dtype(spec.k_b, exact));
    CAPSTAN_ASSIGN(const DType v_dtype, stored_dtype(spec.v_b, exact));
    for (const TensorView* t : {&spec.k_b, &spec.v_b}) {
      if (t->dtype == DType::kF8E4M3) {
        return invalid_argument("tensor " + t->name +
                                " is F8_E4M3, which needs the block scales of a kv_b");
      }
    }
    dtype = k_dtype == v_dtype ? k_dtype : DType::kF32;
  }
  auto packed = std::make_unique<PackedMla>();
  CAPSTAN_RETURN_IF_ERROR(packed->fill(spec, dtype));
  return std::unique_ptr<MlaProjection>(std::move(packed));
}

Status PackedMla::fill(const MlaProjectionSpec& spec, DType dtype) {
  const MlaShape& s = shape_ = spec.shape;
  const bool fp8 = dtype == DType::kF8E4M3;
  const bool keep_fp8 = fp8 && s.nope_dim % kMlaColumns == 0 && s.value_dim % kMlaColumns == 0;
  dtype_ = fp8 && !keep_fp8 ? DType::kF32 : dtype;
  const int64_t head_rows = s.nope_dim + s.value_dim;
  key_bytes_ = dtype_bytes(dtype_, int64_t{s.nope_dim} * mla_padded(s.rank));
  value_bytes_ = dtype_bytes(dtype_, int64_t{s.rank} * mla_padded(s.value_dim));
  const size_t bytes = static_cast<size_t>(s.heads) * (key_bytes_ + value_bytes_);
  data_ = quant::PanelBuffer(bytes);
  if (data_.data() == nullptr) {
    return resource_exhausted("cannot reserve " + std::to_string(bytes) + " bytes for " +
                              (spec.kv_b.data != nullptr ? spec.kv_b.name : spec.k_b.name));
  }
  if (keep_fp8) {
    const auto blocks = [](int k) {
      return static_cast<size_t>(k + 2 * kScaleBlock - 2) / kScaleBlock;
    };
    key_scales_ = blocks(s.nope_dim) * static_cast<size_t>(mla_padded(s.rank) / kMlaColumns);
    value_scales_ = blocks(s.rank) * static_cast<size_t>(mla_padded(s.value_dim) / kMlaColumns);
    scales_.resize(static_cast<size_t>(s.heads) * (key_scales_ + value_scales_));
  }
  for (int h = 0; h < s.heads; ++h) {
    std::vector<float> k, v;  // [nope_dim, rank], [value_dim, rank]
    if (spec.kv_b.data != nullptr) {
      const int64_t first = h * head_rows;
      k = decode_rows(spec.kv_b, first, s.nope_dim);
      v = decode_rows(spec.kv_b, first + s.nope_dim, s.value_dim);
      if (fp8 && !keep_fp8) {
        for (int64_t i = 0; i < head_rows; ++i) {
          float* row =
              i < s.nope_dim ? k.data() + i * s.rank : v.data() + (i - s.nope_dim) * s.rank;
          for (int64_t e = 0; e < s.rank; ++e) row[e] *= scale_at(spec.kv_b_scale, first + i, e);
        }
      } else if (fp8) {
        fill_scales(spec.kv_b_scale, h);
      }
    } else {
      k = transposed(decode_rows(spec.k_b, int64_t{h} * s.rank, s.rank), s.rank, s.nope_dim);
      v = decode_rows(spec.v_b, int64_t{h} * s.value_dim, s.value_dim);
    }
    put(k, s.nope_dim, s.rank, dtype_, data_.data() + static_cast<size_t>(h) * key_bytes_);
    put(transposed(v, s.value_dim, s.rank), s.rank, s.value_dim, dtype_,
        data_.data() + static_cast<size_t>(s.heads) * key_bytes_ +
            static_cast<size_t>(h) * value_bytes_);
  }
  return {};
}

void PackedMla::fill_scales(const TensorView& scale, int head) {
  const MlaShape& s = shape_;
  const int first = head * (s.nope_dim + s.value_dim);
  float* out = scales_.data() + static_cast<size_t>(head) * (key_scales_ + value_scales_);
  const int key_columns = mla_padded(s.rank) / kMlaColumns;
  for (int i = 0; i < s.nope_dim; ++i) {
    for (int c = 0; c < key_columns; ++c) {
      out[(i + first % kScaleBlock) / kScaleBlock * key_columns + c] =
          scale_at(scale, first + i, c * kMlaColumns);
    }
  }
  out += key_scales_;
  const int value_columns = mla_padded(s.value_dim) / kMlaColumns;
  for (int e = 0; e < s.rank; e += kScaleBlock) {
    for (int c = 0; c < value_columns; ++c) {
      out[e / kScaleBlock * value_columns + c] =
          scale_at(scale, first + s.nope_dim + c * kMlaColumns, e);
    }
  }
}

}  // namespace capstan::kernels
