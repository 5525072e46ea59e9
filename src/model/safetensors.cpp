#include "model/safetensors.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <cstring>
#include <optional>

#include "model/json.h"
#include "model/printable.h"

namespace capstan::model {
namespace {

namespace json = boost::json;

/// The reference library's limit; the header of a 671B shard is below 1 MB.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

constexpr DType kKnown[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3,
                            DType::kI64, DType::kI32, DType::kU8,   DType::kBool};

std::optional<DType> dtype_by_name(std::string_view name) {
  for (const DType t : kKnown) {
    if (dtype_info(t).name == name) return t;
  }
  return std::nullopt;
}

struct Entry {
  TensorView view;
  uint64_t begin = 0, end = 0;  // in the data area
};

std::optional<uint64_t> as_u64(const json::value& v) {
  if (v.is_uint64()) return v.get_uint64();
  if (v.is_int64() && v.get_int64() >= 0) return static_cast<uint64_t>(v.get_int64());
  return std::nullopt;
}

Result<Entry> parse_entry(std::string_view name, const json::value& value,
                          const std::string& file) {
  const std::string what = file + ": tensor " + printable(name);
  const json::object* object = value.if_object();
  if (object == nullptr) return data_loss(what + ": its header entry is not an object");
  Entry entry;
  entry.view.name = std::string(name);

  const json::value* dtype = object->if_contains("dtype");
  if (dtype == nullptr || !dtype->is_string()) return data_loss(what + ": no dtype string");
  const std::optional<DType> known = dtype_by_name(dtype->get_string());
  if (!known) {
    return invalid_argument(what + ": dtype " + printable(dtype->get_string()) +
                            " is not supported; use F32, F16 or BF16");
  }
  entry.view.dtype = *known;

  const json::value* shape = object->if_contains("shape");
  if (shape == nullptr || !shape->is_array()) return data_loss(what + ": no shape array");
  uint64_t elems = 1;
  int64_t extent = 1;  // with empty dimensions as 1, so that no order of multiplying overflows
  for (const json::value& dim : shape->get_array()) {
    const std::optional<uint64_t> d = as_u64(dim);
    if (!d) {
      return data_loss(what + ": dimension " + json_excerpt(dim) + " is not a natural number");
    }
    if (*d > static_cast<uint64_t>(INT64_MAX) ||
        __builtin_mul_overflow(extent, std::max<int64_t>(static_cast<int64_t>(*d), 1), &extent)) {
      return data_loss(what + ": shape " + json_excerpt(*shape) + " overflows");
    }
    elems *= *d;
    entry.view.shape.push_back(static_cast<int64_t>(*d));
  }

  const json::value* offsets = object->if_contains("data_offsets");
  const json::array* pair = offsets == nullptr ? nullptr : offsets->if_array();
  if (pair == nullptr || pair->size() != 2) {
    return data_loss(what + ": no data_offsets pair");
  }
  const std::optional<uint64_t> begin = as_u64((*pair)[0]), end = as_u64((*pair)[1]);
  if (!begin || !end || *end < *begin) {
    return data_loss(what + ": data_offsets " + json_excerpt(*offsets) + " are no byte range");
  }
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(elems, static_cast<uint64_t>(dtype_info(*known).block_bytes),
                             &bytes)) {
    return data_loss(what + ": shape " + shape_string(entry.view.shape) + " overflows");
  }
  if (*end - *begin != bytes) {
    return data_loss(what + ": data_offsets " + json_excerpt(*offsets) + " hold " +
                     std::to_string(*end - *begin) + " bytes, but shape " +
                     shape_string(entry.view.shape) + " of " +
                     std::string(dtype_info(*known).name) + " takes " + std::to_string(bytes));
  }
  entry.begin = *begin;
  entry.end = *end;
  return entry;
}

}  // namespace

Result<std::vector<TensorView>> parse_safetensors(std::span<const std::byte> bytes,
                                                  const std::string& file) {
  uint64_t header = 0;
  if (bytes.size() < sizeof header) {
    return data_loss(file + ": truncated: " + std::to_string(bytes.size()) +
                     " bytes do not hold the header length");
  }
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header > bytes.size() - sizeof header) {
    return data_loss(file + ": truncated or not safetensors: the header length is " +
                     std::to_string(header) + ", the file has " + std::to_string(bytes.size()) +
                     " bytes");
  }
  if (header > kMaxHeaderBytes) {
    return data_loss(file + ": the header length " + std::to_string(header) +
                     " is above the format's limit of " + std::to_string(kMaxHeaderBytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof header,
                              static_cast<size_t>(header));
  CAPSTAN_ASSIGN(const json::object root,
                 parse_json_object(text, file + ": safetensors header", /*unique_keys=*/true));
  const auto data = bytes.subspan(sizeof header + static_cast<size_t>(header));

  std::vector<Entry> entries;
  entries.reserve(root.size());
  for (const auto& [name, value] : root) {
    if (name == "__metadata__") continue;
    CAPSTAN_ASSIGN(Entry entry, parse_entry(name, value, file));
    if (entry.end > data.size()) {
      return data_loss(file + ": truncated: tensor " + printable(name) + " ends at data byte " +
                       std::to_string(entry.end) + ", beyond the data area of " +
                       std::to_string(data.size()) + " bytes");
    }
    entry.view.data = data.data() + entry.begin;
    entries.push_back(std::move(entry));
  }

  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t covered = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].begin < covered) {
      return data_loss(file + ": tensors " + printable(entries[i - 1].view.name) + " and " +
                       printable(entries[i].view.name) + " overlap at data byte " +
                       std::to_string(entries[i].begin));
    }
    if (entries[i].begin > covered) {
      return data_loss(file + ": data bytes " + std::to_string(covered) + " to " +
                       std::to_string(entries[i].begin) + ", before tensor " +
                       printable(entries[i].view.name) + ", belong to no tensor");
    }
    covered = entries[i].end;
  }
  if (covered != data.size()) {
    return data_loss(file + ": the data area has " + std::to_string(data.size()) +
                     " bytes, but its tensors end at " + std::to_string(covered));
  }
  std::vector<TensorView> tensors;
  tensors.reserve(entries.size());
  for (Entry& entry : entries) tensors.push_back(std::move(entry.view));
  return tensors;
}

}  // namespace capstan::model
