#include "model/weight_source.h"

#include <cmath>
#include <cstring>

#include "model/dummy_weights.h"
#include "quant/codecs.h"

namespace capstan::model {

size_t WeightSource::bytes(const WeightSpec& spec) const {
  if (!dummy_) return checkpoint_.find(spec.name)->bytes();
  return empty_view(spec).bytes();
}

Result<LoadedWeight> WeightSource::load(const WeightSpec& spec) const {
  LoadedWeight loaded;
  if (!dummy_) {
    loaded.view = *checkpoint_.find(spec.name);
    if (loaded.view.dtype != DType::kF8E4M3) return loaded;
    loaded.scales = *checkpoint_.find(scale_spec(spec).name);
    for (int64_t i = 0; i < loaded.scales.elems(); ++i) {
      float scale = 0;  // unaligned in the file
      std::memcpy(&scale, loaded.scales.data + static_cast<size_t>(i) * sizeof scale, sizeof scale);
      if (!std::isfinite(scale) || scale < 0) {
        return data_loss(checkpoint_.path() + ": tensor '" + scale_spec(spec).name + "' holds " +
                         std::to_string(scale) + " as a block scale; the file is damaged");
      }
    }
    return loaded;
  }
  loaded.view = empty_view(spec);
  loaded.storage = AlignedBuffer(loaded.view.bytes());
  loaded.view.data = loaded.storage.data();
  if (loaded.view.dtype != DType::kF8E4M3) {
    CAPSTAN_RETURN_IF_ERROR(fill_dummy(spec, loaded.view.dtype, seed_, loaded.storage.data()));
    return loaded;
  }
  WeightSpec scales = scale_spec(spec);
  loaded.scales.shape = std::move(scales.shape);
  loaded.scales.name = std::move(scales.name);
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
  if (!dummy_) checkpoint_.drop_pages(weight.view);
}

TensorView WeightSource::empty_view(const WeightSpec& spec) const {
  TensorView view;
  view.dtype = dummy_dtype(checkpoint_.config(), spec);
  view.shape = spec.shape;
  view.name = spec.name;
  return view;
}

}  // namespace capstan::model
