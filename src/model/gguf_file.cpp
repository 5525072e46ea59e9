#include "model/gguf_file.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "model/printable.h"

namespace capstan::model {
namespace {

constexpr uint32_t kMaxDims = 4;  // GGML_MAX_DIMS
constexpr uint64_t kDefaultAlignment = 32;

/// Bytes of one number of this type; 0 for strings, arrays and unknown types.
size_t number_bytes(GgufType type) {
  switch (type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return 1;
    case GgufType::kU16:
    case GgufType::kI16:
      return 2;
    case GgufType::kU32:
    case GgufType::kI32:
    case GgufType::kF32:
      return 4;
    case GgufType::kU64:
    case GgufType::kI64:
    case GgufType::kF64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      return 0;
  }
  return 0;
}

template <class T>
T load(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

GgufScalar load_number(GgufType type, const std::byte* p) {
  switch (type) {
    case GgufType::kU8:
      return uint64_t{load<uint8_t>(p)};
    case GgufType::kI8:
      return int64_t{load<int8_t>(p)};
    case GgufType::kU16:
      return uint64_t{load<uint16_t>(p)};
    case GgufType::kI16:
      return int64_t{load<int16_t>(p)};
    case GgufType::kU32:
      return uint64_t{load<uint32_t>(p)};
    case GgufType::kI32:
      return int64_t{load<int32_t>(p)};
    case GgufType::kF32:
      return double{load<float>(p)};
    case GgufType::kBool:
      return load<uint8_t>(p) != 0;
    case GgufType::kU64:
      return load<uint64_t>(p);
    case GgufType::kI64:
      return load<int64_t>(p);
    case GgufType::kF64:
      return load<double>(p);
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return uint64_t{0};
}

/// ggml tensor types by their number in the file; `dtype` is empty for those not supported here.
struct GgmlType {
  std::string_view name;
  std::optional<DType> dtype;
};

std::optional<GgmlType> ggml_type(uint32_t id) {
  switch (id) {
    case 0:
      return GgmlType{"F32", DType::kF32};
    case 1:
      return GgmlType{"F16", DType::kF16};
    case 2:
      return GgmlType{"Q4_0", DType::kQ4_0};
    case 3:
      return GgmlType{"Q4_1", DType::kQ4_1};
    case 6:
      return GgmlType{"Q5_0", DType::kQ5_0};
    case 7:
      return GgmlType{"Q5_1", DType::kQ5_1};
    case 8:
      return GgmlType{"Q8_0", DType::kQ8_0};
    case 12:
      return GgmlType{"Q4_K", DType::kQ4_K};
    case 13:
      return GgmlType{"Q5_K", DType::kQ5_K};
    case 14:
      return GgmlType{"Q6_K", DType::kQ6_K};
    case 26:
      return GgmlType{"I32", DType::kI32};
    case 27:
      return GgmlType{"I64", DType::kI64};
    case 30:
      return GgmlType{"BF16", DType::kBF16};
    default:
      break;
  }
  constexpr std::pair<uint32_t, std::string_view> kUnsupported[] = {
      {4, "Q4_2"},    {5, "Q4_3"},     {9, "Q8_1"},    {10, "Q2_K"},    {11, "Q3_K"},
      {15, "Q8_K"},   {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"},
      {20, "IQ4_NL"}, {21, "IQ3_S"},   {22, "IQ2_S"},  {23, "IQ4_XS"},  {24, "I8"},
      {25, "I16"},    {28, "F64"},     {29, "IQ1_M"},  {34, "TQ1_0"},   {35, "TQ2_0"},
      {39, "MXFP4"},  {40, "NVFP4"},   {41, "Q1_0"}};
  for (const auto& [number, name] : kUnsupported) {
    if (number == id) return GgmlType{name, std::nullopt};
  }
  return std::nullopt;
}

/// Reads forward through the file; every read names what it was for.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& file) : bytes_(bytes), file_(file) {}

  size_t pos() const { return pos_; }
  size_t left() const { return bytes_.size() - pos_; }

  Result<const std::byte*> take(uint64_t n, std::string_view what) {
    if (n > left()) {
      return data_loss(file_ + ": truncated: " + std::string(what) + " needs " + std::to_string(n) +
                       " bytes at offset " + std::to_string(pos_) + ", but only " +
                       std::to_string(left()) + " remain");
    }
    const std::byte* p = bytes_.data() + pos_;
    pos_ += static_cast<size_t>(n);
    return p;
  }

  template <class T>
  Result<T> read(std::string_view what) {
    CAPSTAN_ASSIGN(const std::byte* p, take(sizeof(T), what));
    return load<T>(p);
  }

  Result<std::string_view> string(std::string_view what) {
    CAPSTAN_ASSIGN(const uint64_t n, read<uint64_t>(what));
    CAPSTAN_ASSIGN(const std::byte* p, take(n, what));
    return std::string_view(reinterpret_cast<const char*>(p), static_cast<size_t>(n));
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& file_;
  size_t pos_ = 0;
};

Result<GgufArray> read_array(Cursor& cursor, const std::string& what, const std::string& file) {
  GgufArray array;
  CAPSTAN_ASSIGN(const uint32_t type, cursor.read<uint32_t>(what));
  CAPSTAN_ASSIGN(array.count, cursor.read<uint64_t>(what));
  array.type = static_cast<GgufType>(type);
  if (array.type == GgufType::kString) {
    // A string takes at least its 8-byte length, which bounds the table before it is allocated.
    if (array.count > cursor.left() / sizeof(uint64_t)) {
      return data_loss(file + ": " + what + " claims " + std::to_string(array.count) +
                       " strings, more than the " + std::to_string(cursor.left()) +
                       " bytes left in the file can hold");
    }
    array.strings.reserve(static_cast<size_t>(array.count));
    for (uint64_t i = 0; i < array.count; ++i) {
      CAPSTAN_ASSIGN(const std::string_view s, cursor.string(what));
      array.strings.push_back(s);
    }
    return array;
  }
  if (array.type == GgufType::kArray) {
    return data_loss(file + ": " + what + " is an array of arrays, which GGUF files do not use");
  }
  const size_t width = number_bytes(array.type);
  if (width == 0) {
    return data_loss(file + ": " + what + " has elements of unknown type " + std::to_string(type));
  }
  if (array.count > cursor.left() / width) {
    return data_loss(file + ": truncated: " + what + " claims " + std::to_string(array.count) +
                     " elements of " + std::to_string(width) + " bytes, but only " +
                     std::to_string(cursor.left()) + " bytes remain");
  }
  CAPSTAN_ASSIGN(array.data, cursor.take(array.count * width, what));
  return array;
}

Result<GgufValue> read_value(Cursor& cursor, const std::string& what, const std::string& file) {
  CAPSTAN_ASSIGN(const uint32_t type_number, cursor.read<uint32_t>(what));
  const auto type = static_cast<GgufType>(type_number);
  if (type == GgufType::kString) {
    CAPSTAN_ASSIGN(const std::string_view s, cursor.string(what));
    return GgufValue(GgufScalar(s));
  }
  if (type == GgufType::kArray) {
    CAPSTAN_ASSIGN(GgufArray array, read_array(cursor, what, file));
    return GgufValue(std::move(array));
  }
  const size_t width = number_bytes(type);
  if (width == 0) {
    return data_loss(file + ": " + what + " has unknown type " + std::to_string(type_number));
  }
  CAPSTAN_ASSIGN(const std::byte* p, cursor.take(width, what));
  return GgufValue(load_number(type, p));
}

struct TensorInfo {
  TensorView view;  // data is set once the start of the data area is known
  uint64_t offset = 0, bytes = 0;
};

Result<TensorInfo> read_tensor_info(Cursor& cursor, uint64_t index, const std::string& file) {
  CAPSTAN_ASSIGN(const std::string_view name,
                 cursor.string("name of tensor " + std::to_string(index)));
  const std::string what = "tensor " + printable(name);
  CAPSTAN_ASSIGN(const uint32_t n_dims, cursor.read<uint32_t>(what));
  if (n_dims > kMaxDims) {
    return data_loss(file + ": " + what + " has " + std::to_string(n_dims) +
                     " dimensions; the format allows " + std::to_string(kMaxDims));
  }
  TensorInfo info;
  info.view.name = std::string(name);
  int64_t elems = 1;
  int64_t extent = 1;  // with empty dimensions as 1, so that no order of multiplying overflows
  for (uint32_t i = 0; i < n_dims; ++i) {
    CAPSTAN_ASSIGN(const uint64_t dim, cursor.read<uint64_t>(what));
    info.view.shape.insert(info.view.shape.begin(), static_cast<int64_t>(dim));
    if (dim > static_cast<uint64_t>(INT64_MAX) ||
        __builtin_mul_overflow(extent, std::max<int64_t>(static_cast<int64_t>(dim), 1), &extent)) {
      return data_loss(file + ": " + what + " has a dimension of " + std::to_string(dim) +
                       "; its element count overflows");
    }
    elems *= static_cast<int64_t>(dim);
  }
  CAPSTAN_ASSIGN(const uint32_t type_number, cursor.read<uint32_t>(what));
  CAPSTAN_ASSIGN(info.offset, cursor.read<uint64_t>(what));
  const std::optional<GgmlType> type = ggml_type(type_number);
  if (!type) {
    return data_loss(file + ": " + what + " has unknown ggml type " + std::to_string(type_number));
  }
  if (!type->dtype) {
    return invalid_argument(file + ": " + what + " is stored as ggml type " +
                            std::string(type->name) +
                            ", which is not supported; use a file in F32, F16, BF16, Q8_0, Q4_0, "
                            "Q4_1, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K");
  }
  info.view.dtype = *type->dtype;
  const DTypeInfo dtype = dtype_info(info.view.dtype);
  const int64_t row = info.view.shape.empty() ? 1 : info.view.shape.back();
  if (row % dtype.block_elems != 0) {
    return data_loss(file + ": " + what + " has rows of " + std::to_string(row) +
                     " elements, not a multiple of the " + std::to_string(dtype.block_elems) +
                     "-element blocks of " + std::string(dtype.name));
  }
  if (__builtin_mul_overflow(static_cast<uint64_t>(elems / dtype.block_elems),
                             static_cast<uint64_t>(dtype.block_bytes), &info.bytes)) {
    return data_loss(file + ": " + what + " of shape " + shape_string(info.view.shape) +
                     " overflows 64-bit sizes");
  }
  return info;
}

/// Places the tensors in the data area and checks that they lie inside it without overlap.
Status place_tensors(std::vector<TensorInfo>& infos, std::span<const std::byte> data,
                     uint64_t alignment, const std::string& file) {
  for (TensorInfo& info : infos) {
    const std::string what = "tensor " + printable(info.view.name);
    if (info.offset % alignment != 0) {
      return data_loss(file + ": " + what + " starts at offset " + std::to_string(info.offset) +
                       ", not aligned to " + std::to_string(alignment));
    }
    if (info.offset > data.size() || info.bytes > data.size() - info.offset) {
      return data_loss(file + ": truncated: " + what + " of " + std::to_string(info.bytes) +
                       " bytes at data offset " + std::to_string(info.offset) +
                       " ends beyond the data area of " + std::to_string(data.size()) + " bytes");
    }
    info.view.data = data.data() + info.offset;
  }
  std::vector<const TensorInfo*> order;
  order.reserve(infos.size());
  for (const TensorInfo& info : infos) order.push_back(&info);
  std::sort(order.begin(), order.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return a->offset != b->offset ? a->offset < b->offset : a->bytes < b->bytes;
  });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
      return data_loss(file + ": tensors " + printable(order[i - 1]->view.name) + " and " +
                       printable(order[i]->view.name) + " overlap at data offset " +
                       std::to_string(order[i]->offset));
    }
  }
  return {};
}

}  // namespace

GgufScalar GgufArray::at(uint64_t i) const {
  if (type == GgufType::kString) return strings[static_cast<size_t>(i)];
  return load_number(type, data + i * number_bytes(type));
}

std::optional<int64_t> scalar_integer(const GgufScalar& scalar) {
  if (const auto* i = std::get_if<int64_t>(&scalar)) return *i;
  if (const auto* u = std::get_if<uint64_t>(&scalar)) {
    if (*u <= static_cast<uint64_t>(INT64_MAX)) return static_cast<int64_t>(*u);
  }
  return std::nullopt;
}

std::optional<double> scalar_number(const GgufScalar& scalar) {
  if (const auto* d = std::get_if<double>(&scalar)) return *d;
  if (const auto* i = std::get_if<int64_t>(&scalar)) return static_cast<double>(*i);
  if (const auto* u = std::get_if<uint64_t>(&scalar)) return static_cast<double>(*u);
  return std::nullopt;
}

Result<GgufFile> GgufFile::parse(std::span<const std::byte> bytes, const std::string& file) {
  GgufFile gguf;
  gguf.file_ = file;
  Cursor cursor(bytes, file);
  CAPSTAN_ASSIGN(const std::byte* magic, cursor.take(4, "the magic number"));
  if (std::memcmp(magic, "GGUF", 4) != 0) {
    return data_loss(file + ": not a GGUF file: it starts with " +
                     printable({reinterpret_cast<const char*>(magic), 4}) + " instead of 'GGUF'");
  }
  CAPSTAN_ASSIGN(const uint32_t version, cursor.read<uint32_t>("the version"));
  if (version == 0x02000000 || version == 0x03000000) {
    return invalid_argument(file +
                            ": big-endian GGUF files are not supported; convert the file "
                            "with gguf_convert_endian.py from the gguf package");
  }
  if (version != 2 && version != 3) {
    return invalid_argument(file + ": GGUF version " + std::to_string(version) +
                            " is not supported; versions 2 and 3 are");
  }
  CAPSTAN_ASSIGN(const uint64_t tensor_count, cursor.read<uint64_t>("the tensor count"));
  CAPSTAN_ASSIGN(const uint64_t key_count, cursor.read<uint64_t>("the key count"));

  for (uint64_t i = 0; i < key_count; ++i) {
    CAPSTAN_ASSIGN(const std::string_view key, cursor.string("metadata key " + std::to_string(i) +
                                                             " of " + std::to_string(key_count)));
    const std::string what = "metadata key " + printable(key);
    CAPSTAN_ASSIGN(GgufValue value, read_value(cursor, what, file));
    if (!gguf.metadata_.emplace(key, std::move(value)).second) {
      return data_loss(file + ": " + what + " occurs twice");
    }
  }

  uint64_t alignment = kDefaultAlignment;
  CAPSTAN_ASSIGN(const std::optional<int64_t> stored, gguf.integer("general.alignment"));
  if (stored) {
    if (*stored <= 0 || *stored > INT32_MAX || (*stored & (*stored - 1)) != 0) {
      return data_loss(file + ": general.alignment is " + std::to_string(*stored) +
                       "; it must be a power of two");
    }
    alignment = static_cast<uint64_t>(*stored);
  }

  std::vector<TensorInfo> infos;  // grows with what is really there, not with tensor_count
  std::unordered_set<std::string> names;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    CAPSTAN_ASSIGN(TensorInfo info, read_tensor_info(cursor, i, file));
    if (!names.insert(info.view.name).second) {
      return data_loss(file + ": tensor " + printable(info.view.name) + " occurs twice");
    }
    infos.push_back(std::move(info));
  }

