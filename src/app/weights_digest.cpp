#include "app/weights_digest.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

namespace capstan::app {
namespace {

// At most so many tensors are looked into, so many bytes of each: on a network disk that is a
// second, and two fine-tunings of one model differ in nearly all of them.
constexpr size_t kSampledTensors = 128;
constexpr size_t kSampleBytes = 4096;

/// FNV-1a: against accidents, not against malice.
class Hash {
 public:
  void add(const void* data, size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < bytes; ++i) value_ = (value_ ^ p[i]) * 0x100000001B3u;
  }
  void add(const std::string& text) { add(text.c_str(), text.size() + 1); }
  void add(int64_t number) { add(&number, sizeof(number)); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xCBF29CE484222325u;
};

}  // namespace

std::string weights_digest(const model::Checkpoint& checkpoint) {
  std::vector<std::string> names = checkpoint.tensor_names();
  std::sort(names.begin(), names.end());
  Hash hash;
  const size_t every = std::max<size_t>(1, names.size() / kSampledTensors);
  for (size_t i = 0; i < names.size(); ++i) {
    const TensorView* tensor = checkpoint.find(names[i]);
    if (tensor == nullptr) continue;
    hash.add(names[i]);
    hash.add(static_cast<int64_t>(tensor->dtype));
    for (const int64_t d : tensor->shape) hash.add(d);
    if (i % every != 0) continue;
    const size_t bytes = std::min(tensor->bytes(), kSampleBytes);
    hash.add(tensor->data + (tensor->bytes() - bytes) / 2, bytes);
  }
  char text[20];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash.value()));
  return text;
}

}  // namespace capstan::app
