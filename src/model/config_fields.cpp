#include "model/config_fields.h"

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/value.hpp>
#include <cmath>

#include "model/json.h"
#include "model/printable.h"

namespace capstan::model {

namespace json = boost::json;

const json::value* Fields::find(std::string_view key) const {
  const json::value* v = object_.if_contains(key);
  return v == nullptr || v->is_null() ? nullptr : v;
}

Error Fields::bad(std::string_view key, const json::value& value, const std::string& wanted) const {
  return invalid_argument(source_ + ": " + std::string(key) + " is " + json_excerpt(value) + "; " +
                          wanted);
}

Error Fields::missing(std::string_view key) const {
  return invalid_argument(source_ + ": " + std::string(key) + " is missing");
}

Result<std::optional<int64_t>> Fields::integer(std::string_view key, int64_t low,
                                               int64_t high) const {
  const json::value* v = find(key);
  if (v == nullptr) return std::optional<int64_t>();
  if (!v->is_int64() || v->get_int64() < low || v->get_int64() > high) {
    return bad(key, *v,
               "it must be an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return std::optional<int64_t>(v->get_int64());
}

Result<int64_t> Fields::required_integer(std::string_view key, int64_t high) const {
  CAPSTAN_ASSIGN(const std::optional<int64_t> v, integer(key, 1, high));
  if (!v) return missing(key);
  return *v;
}

Result<std::optional<double>> Fields::number(std::string_view key) const {
  const json::value* v = find(key);
  if (v == nullptr) return std::optional<double>();
  double d = 0;
  if (v->is_double()) {
    d = v->get_double();
  } else if (v->is_int64()) {
    d = static_cast<double>(v->get_int64());
  } else {
    return bad(key, *v, "it must be a number");
  }
  if (!std::isfinite(d)) return bad(key, *v, "it must be finite");
  return std::optional<double>(d);
}

Result<double> Fields::positive_number(std::string_view key, double absent) const {
  CAPSTAN_ASSIGN(const std::optional<double> d, number(key));
  if (d && *d <= 0) return bad(key, *find(key), "it must be above 0");
  return d.value_or(absent);
}

Result<bool> Fields::boolean(std::string_view key, bool absent) const {
  const json::value* v = find(key);
  if (v == nullptr) return absent;
  if (!v->is_bool()) return bad(key, *v, "it must be true or false");
  return v->get_bool();
}

Result<std::optional<std::string>> Fields::string(std::string_view key) const {
  const json::value* v = find(key);
  if (v == nullptr) return std::optional<std::string>();
  if (!v->is_string()) return bad(key, *v, "it must be a string");
  return std::optional<std::string>(std::string(v->get_string()));
}

Result<std::vector<int32_t>> Fields::token_ids(std::string_view key) const {
  std::vector<int32_t> ids;
  const json::value* v = find(key);
  if (v == nullptr) return ids;
  const auto add = [&](const json::value& id) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > INT32_MAX) return false;
    ids.push_back(static_cast<int32_t>(id.get_int64()));
    return true;
  };
  bool good = true;
  if (const json::array* list = v->if_array()) {
    for (const json::value& id : *list) good = good && add(id);
  } else {
    good = add(*v);
  }
  if (!good) return bad(key, *v, "it must be a token id or a list of token ids");
  return ids;
}

Status Fields::one_of(std::string_view key, std::initializer_list<std::string_view> known) const {
  const json::value* v = find(key);
  if (v == nullptr) return {};
  if (v->is_string() &&
      std::find(known.begin(), known.end(), std::string_view(v->get_string())) != known.end()) {
    return {};
  }
  std::string list;
  for (const std::string_view k : known) list += (list.empty() ? "" : " and ") + std::string(k);
  return bad(key, *v, "supported: " + list);
}

}  // namespace capstan::model
