#include "comm/secret.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <stdexcept>

namespace capstan::comm {

Digest random_digest() {
  Digest out{};
  // Up to 256 bytes come whole, whatever signals arrive (getrandom(2)).
  if (getrandom(out.data(), out.size(), 0) != static_cast<ssize_t>(out.size())) {
    throw std::runtime_error("the kernel gave no random bytes");
  }
  return out;
}

Digest hmac(std::string_view key, std::string_view message) {
  Digest out{};
  unsigned int length = 0;
  if (HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
           reinterpret_cast<const unsigned char*>(message.data()), message.size(), out.data(),
           &length) == nullptr ||
      length != out.size()) {
    throw std::runtime_error("HMAC-SHA256 failed");
  }
  return out;
}

bool equal(const Digest& a, const Digest& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

std::string_view view(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

std::string hex(std::string_view bytes) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  std::string out;
  out.reserve(2 * bytes.size());
  for (const char c : bytes) {
    out += kDigits[static_cast<uint8_t>(c) >> 4];
    out += kDigits[static_cast<uint8_t>(c) & 15];
  }
  return out;
}

std::string control_key(std::string_view token, std::string_view dist_init_addr) {
  // Two labels: a token that reads like an address is not the key of that address.
  const Digest key = token.empty() ? hmac("capstan group address", dist_init_addr)
                                   : hmac("capstan group token", token);
  return std::string(view(key));
}

std::string link_key(std::string_view control_key, std::string_view session) {
  return std::string(view(hmac(control_key, "links of " + std::string(session))));
}

}  // namespace capstan::comm
