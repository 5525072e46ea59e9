// Reads the tokenizer keys of a GGUF file (version 3, little endian): just enough for these tests,
// which may not use the model room.
#pragma once

#include <cstring>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace capstan::text {

class GgufKeys {
 public:
  explicit GgufKeys(const std::string& path) : file_(path, std::ios::binary) {
    if (!file_ || number<uint32_t>() != 0x46554747) throw std::runtime_error("not GGUF: " + path);
    number<uint32_t>();  // version
    number<uint64_t>();  // tensors
    const auto keys = number<uint64_t>();
    for (uint64_t i = 0; i < keys; ++i) {
      const std::string key = text();
      const auto type = number<uint32_t>();
      if (type == 9) {
        const auto element = number<uint32_t>();
        const auto count = number<uint64_t>();
        for (uint64_t j = 0; j < count; ++j) value(key, element);
      } else {
        value(key, type);
      }
    }
  }

  GgufVocabulary vocabulary() const {
    GgufVocabulary v;
    const auto one = [&](const std::string& key) {
      const auto found = strings_.find("tokenizer." + key);
      return found == strings_.end() ? std::string() : found->second.front();
    };
    const auto integer = [&](const std::string& key) -> std::optional<int64_t> {
      const auto found = integers_.find("tokenizer.ggml." + key);
      if (found == integers_.end()) return std::nullopt;
      return found->second.front();
    };
    v.model = one("ggml.model");
    v.pre = one("ggml.pre");
    v.chat_template = one("chat_template");
    const auto list = [](const auto& map, const char* key) {
      const auto found = map.find(key);
      return found == map.end() ? typename std::decay_t<decltype(map)>::mapped_type()
                                : found->second;
    };
    v.tokens = list(strings_, "tokenizer.ggml.tokens");
    v.merges = list(strings_, "tokenizer.ggml.merges");
    for (const int64_t type : list(integers_, "tokenizer.ggml.token_type")) {
      v.token_types.push_back(static_cast<int32_t>(type));
    }
    v.bos_id = static_cast<int32_t>(integer("bos_token_id").value_or(-1));
    v.eos_id = static_cast<int32_t>(integer("eos_token_id").value_or(-1));
    v.pad_id = static_cast<int32_t>(integer("padding_token_id").value_or(-1));
    if (const auto add = integer("add_bos_token")) v.add_bos = *add != 0;
    if (const auto add = integer("add_eos_token")) v.add_eos = *add != 0;
    return v;
  }

 private:
  template <class T>
  T number() {
    char raw[sizeof(T)];
    if (!file_.read(raw, sizeof raw)) throw std::runtime_error("GGUF file is cut short");
    T result;
    std::memcpy(&result, raw, sizeof raw);
    return result;
  }

  std::string text() {
    std::string result(number<uint64_t>(), '\0');
    file_.read(result.data(), static_cast<std::streamsize>(result.size()));
    return result;
  }

  void value(const std::string& key, uint32_t type) {
    static constexpr int kSize[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == 8) {
      strings_[key].push_back(text());
      return;
    }
    char raw[8] = {};
    file_.read(raw, kSize[type]);
    int64_t result;
    std::memcpy(&result, raw, sizeof result);
    integers_[key].push_back(result);
  }

  std::ifstream file_;
  std::map<std::string, std::vector<std::string>> strings_;
  std::map<std::string, std::vector<int64_t>> integers_;
};

}  // namespace capstan::text
