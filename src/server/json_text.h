// JSON written by hand where it is written per token; everything else uses Boost.JSON.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace capstan::server {

/// Appends `text` escaped for the inside of a JSON string, without quotes. `text` is UTF-8; control
/// characters, quote and backslash are escaped, and so are U+2028/2029, which end a line in
/// JavaScript.
void append_json_escaped(std::string& out, std::string_view text);
/// The same with quotes around.
void append_json_string(std::string& out, std::string_view text);
void append_json_int(std::string& out, int64_t value);
/// Shortest digits that read back as the same float; non-finite values are clamped to the nearest
/// finite one, NaN to 0, because JSON has none of them.
void append_json_float(std::string& out, float value);
void append_json_double(std::string& out, double value);

/// Replaces what is not UTF-8 by U+FFFD, as Python's errors="replace" does.
std::string utf8_lossy(std::string_view bytes);
/// Number of code points (of valid UTF-8).
int64_t count_code_points(std::string_view utf8);

}  // namespace capstan::server
