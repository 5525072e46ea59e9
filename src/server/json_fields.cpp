#include "server/json_fields.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <limits>

namespace capstan::server {
namespace {

// Deep enough for any schema met in practice; Boost's default of 32 is not.
constexpr size_t kMaxDepth = 128;
constexpr size_t kShown = 40;  // bytes of an offending string in a message

// At most kShown bytes, not cutting a UTF-8 sequence; longer ones end in "...".
std::string excerpt(std::string_view text) {
  if (text.size() <= kShown) return std::string(text);
  size_t cut = kShown;
  while (cut > 0 && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) --cut;
  return std::string(text.substr(0, cut)) + "...";
}

// Finds a bare NaN/Infinity outside strings and the key before it.
std::optional<std::pair<std::string, std::string>> find_non_number(std::string_view body) {
  std::string_view last_string;
  for (size_t i = 0; i < body.size(); ++i) {
    if (body[i] == '"') {
      const size_t start = ++i;
      while (i < body.size() && body[i] != '"') i += body[i] == '\\' ? 2 : 1;
      last_string = body.substr(start, std::min(i, body.size()) - start);
      continue;
    }
    for (const std::string_view word : {"NaN", "-Infinity", "Infinity"}) {
      if (body.substr(i, word.size()) == word) return {{excerpt(last_string), std::string(word)}};
    }
  }
  return std::nullopt;
}

}  // namespace

std::string describe(const json::value& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  if (value.is_string()) {
    const std::string_view text(value.get_string().data(), value.get_string().size());
    return "the string \"" + excerpt(text) + "\"";
  }
  return json::serialize(value);
}

Result<json::object> parse_json_object(std::string_view body) {
  if (body.empty()) return invalid_argument("The request body is empty; send a JSON object.");
  json::parse_options options;
  options.max_depth = kMaxDepth;
  json::error_code ec;
  json::value value = json::parse(body, ec, {}, options);
  if (ec) {
    if (const auto found = find_non_number(body)) {
      return invalid_argument(
          found->first + ": " + found->second + " is not a JSON number; send a finite value.",
          found->first);
    }
    return invalid_argument("The request body is not valid JSON: " + ec.message() + ".");
  }
  if (!value.is_object()) {
    return invalid_argument("The request body must be a JSON object, got " + describe(value) + ".");
  }
  return std::move(value.get_object());
}

std::optional<int64_t> as_integer(const json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (value.is_double()) {
    const double d = value.get_double();
    if (d == std::floor(d) && std::fabs(d) < 9.0e15) return static_cast<int64_t>(d);
  }
  return std::nullopt;
}

Result<std::vector<int32_t>> read_token_ids(const json::array& list, const std::string& path,
                                            int64_t vocab_size) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const std::optional<int64_t> id = as_integer(list[i]);
    const std::string where = path + "[" + std::to_string(i) + "]";
    if (!id) {
      return invalid_argument(where + ": expected a token id, got " + describe(list[i]) + ".",
                              path);
    }
    if (*id < 0 || *id >= vocab_size) {
      return invalid_argument(where + ": token id " + std::to_string(*id) +
                                  " is outside the vocabulary of " + std::to_string(vocab_size) +
                                  " tokens.",
                              path);
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

const json::value* Fields::find(std::string_view key) const {
  const json::value* value = object_.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

std::string Fields::path(std::string_view key) const {
  return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
}

void Fields::fail(std::string_view key, const std::string& message) {
  if (!error_) error_ = invalid_argument(path(key) + ": " + message, path(key));
}

void Fields::fail_type(std::string_view key, std::string_view what, const json::value& value) {
  fail(key, "expected " + std::string(what) + ", got " + describe(value) + ".");
}

void Fields::fail_range(std::string_view key, std::string_view range, const json::value& value) {
  fail(key, "must be in " + std::string(range) + ", got " + describe(value) + ".");
}

std::optional<bool> Fields::boolean(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_bool()) return value->get_bool();
  fail_type(key, "true or false", *value);
  return std::nullopt;
}

std::optional<double> Fields::number(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) {
    fail_type(key, "a number", *value);
    return std::nullopt;
  }
  const double number = value->to_number<double>();
  if (std::isfinite(number)) return number;
  fail_type(key, "a finite number", *value);
  return std::nullopt;
}

std::optional<int64_t> Fields::integer(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> number = as_integer(*value);
  if (!number) fail_type(key, "an integer", *value);
  return number;
}

std::optional<int64_t> Fields::integer_in(std::string_view key, int64_t low, int64_t high) {
  const std::optional<int64_t> value = integer(key);
  if (!value || (*value >= low && *value <= high)) return value;
  if (high == std::numeric_limits<int32_t>::max()) {
    fail(key, "must be at least " + std::to_string(low) + " and at most " + std::to_string(high) +
                  ", got " + std::to_string(*value) + ".");
  } else {
    fail_range(key, "[" + std::to_string(low) + ", " + std::to_string(high) + "]", *find(key));
  }
  return std::nullopt;
}

std::optional<std::string> Fields::string(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) {
    return std::string(value->get_string().data(), value->get_string().size());
  }
  fail_type(key, "a string", *value);
  return std::nullopt;
}

const json::object* Fields::object(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) fail_type(key, "an object", *value);
  return value->if_object();
}

const json::array* Fields::array(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) fail_type(key, "a list", *value);
  return value->if_array();
}

std::optional<std::vector<std::string>> Fields::strings(std::string_view key) {
  const json::value* value = find(key);
  if (value == nullptr) return std::nullopt;
  std::vector<std::string> all;
  if (value->is_string()) {
    all.emplace_back(value->get_string().data(), value->get_string().size());
    return all;
  }
  if (!value->is_array()) {
    fail_type(key, "a string or a list of strings", *value);
    return std::nullopt;
  }
  for (size_t i = 0; i < value->get_array().size(); ++i) {
    const json::value& item = value->get_array()[i];
    if (!item.is_string()) {
      fail_type(std::string(key) + "[" + std::to_string(i) + "]", "a string", item);
      return std::nullopt;
    }
    all.emplace_back(item.get_string().data(), item.get_string().size());
  }
  return all;
}

std::optional<std::vector<int32_t>> Fields::token_ids(std::string_view key, int64_t limit) {
  const json::array* list = array(key);
  if (list == nullptr) return std::nullopt;
  auto ids = read_token_ids(*list, path(key), limit);
  if (!ids.ok()) {
    if (!error_) error_ = ids.error();
    return std::nullopt;
  }
  return std::move(ids).value();
}

}  // namespace capstan::server