  const uint64_t data_start = (uint64_t{cursor.pos()} + alignment - 1) / alignment * alignment;
  // A file without tensors (a vocabulary) may end before the padding does.
  const auto data = data_start <= bytes.size() ? bytes.subspan(static_cast<size_t>(data_start))
                                               : std::span<const std::byte>();
  CAPSTAN_RETURN_IF_ERROR(place_tensors(infos, data, alignment, file));
  gguf.tensors_.reserve(infos.size());
  for (TensorInfo& info : infos) gguf.tensors_.push_back(std::move(info.view));
  return gguf;
}

const GgufValue* GgufFile::find(const std::string& key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

Error GgufFile::wrong_type(const std::string& key, const char* wanted) const {
  return data_loss(file_ + ": metadata key " + printable(key) + " is not " + wanted);
}

Result<std::optional<int64_t>> GgufFile::integer(const std::string& key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<int64_t>();
  const auto* scalar = std::get_if<GgufScalar>(value);
  const std::optional<int64_t> i = scalar ? scalar_integer(*scalar) : std::nullopt;
  if (!i) return wrong_type(key, "an integer");
  return i;
}

Result<std::optional<double>> GgufFile::number(const std::string& key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<double>();
  const auto* scalar = std::get_if<GgufScalar>(value);
  const std::optional<double> d = scalar ? scalar_number(*scalar) : std::nullopt;
  if (!d) return wrong_type(key, "a number");
  return d;
}

Result<std::optional<bool>> GgufFile::boolean(const std::string& key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<bool>();
  const auto* scalar = std::get_if<GgufScalar>(value);
  const bool* b = scalar ? std::get_if<bool>(scalar) : nullptr;
  if (b == nullptr) return wrong_type(key, "a boolean");
  return std::optional<bool>(*b);
}

Result<std::optional<std::string_view>> GgufFile::string(const std::string& key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return std::optional<std::string_view>();
  const auto* scalar = std::get_if<GgufScalar>(value);
  const auto* s = scalar ? std::get_if<std::string_view>(scalar) : nullptr;
  if (s == nullptr) return wrong_type(key, "a string");
  return std::optional<std::string_view>(*s);
}

Result<const GgufArray*> GgufFile::array(const std::string& key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) return static_cast<const GgufArray*>(nullptr);
  const auto* a = std::get_if<GgufArray>(value);
  if (a == nullptr) return wrong_type(key, "an array");
  return a;
}

}  // namespace capstan::model
