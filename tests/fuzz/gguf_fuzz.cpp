// Any bytes as a GGUF file: reading the container, config, vocabulary and sampling defaults must
// end in a value or an Error, and accepted tensors must lie inside the bytes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "model/config_json.h"
#include "model/gguf_config.h"
#include "model/gguf_file.h"

namespace model = capstan::model;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto gguf = model::GgufFile::parse(bytes, "fuzz.gguf");
  if (!gguf.ok()) return 0;
  for (const capstan::TensorView& t : gguf->tensors()) {
    const size_t n = t.bytes();
    if (t.data < bytes.data() || n > static_cast<size_t>(bytes.data() + size - t.data)) {
      std::abort();
    }
    if (model::hf_tensor_name(t.name).empty() != t.name.empty()) std::abort();
  }
  (void)model::gguf_vocabulary(*gguf, "fuzz.gguf");
  (void)model::gguf_generation_defaults(*gguf, "fuzz.gguf");
  const auto json = model::gguf_config_json(*gguf, "fuzz.gguf");
  if (!json.ok()) return 0;
  auto config = model::config_from_json(*json, "fuzz.gguf");
  if (config.ok()) (void)model::apply_gguf_details(*gguf, "fuzz.gguf", *config);
  return 0;
}
