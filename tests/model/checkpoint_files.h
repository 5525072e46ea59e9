// Writes checkpoints byte by byte, good ones and damaged ones, into a directory of the test.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "tensor/tensor.h"

namespace capstan::model {

class TempDir {
 public:
  TempDir() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "capstan_model_XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) ADD_FAILURE() << "mkdtemp " << pattern;
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string write(const std::string& name, const std::string& bytes) const {
    std::ofstream(file(name), std::ios::binary) << bytes;
    return file(name);
  }

 private:
  std::string path_;
};

template <class T>
std::string raw(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}

/// header length, header, data; the header is taken as it is.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  return raw(uint64_t{header.size()}) + header + data;
}

struct FileTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first
  std::string bytes;
};

/// A tensor of floats, value(i) for element i.
template <class F>
FileTensor float_tensor(std::string name, std::vector<int64_t> shape, F&& value) {
  FileTensor t{std::move(name), DType::kF32, std::move(shape), {}};
  int64_t elems = 1;
  for (const int64_t d : t.shape) elems *= d;
  for (int64_t i = 0; i < elems; ++i) t.bytes += raw(static_cast<float>(value(i)));
  return t;
}

inline std::string safetensors_file(const std::vector<FileTensor>& tensors) {
  std::string header = "{\"__metadata__\":{\"format\":\"pt\"}", data;
  for (const FileTensor& t : tensors) {
    header += ",\"" + t.name + "\":{\"dtype\":\"" + std::string(dtype_info(t.dtype).name) +
              "\",\"shape\":[";
    for (size_t i = 0; i < t.shape.size(); ++i) {
      header += (i == 0 ? "" : ",") + std::to_string(t.shape[i]);
    }
    header += "],\"data_offsets\":[" + std::to_string(data.size()) + ",";
    data += t.bytes;
    header += std::to_string(data.size()) + "]}";
  }
  header += "}";
  while (header.size() % 8 != 0) header += ' ';
  return safetensors_bytes(header, data);
}

/// Composes a GGUF file; counts can be overridden to lie.
class GgufWriter {
 public:
  static std::string str(const std::string& s) { return raw(uint64_t{s.size()}) + s; }

  GgufWriter& raw_key(const std::string& key, uint32_t type, const std::string& payload) {
    keys_ += str(key) + raw(type) + payload;
    ++key_count;
    return *this;
  }
  GgufWriter& u32(const std::string& key, uint32_t v) { return raw_key(key, 4, raw(v)); }
  GgufWriter& f32(const std::string& key, float v) { return raw_key(key, 6, raw(v)); }
  GgufWriter& boolean(const std::string& key, bool v) {
    return raw_key(key, 7, raw(static_cast<uint8_t>(v)));
  }
  GgufWriter& string(const std::string& key, const std::string& v) {
    return raw_key(key, 8, str(v));
  }
  GgufWriter& strings(const std::string& key, const std::vector<std::string>& v) {
    std::string payload = raw(uint32_t{8}) + raw(uint64_t{v.size()});
    for (const std::string& s : v) payload += str(s);
    return raw_key(key, 9, payload);
  }
  GgufWriter& i32s(const std::string& key, const std::vector<int32_t>& v) {
    std::string payload = raw(uint32_t{5}) + raw(uint64_t{v.size()});
    for (const int32_t i : v) payload += raw(i);
    return raw_key(key, 9, payload);
  }
  /// `ne` is fastest first, as in the file.
  GgufWriter& info(const std::string& name, const std::vector<uint64_t>& ne, uint32_t type,
                   uint64_t offset) {
    infos_ += str(name) + raw(static_cast<uint32_t>(ne.size()));
    for (const uint64_t d : ne) infos_ += raw(d);
    infos_ += raw(type) + raw(offset);
    ++tensor_count;
    return *this;
  }
  GgufWriter& tensor(const FileTensor& t, uint32_t type) {
    info(t.name, {t.shape.rbegin(), t.shape.rend()}, type, data.size());
    data += t.bytes;
    data.resize((data.size() + 31) / 32 * 32, '\0');
    return *this;
  }

  std::string bytes(size_t alignment = 32) const {
    std::string out = "GGUF" + raw(version) + raw(tensor_count) + raw(key_count) + keys_ + infos_;
    out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
    return out + data;
  }

  uint32_t version = 3;
  uint64_t tensor_count = 0, key_count = 0;
  std::string data;

 private:
  std::string keys_, infos_;
};

/// EXPECT that a Status or Result failed with this code and that the message has all the parts.
template <class R>
void expect_error(const R& result, ErrorCode code, const std::vector<std::string>& parts) {
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(static_cast<int>(result.error().code), static_cast<int>(code))
      << result.error().message;
  for (const std::string& part : parts) {
    EXPECT_NE(result.error().message.find(part), std::string::npos)
        << "no '" << part << "' in: " << result.error().message;
  }
}

}  // namespace capstan::model
