// Checks a LinearSpec and copies it into panels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/fp8_as_int8.h"
#include "kernels/linear_internal.h"
#include "quant/codecs.h"
#include "quant/fp8.h"

namespace capstan::kernels {

namespace {

std::string shape_text(const TensorView& t) {
  std::string text = "[";
  for (size_t i = 0; i < t.shape.size(); ++i) {
    if (i != 0) text += ", ";
    text += std::to_string(t.shape[i]);
  }
  return text + "]";
}

std::string label(const TensorView& t) {
  return "tensor '" + t.name + "' (" + std::string(dtype_info(t.dtype).name) + " " + shape_text(t) +
         ")";
}

Status check_part(const TensorView& part, int64_t k) {
  if (part.shape.size() != 2)
    return data_loss(label(part) + ": a weight matrix must have two dimensions");
  if (part.shape[0] <= 0 || part.shape[1] <= 0)
    return data_loss(label(part) + ": a dimension is not positive");
  if (part.shape[1] != k) {
    return data_loss(label(part) + ": its row length differs from " + std::to_string(k) +
                     " of the matrix it is stacked with");
  }
  if (!quant::has_panel_layout(part.dtype)) {
    return invalid_argument(label(part) +
                            ": no CPU kernel for this type; F32, F16, BF16, Q8_0, Q4_0, Q4_1, "
                            "Q5_0, Q5_1, Q4_K, Q5_K, Q6_K and F8_E4M3 are supported");
  }
  const int block = dtype_info(part.dtype).block_elems;
  if (k % block != 0) {
    return data_loss(label(part) + ": row length " + std::to_string(k) +
                     " is not a multiple of the format's block of " + std::to_string(block));
  }
  // 2^48 elements are more than any address space holds in any format.
  if (part.shape[0] > (int64_t{1} << 48) / k) return data_loss(label(part) + ": too large");
  if (part.data == nullptr) return internal_error(label(part) + ": has no data");
  return {};
}

Status check_bias(const TensorView& bias, const TensorView& part) {
  if (bias.data == nullptr && bias.shape.empty()) return {};
  if (bias.shape.size() != 1 || bias.shape[0] != part.shape[0]) {
    return data_loss("bias " + label(bias) + " does not fit weight " + label(part) +
                     ": expected [" + std::to_string(part.shape[0]) + "]");
  }
  if (bias.dtype != DType::kF32 && bias.dtype != DType::kF16 && bias.dtype != DType::kBF16)
    return invalid_argument("bias " + label(bias) + ": must be F32, F16 or BF16");
  if (bias.data == nullptr) return internal_error("bias " + label(bias) + ": has no data");
  return {};
}

std::string index_text(int64_t i, int64_t columns) {
  return "[" + std::to_string(i / columns) + ", " + std::to_string(i % columns) + "]";
}

/// Scales of an F8_E4M3 part, and its codes: a NaN there is a broken download or another format.
Status check_fp8(const TensorView& part, const TensorView* scale) {
  if (scale == nullptr || scale->data == nullptr) {
    return data_loss(label(part) + " has no block scales; expected a tensor '" + part.name +
                     "_scale_inv' with one float for each block of 128 x 128");
  }
  const int64_t rows = quant::fp8_blocks(part.shape[0]), columns = quant::fp8_blocks(part.shape[1]);
  if (scale->shape != std::vector<int64_t>{rows, columns}) {
    return data_loss("scales " + label(*scale) + " do not fit weight " + label(part) +
                     ": expected [" + std::to_string(rows) + ", " + std::to_string(columns) +
                     "], one for each block of 128 x 128");
  }
  if (scale->dtype != DType::kF32 && scale->dtype != DType::kBF16)
    return invalid_argument("scales " + label(*scale) + ": must be F32 or BF16");
  const std::vector<float> values = scale_values(*scale);
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      return data_loss("scales " + label(*scale) + ": the value at " +
                       index_text(static_cast<int64_t>(i), columns) + " is not finite");
    }
  }
  const int64_t nan = quant::find_fp8_nan(part.data, part.elems());
  if (nan >= 0) {
    return data_loss(label(part) + ": the code at " + index_text(nan, part.shape[1]) +
                     " is a NaN; the file is damaged or not in the E4M3 \"fn\" format");
  }
  return {};
}

// Lays out one segment of one part, or of the two parts of a swiglu pair.
Segment make_segment(const LinearSpec& spec, size_t first, int panels, int64_t k, int64_t column) {
  Segment s;
  const TensorView& part = spec.parts[first];
  s.panels = panels;
  s.n = part.shape[0];
  s.groups = (s.n + kPanelColumns - 1) / kPanelColumns;
  s.column = column;
  for (int p = 0; p < panels; ++p) {
    const size_t i = first + static_cast<size_t>(p);
    s.dtypes[static_cast<size_t>(p)] = spec.parts[i].dtype;
    s.panel_bytes[static_cast<size_t>(p)] = quant::panel_bytes(spec.parts[i].dtype, k);
    if (i >= spec.biases.size() || spec.biases[i].data == nullptr) continue;
    s.bias.resize(static_cast<size_t>(panels * s.groups * kPanelColumns), 0.0f);
    const std::vector<float> values = bias_values(spec.biases[i]);
    std::copy(values.begin(), values.end(), s.bias.begin() + p * s.groups * kPanelColumns);
  }
  return s;
}

