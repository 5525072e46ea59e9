// Typed, range-checked access to the fields of one JSON object of a config; and the limits of
// sizes.
#pragma once

#include <boost/json/object.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace capstan::model {

// Sizes above these are damage, not models; they keep every product of two of them inside int64.
inline constexpr int64_t kMaxWidth = int64_t{1}
                                     << 24;  // hidden, intermediate; largest known: 53248
inline constexpr int64_t kMaxVocab = int64_t{1} << 28;  // token ids are int32
inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxHeads = 65536;
inline constexpr int64_t kMaxHeadDim = 65536;
inline constexpr int64_t kMaxExperts = 65536;
inline constexpr int64_t kMaxExpertsInAll = int64_t{1} << 18;
inline constexpr int64_t kMaxPositions = INT32_MAX;

/// Null counts as absent. Errors are kInvalidArgument and name source, key and value.
class Fields {
 public:
  /// Both must outlive the object but `source`, which names the object in errors.
  Fields(const boost::json::object& object, std::string source)
      : object_(object), source_(std::move(source)) {}

  const std::string& source() const { return source_; }
  const boost::json::value* find(std::string_view key) const;
  /// Present, be it as null.
  bool contains(std::string_view key) const { return object_.if_contains(key) != nullptr; }

  Error bad(std::string_view key, const boost::json::value& value, const std::string& wanted) const;
  Error missing(std::string_view key) const;

  Result<std::optional<int64_t>> integer(std::string_view key, int64_t low, int64_t high) const;
  Result<int64_t> required_integer(std::string_view key, int64_t high) const;  // from 1
  Result<std::optional<double>> number(std::string_view key) const;
  Result<double> positive_number(std::string_view key, double absent) const;
  Result<bool> boolean(std::string_view key, bool absent) const;
  Result<std::optional<std::string>> string(std::string_view key) const;
  /// A token id, a list of them, or nothing.
  Result<std::vector<int32_t>> token_ids(std::string_view key) const;
  /// Refuses a string that is present and not among `known`.
  Status one_of(std::string_view key, std::initializer_list<std::string_view> known) const;

 private:
  const boost::json::object& object_;
  std::string source_;
};

}  // namespace capstan::model
