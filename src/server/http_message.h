// A request as handlers see it, and what they answer.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/errors.h"

namespace capstan::server {

struct HttpRequest {
  std::string method;
  std::string target;                // as sent
  std::string path;                  // percent-decoded, without query and trailing slash
  std::string_view route = "other";  // pattern that matched; for metrics
  std::string query;                 // raw, without '?'
  std::vector<std::pair<std::string, std::string>> headers;  // names in lower case
  std::string body;
  std::string request_id;  // X-Request-Id, given or generated
  std::string peer;        // address:port
  std::chrono::steady_clock::time_point received;

  /// Value of the (first) header of that lower-case name; empty if absent.
  std::string_view header(std::string_view lower_case_name) const;
  bool has_header(std::string_view lower_case_name) const;
  /// Decoded value of a query parameter; the first if repeated.
  std::optional<std::string> query_value(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
  bool streamed = false;  // body has been sent by the handler
  bool aborted = false;   // the client has gone; nothing is sent
};

HttpResponse json_response(std::string body);
HttpResponse text_response(int status, std::string body);
HttpResponse error_response(const ApiError& error);

/// Percent-decoding; malformed escapes stay as they are. '+' becomes a space in queries only.
std::string percent_decode(std::string_view text, bool plus_is_space);
/// Splits target into path and query; removes one trailing slash (not that of "/").
void parse_target(std::string_view target, HttpRequest* request);
/// 1-128 printable ASCII characters without spaces at the ends.
bool valid_request_id(std::string_view id);
/// 32 lower-case hex digits from the system's random source.
std::string random_hex_id();

}  // namespace capstan::server
