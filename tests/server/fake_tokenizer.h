// One token per byte (ids 0-255) and a few special ones: what a client sees is easy to compute.
#pragma once

#include <array>
#include <string>

#include "text/tokenizer.h"

namespace capstan::server::testing {

class FakeTokenizer : public text::Tokenizer {
 public:
  static constexpr int32_t kBos = 256, kEos = 257, kUser = 258, kAssistant = 259, kVocab = 300;

  FakeTokenizer() {
    for (int i = 0; i < 256; ++i)
      bytes_[static_cast<size_t>(i)] = std::string(1, static_cast<char>(i));
    for (int i = 256; i < kVocab; ++i)
      bytes_[static_cast<size_t>(i)] = "<|" + std::to_string(i) + "|>";
    bytes_[kBos] = "<s>";
    bytes_[kEos] = "</s>";
    bytes_[kUser] = "<|user|>";
    bytes_[kAssistant] = "<|assistant|>";
  }

  Result<std::vector<int32_t>> encode(std::string_view utf8, bool add_special) const override {
    std::vector<int32_t> ids;
    if (add_special) ids.push_back(kBos);
    while (!utf8.empty()) {
      int32_t id = static_cast<unsigned char>(utf8[0]);
      size_t length = 1;
      for (int32_t special = kBos; utf8[0] == '<' && special <= kAssistant; ++special) {
        if (utf8.starts_with(bytes_[static_cast<size_t>(special)])) {
          id = special;
          length = bytes_[static_cast<size_t>(special)].size();
        }
      }
      ids.push_back(id);
      utf8.remove_prefix(length);
    }
    return ids;
  }
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (!skip_special || !is_special(id)) text += token_bytes(id);
    }
    return text;
  }
  std::string_view token_bytes(int32_t id) const override {
    return id >= 0 && id < kVocab ? std::string_view(bytes_[static_cast<size_t>(id)])
                                  : std::string_view();
  }
  bool is_special(int32_t id) const override { return id >= 256; }
  std::optional<int32_t> id_of(std::string_view token) const override {
    for (int32_t id = 0; id < kVocab; ++id) {
      if (bytes_[static_cast<size_t>(id)] == token) return id;
    }
    return std::nullopt;
  }
  int32_t vocab_size() const override { return kVocab; }
  int32_t bos_id() const override { return kBos; }
  int32_t eos_id() const override { return kEos; }
  const std::string& bos_token() const override { return bytes_[kBos]; }
  const std::string& eos_token() const override { return bytes_[kEos]; }
  const std::string& chat_template() const override { return template_; }

 private:
  std::array<std::string, kVocab> bytes_;
  std::string template_;
};

}  // namespace capstan::server::testing
