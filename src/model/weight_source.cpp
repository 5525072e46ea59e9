#include "model/weight_source.h"

#include <cmath>
#include <cstring>

#include "model/dummy_weights.h"
#include "quant/codecs.h"

namespace capstan::model {

DType WeightSource::dtype(const WeightSpec& spec) const {
  return dummy_ ? dummy_dtype(checkpoint_.config(), spec) : checkpoint_.find(spec.name)->dtype;
}

size_t WeightSource::bytes(const WeightSpec& spec) const { return empty_view(spec).bytes(); }

Result<LoadedWeight> WeightSource::load_mapped(const WeightSpec& spec) const {
  LoadedWeight loaded;
  const TensorView& whole = *checkpoint_.find(spec.name);
  loaded.view = slice_of(whole, spec.slice, loaded.storage);
  // Gathered columns come from all pages of the tensor.
  loaded.mapped = loaded.storage.bytes() > 0 ? whole : loaded.view;
  if (loaded.view.dtype != DType::kF8E4M3) return loaded;
  const WeightSpec scales = scale_spec(spec);
  loaded.scales = slice_of(*checkpoint_.find(scales.name), scales.slice, loaded.scale_storage);
  for (int64_t i = 0; i < loaded.scales.elems(); ++i) {
    float scale = 0;  // unaligned in the file
    std::memcpy(&scale, loaded.scales.data + static_cast<size_t>(i) * sizeof scale, sizeof scale);
    if (!std::isfinite(scale) || scale < 0) {
      return data_loss(checkpoint_.path() + ": tensor '" + scales.name + "' holds " +
                       std::to_string(scale) + " as a block scale; the file is damaged");
    }
  }
  return loaded;
}

Result<LoadedWeight> WeightSource::load(const WeightSpec& spec) const {
  if (!dummy_) return load_mapped(spec);
  LoadedWeight loaded;
  loaded.view = empty_view(spec);
  loaded.storage = AlignedBuffer(loaded.view.bytes());
  loaded.view.data = loaded.storage.data();
  if (loaded.view.dtype != DType::kF8E4M3) {
    CAPSTAN_RETURN_IF_ERROR(fill_dummy(spec, loaded.view.dtype, seed_, loaded.storage.data()));
    return loaded;
  }
  const WeightSpec scales = scale_spec(spec);
  loaded.scales.shape = slice_shape(scales.slice, scales.shape);
  loaded.scales.name = scales.name;
  loaded.scale_storage = AlignedBuffer(loaded.scales.bytes());
  loaded.scales.data = loaded.scale_storage.data();
  fill_dummy_fp8(spec, seed_, loaded.storage.data(), loaded.scale_storage.as<float>());
  return loaded;
}

Result<std::vector<float>> WeightSource::load_vector(const WeightSpec& spec) const {
  CAPSTAN_ASSIGN(const LoadedWeight loaded, load(spec));
  std::vector<float> values(static_cast<size_t>(loaded.view.elems()));
  quant::dequantize_row(loaded.view.dtype, loaded.view.data, values.data(), loaded.view.elems());
  for (const float v : values) {
    if (!std::isfinite(v)) {
      return data_loss(checkpoint_.path() + ": tensor '" + spec.name + "' holds " +
                       std::to_string(v) + "; the file is damaged");
    }
  }
  return values;
}

void WeightSource::done_with(const LoadedWeight& weight) const {
  if (weight.mapped.data != nullptr) checkpoint_.drop_pages(weight.mapped);
}

TensorView WeightSource::empty_view(const WeightSpec& spec) const {
  TensorView view;
  view.dtype = dtype(spec);
  view.shape = slice_shape(spec.slice, spec.shape);
  view.name = spec.name;
  return view;
}

}  // namespace capstan::model
