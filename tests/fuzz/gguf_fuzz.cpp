// Any bytes as a GGUF file: reading the container, config, vocabulary and sampling defaults and
// making a tokenizer of the vocabulary must end in a value or an Error, and accepted tensors must
// lie inside the bytes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "model/config_json.h"
#include "model/gguf_config.h"
#include "model/gguf_file.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace model = capstan::model;

namespace {

// Whatever the vocabulary, ids are within it and decoded text is UTF-8.
void use_tokenizer(const capstan::text::GgufVocabulary& vocabulary) {
  const auto tokenizer = capstan::text::Tokenizer::from_gguf(vocabulary);
  if (!tokenizer.ok()) {
    if (tokenizer.error().code == capstan::ErrorCode::kInternal) std::abort();  // a panic inside
    return;
  }
  const auto ids = (*tokenizer)->encode("ab a\xC3\xA9<s>1 \n", true);
  if (!ids.ok()) return;
  for (const int32_t id : *ids) {
    if (id < 0 || id >= (*tokenizer)->vocab_size()) std::abort();
    (void)(*tokenizer)->token_bytes(id);
  }
  const auto text = (*tokenizer)->decode(*ids, false);
  if (text.ok() && capstan::text::first_invalid_utf8(*text)) std::abort();
}

}  // namespace

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
    const auto views = model::hf_tensors(t, "fuzz.gguf");
    if (!views.ok()) continue;
    for (const auto& [name, view] : *views) {
      if (view.data < t.data || view.data + view.bytes() > t.data + n) std::abort();
    }
  }
  const auto vocabulary = model::gguf_vocabulary(*gguf, "fuzz.gguf");
  if (vocabulary.ok()) use_tokenizer(*vocabulary);
  (void)model::gguf_generation_defaults(*gguf, "fuzz.gguf");
  const auto json = model::gguf_config_json(*gguf, "fuzz.gguf");
  if (!json.ok()) return 0;
  auto config = model::config_from_json(*json, "fuzz.gguf");
  if (config.ok()) (void)model::apply_gguf_details(*gguf, "fuzz.gguf", *config);
  return 0;
}
