// What a client is told when something is wrong: HTTP status and one body that every dialect can
// read (flat members of the native servers beside the `error` object OpenAI SDKs look for).
#pragma once

#include <string>

#include "base/result.h"

namespace capstan::server {

struct ApiError {
  int status = 500;
  std::string message;
  std::string param;  // offending field, or empty
  std::string code;   // e.g. model_not_found; empty: the status number
  bool retry = true;  // false on a 5xx that would repeat: x-should-retry: false
};

ApiError bad_request(std::string message, std::string param = {});
ApiError api_error(int status, std::string message);
ApiError from_error(const Error& error);

/// Name that stands beside a status: BadRequestError, NotFoundError, ...
std::string_view error_type(int status);
std::string_view reason_phrase(int status);

/// {"object":"error","message",...,"error":{...}}
std::string error_body(const ApiError& error);
/// The one line of an SSE event after streaming began: {"error":{...}} without "data: ".
std::string error_event(const ApiError& error);

}  // namespace capstan::server
