// Any bytes as a safetensors file, and any text as config.json: a value or an Error, never a crash;
// accepted tensors must lie inside the bytes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>

#include "model/config_json.h"
#include "model/json.h"
#include "model/safetensors.h"

namespace model = capstan::model;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto tensors = model::parse_safetensors(bytes, "fuzz.safetensors");
  if (tensors.ok()) {
    for (const capstan::TensorView& t : *tensors) {
      const size_t n = t.bytes();
      if (t.data < bytes.data() || n > static_cast<size_t>(bytes.data() + size - t.data)) {
        std::abort();
      }
    }
  }
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = model::parse_json_object(text, "config.json");
  if (!json.ok()) return 0;
  auto config = model::config_from_json(*json, "config.json");
  if (config.ok()) {
    (void)model::generation_defaults_from_json(*json, "generation_config.json", *config);
  }
  return 0;
}