void pack_segment(const LinearSpec& spec, size_t first, const Segment& s, int64_t k) {
  std::vector<float> scales[2];
  for (int p = 0; p < s.panels; ++p) {
    const size_t i = first + static_cast<size_t>(p);
    if (spec.parts[i].dtype == DType::kF8E4M3) scales[p] = scale_values(spec.scales[i]);
  }
  std::byte* out = s.data;
  for (int64_t g = 0; g < s.groups; ++g) {
    const int64_t row = g * kPanelColumns;
    const int columns = static_cast<int>(std::min<int64_t>(kPanelColumns, s.n - row));
    for (int p = 0; p < s.panels; ++p) {
      const TensorView& part = spec.parts[first + static_cast<size_t>(p)];
      const size_t row_bytes = dtype_bytes(part.dtype, k);
      quant::pack_panel(part.dtype, part.data + static_cast<size_t>(row) * row_bytes, row_bytes,
                        columns, k, out);
      if (part.dtype == DType::kF8E4M3) {
        // 128 is a multiple of the panel's 16 rows, so they share their scales.
        quant::pack_fp8_scales(scales[p].data() + row / quant::kFp8Block * quant::fp8_blocks(k), k,
                               out);
      }
      out += s.panel_bytes[static_cast<size_t>(p)];
    }
  }
}

}  // namespace

std::vector<float> bias_values(const TensorView& bias) {
  std::vector<float> values(static_cast<size_t>(bias.shape[0]));
  quant::dequantize_row(bias.dtype, bias.data, values.data(), bias.shape[0]);
  return values;
}

std::vector<float> scale_values(const TensorView& scales) {
  std::vector<float> values(static_cast<size_t>(scales.elems()));
  quant::dequantize_row(scales.dtype, scales.data, values.data(), scales.elems());
  return values;
}

Status check_linear_spec(const LinearSpec& spec) {
  if (spec.parts.empty()) return internal_error("pack_linear: no parts");
  if (!spec.biases.empty() && spec.biases.size() != spec.parts.size()) {
    return internal_error("pack_linear: " + std::to_string(spec.biases.size()) + " biases for " +
                          std::to_string(spec.parts.size()) + " parts");
  }
  if (!spec.scales.empty() && spec.scales.size() != spec.parts.size()) {
    return internal_error("pack_linear: " + std::to_string(spec.scales.size()) + " scales for " +
                          std::to_string(spec.parts.size()) + " parts");
  }
  const int64_t k = spec.parts[0].cols();
  for (size_t i = 0; i < spec.parts.size(); ++i) {
    CAPSTAN_RETURN_IF_ERROR(check_part(spec.parts[i], k));
    if (spec.parts[i].dtype == DType::kF8E4M3) {
      CAPSTAN_RETURN_IF_ERROR(
          check_fp8(spec.parts[i], spec.scales.empty() ? nullptr : &spec.scales[i]));
    }
  }
  for (size_t i = 0; i < spec.biases.size(); ++i)
    CAPSTAN_RETURN_IF_ERROR(check_bias(spec.biases[i], spec.parts[i]));
  if (spec.swiglu_pair &&
      (spec.parts.size() != 2 || spec.parts[0].shape[0] != spec.parts[1].shape[0])) {
    return data_loss("a gate/up pair needs two matrices of one shape; " + label(spec.parts[0]) +
                     (spec.parts.size() == 2
                          ? " and " + label(spec.parts[1]) + " differ"
                          : " stands with " + std::to_string(spec.parts.size() - 1) + " others"));
  }
  return {};
}

namespace {

Result<std::unique_ptr<LinearWeight>> pack_panels(Isa isa, const LinearSpec& spec,
                                                  const PackOptions& options) {
  auto weight = std::make_unique<PanelWeight>();
  weight->isa = isa;
  weight->k_ = spec.parts[0].cols();
  weight->swiglu_pair = spec.swiglu_pair;
  weight->quantise_activations = options.quantise_activations;
  for (size_t i = 0; i < spec.parts.size();) {
    const int panels = spec.swiglu_pair ? 2 : 1;
    Segment s = make_segment(spec, i, panels, weight->k_, weight->n_);
    weight->n_ += panels * s.n;
    weight->groups += s.groups;
    weight->bytes_ += static_cast<size_t>(s.groups) * s.group_bytes();
    weight->bytes_ += s.bias.size() * sizeof(float);
    weight->segments.push_back(std::move(s));
    i += static_cast<size_t>(panels);
  }

  size_t panel_total = 0;
  for (const Segment& s : weight->segments)
    panel_total += static_cast<size_t>(s.groups) * s.group_bytes();
  weight->buffer = quant::PanelBuffer(panel_total);
  if (weight->buffer.data() == nullptr) {
    return resource_exhausted("no memory for " + std::to_string(panel_total >> 20) +
                              " MiB of packed weights of " + label(spec.parts[0]));
  }
  std::byte* place = weight->buffer.data();
  for (size_t i = 0; i < weight->segments.size(); ++i) {
    Segment& s = weight->segments[i];
    s.data = place;
    pack_segment(spec, i * static_cast<size_t>(s.panels), s, weight->k_);
    place += static_cast<size_t>(s.groups) * s.group_bytes();
  }
  return std::unique_ptr<LinearWeight>(std::move(weight));
}

}  // namespace

Result<std::unique_ptr<LinearWeight>> pack_linear(Isa isa, const LinearSpec& spec,
                                                  const PackOptions& options) {
  CAPSTAN_RETURN_IF_ERROR(check_linear_spec(spec));
  if (isa == Isa::kRef) return pack_linear_ref(spec);
  if (options.fp8_as_int8 && options.quantise_activations)
    return pack_panels(isa, Fp8AsInt8(spec).spec(), options);
  return pack_panels(isa, spec, options);
}

}  // namespace capstan::kernels
