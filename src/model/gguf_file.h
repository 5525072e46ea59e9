// The GGUF container (versions 2 and 3, little endian): metadata and tensor directory.
//
// Everything in the file is untrusted: each read is checked against the end of the file, and no
// allocation is larger than what the bytes present can justify.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "tensor/tensor.h"

namespace capstan::model {

/// Value types of metadata, numbered as in the file.
enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

/// One scalar; integers of every width are held in 64 bits.
using GgufScalar = std::variant<uint64_t, int64_t, double, bool, std::string_view>;

/// A homogeneous array. Strings are listed; numbers stay in the file and are decoded by at().
struct GgufArray {
  GgufType type = GgufType::kU8;
  uint64_t count = 0;
  const std::byte* data = nullptr;        // numbers, unaligned
  std::vector<std::string_view> strings;  // filled for kString only

  GgufScalar at(uint64_t i) const;
};

using GgufValue = std::variant<GgufScalar, GgufArray>;

class GgufFile {
 public:
  /// `bytes` is the whole file and must outlive the result; `file` names it in errors (kDataLoss
  /// for damage, kInvalidArgument for valid files of a kind that is not supported).
  static Result<GgufFile> parse(std::span<const std::byte> bytes, const std::string& file);

  const std::map<std::string_view, GgufValue>& metadata() const { return metadata_; }
  /// Names as in the file; shapes outermost dimension first (reversed against the file).
  const std::vector<TensorView>& tensors() const { return tensors_; }

  /// Typed lookups; a key that is absent gives nullopt, one of another type an error naming it.
  Result<std::optional<int64_t>> integer(const std::string& key) const;
  Result<std::optional<double>> number(const std::string& key) const;
  Result<std::optional<bool>> boolean(const std::string& key) const;
  Result<std::optional<std::string_view>> string(const std::string& key) const;
  Result<const GgufArray*> array(const std::string& key) const;  // null when absent

 private:
  const GgufValue* find(const std::string& key) const;
  Error wrong_type(const std::string& key, const char* wanted) const;

  std::string file_;
  std::map<std::string_view, GgufValue> metadata_;
  std::vector<TensorView> tensors_;
};

/// An integer held by a scalar, if it fits int64.
std::optional<int64_t> scalar_integer(const GgufScalar& scalar);
std::optional<double> scalar_number(const GgufScalar& scalar);

}  // namespace capstan::model
