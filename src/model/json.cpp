#include "model/json.h"

#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/stream_parser.hpp>
#include <optional>
#include <unordered_set>
#include <vector>

#include "model/printable.h"

namespace capstan::model {
namespace {

namespace json = boost::json;

/// A SAX handler that remembers the keys of every open object and stops at the first repetition.
struct DuplicateKeyFinder {
  constexpr static std::size_t max_object_size = static_cast<std::size_t>(-1);
  constexpr static std::size_t max_array_size = static_cast<std::size_t>(-1);
  constexpr static std::size_t max_key_size = static_cast<std::size_t>(-1);
  constexpr static std::size_t max_string_size = static_cast<std::size_t>(-1);

  std::vector<std::unordered_set<std::string>> open;
  std::string key;
  std::optional<std::string> duplicate;

  using error_code = json::error_code;
  bool on_document_begin(error_code&) { return true; }
  bool on_document_end(error_code&) { return true; }
  bool on_object_begin(error_code&) {
    open.emplace_back();
    return true;
  }
  bool on_object_end(std::size_t, error_code&) {
    open.pop_back();
    return true;
  }
  bool on_array_begin(error_code&) { return true; }
  bool on_array_end(std::size_t, error_code&) { return true; }
  bool on_key_part(json::string_view part, std::size_t, error_code&) {
    key.append(part.data(), part.size());
    return true;
  }
  bool on_key(json::string_view part, std::size_t, error_code& ec) {
    key.append(part.data(), part.size());
    if (!open.back().insert(key).second) {
      duplicate = key;
      ec = json::error::syntax;
      return false;
    }
    key.clear();
    return true;
  }
  bool on_string_part(json::string_view, std::size_t, error_code&) { return true; }
  bool on_string(json::string_view, std::size_t, error_code&) { return true; }
  bool on_number_part(json::string_view, error_code&) { return true; }
  bool on_int64(int64_t, json::string_view, error_code&) { return true; }
  bool on_uint64(uint64_t, json::string_view, error_code&) { return true; }
  bool on_double(double, json::string_view, error_code&) { return true; }
  bool on_bool(bool, error_code&) { return true; }
  bool on_null(error_code&) { return true; }
  bool on_comment_part(json::string_view, error_code&) { return true; }
  bool on_comment(json::string_view, error_code&) { return true; }
};

}  // namespace

Result<json::object> parse_json_object(std::string_view text, const std::string& source,
                                       bool unique_keys) {
  if (unique_keys) {
    json::basic_parser<DuplicateKeyFinder> finder{json::parse_options()};
    json::error_code ec;
    finder.write_some(false, text.data(), text.size(), ec);
    if (finder.handler().duplicate) {
      return data_loss(source + ": the name " + printable(*finder.handler().duplicate) +
                       " occurs twice in one object");
    }
    // Other errors are found again, with their place, by the parser below.
  }
  json::stream_parser parser;
  json::error_code ec;
  const std::size_t used = parser.write_some(text.data(), text.size(), ec);
  if (!ec && used == text.size()) parser.finish(ec);
  if (ec || used < text.size()) {
    const std::string why = ec ? ec.message() : "extra text after the object";
    return data_loss(source + ": not valid JSON near byte " + std::to_string(used) + ": " + why);
  }
  json::value value = parser.release();
  if (!value.is_object()) return data_loss(source + ": the JSON text is not an object");
  return std::move(value.get_object());
}

std::string json_excerpt(const json::value& value) {
  constexpr std::size_t kMaxShown = 80;
  std::string text = json::serialize(value);
  if (text.size() > kMaxShown) {
    text.resize(kMaxShown);
    text += "...";
  }
  return text;
}

}  // namespace capstan::model
