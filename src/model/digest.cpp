#include "model/digest.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace capstan::model {
namespace {

constexpr size_t kSampledTensors = 1024;
constexpr size_t kSampleBytes = 64;

/// Everything goes in with its length before it, so that parts can not run into each other.
class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new(), &EVP_MD_CTX_free) {
    EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
  }
  void add(const void* data, size_t bytes) {
    number(static_cast<int64_t>(bytes));
    EVP_DigestUpdate(context_.get(), data, bytes);
  }
  void text(std::string_view s) { add(s.data(), s.size()); }
  void number(int64_t n) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; ++i)
      bytes[i] = static_cast<unsigned char>(static_cast<uint64_t>(n) >> 8 * i);
    EVP_DigestUpdate(context_.get(), bytes, sizeof bytes);
  }
  std::string hex() {
    unsigned char bytes[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_DigestFinal_ex(context_.get(), bytes, &size);
    constexpr char kDigits[] = "0123456789abcdef";
    std::string out;
    for (unsigned int i = 0; i < size; ++i) {
      out += kDigits[bytes[i] >> 4];
      out += kDigits[bytes[i] & 15];
    }
    return out;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
};

}  // namespace

std::string checkpoint_digest(std::string_view config, const TensorTable& tensors) {
  Digest digest;
  digest.text(config);
  const std::vector<std::string> names = tensors.names();
  const size_t stride = (names.size() + kSampledTensors - 1) / kSampledTensors;
  for (size_t i = 0; i < names.size(); ++i) {
    const TensorView& t = *tensors.find(names[i]);
    digest.text(names[i]);
    digest.text(dtype_info(t.dtype).name);
    digest.number(static_cast<int64_t>(t.shape.size()));
    for (const int64_t d : t.shape) digest.number(d);
    if (i % stride != 0) continue;
    const size_t sample = std::min(kSampleBytes, t.bytes()), last = t.bytes() - sample;
    for (const size_t at : {size_t{0}, last / 2, last}) digest.add(t.data + at, sample);
  }
  return digest.hex();
}

}  // namespace capstan::model
