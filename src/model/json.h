// JSON from checkpoints, parsed with errors that name the file and the place.
#pragma once

#include <boost/json/object.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace capstan::model {

/// Parses `text`, which must be one JSON object. `source` names it in errors (kDataLoss). With
/// `unique_keys`, a key that occurs twice in an object is an error too: for files where the second
/// entry could contradict the first unnoticed.
Result<boost::json::object> parse_json_object(std::string_view text, const std::string& source,
                                              bool unique_keys = false);

/// A value as short JSON text for error messages.
std::string json_excerpt(const boost::json::value& value);

}  // namespace capstan::model
