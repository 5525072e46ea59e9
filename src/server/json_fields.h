// Typed reading of request fields. null counts as absent, unknown fields are ignored, and the first
// thing that is wrong is kept as an error that names field, value and what was expected.
#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace capstan::server {

namespace json = boost::json;

/// A short rendering of a value for messages: `"abc"`, `3.5`, `an object`.
std::string describe(const json::value& value);

/// Parses a request body that must be an object. Messages name NaN and Infinity, which Python
/// clients can send and JSON does not have, with their field.
Result<json::object> parse_json_object(std::string_view body);

class Fields {
 public:
  explicit Fields(const json::object& object, std::string path = {})
      : object_(object), path_(std::move(path)) {}

  /// The value, or null when absent or null.
  const json::value* find(std::string_view key) const;
  std::string path(std::string_view key) const;
  bool ok() const { return !error_.has_value(); }
  Status status() const { return error_ ? Status(*error_) : Status(); }
  void fail(std::string_view key, const std::string& message);
  /// Says: `KEY: expected WHAT, got VALUE.`
  void fail_type(std::string_view key, std::string_view what, const json::value& value);

  // Each returns the field, or nothing when it is absent or (error kept) of the wrong kind.
  std::optional<bool> boolean(std::string_view key);
  std::optional<double> number(std::string_view key);
  std::optional<int64_t> integer(std::string_view key);
  std::optional<std::string> string(std::string_view key);
  const json::object* object(std::string_view key);
  const json::array* array(std::string_view key);
  /// A string or a list of strings.
  std::optional<std::vector<std::string>> strings(std::string_view key);
  /// A list of integers in [0, limit).
  std::optional<std::vector<int32_t>> token_ids(std::string_view key, int64_t limit);

  /// A number in a range that is stated as `range` in the message, e.g. "(0, 1]".
  template <class Predicate>
  std::optional<double> number_in(std::string_view key, std::string_view range, Predicate valid) {
    const std::optional<double> value = number(key);
    if (value && !valid(*value)) {
      fail_range(key, range, *find(key));
      return std::nullopt;
    }
    return value;
  }
  std::optional<int64_t> integer_in(std::string_view key, int64_t low, int64_t high);

 private:
  void fail_range(std::string_view key, std::string_view range, const json::value& value);

  const json::object& object_;
  std::string path_;
  std::optional<Error> error_;
};

/// The integer a JSON number stands for: 3, 3.0 but not 3.5, "3" or true.
std::optional<int64_t> as_integer(const json::value& value);
/// Ids of a JSON list; the error names `path[i]`, the value and the vocabulary size.
Result<std::vector<int32_t>> read_token_ids(const json::array& list, const std::string& path,
                                            int64_t vocab_size);

}  // namespace capstan::server
