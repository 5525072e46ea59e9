#include "server/errors.h"

#include "server/json_text.h"

namespace capstan::server {
namespace {

// Messages quote what a client sent (a path, a key), which need not be UTF-8; an answer must be.
void append_members(std::string& out, const ApiError& error, bool numeric_code) {
  out += "\"message\":";
  append_json_string(out, utf8_lossy(error.message));
  out += ",\"type\":";
  append_json_string(out, error_type(error.status));
  out += ",\"param\":";
  if (error.param.empty()) {
    out += "null";
  } else {
    append_json_string(out, utf8_lossy(error.param));
  }
  out += ",\"code\":";
  if (numeric_code || error.code.empty()) {
    append_json_int(out, error.status);
  } else {
    append_json_string(out, error.code);
  }
}

}  // namespace

ApiError bad_request(std::string message, std::string param) {
  return {400, std::move(message), std::move(param)};
}

ApiError api_error(int status, std::string message) { return {status, std::move(message)}; }

ApiError from_error(const Error& error) {
  ApiError api;
  api.message = error.message;
  api.param = error.param;
  switch (error.code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kOutOfRange:
      api.status = 400;
      break;
    case ErrorCode::kNotFound:
      api.status = 404;
      break;
    case ErrorCode::kResourceExhausted:
    case ErrorCode::kUnavailable:
    case ErrorCode::kAborted:
      api.status = 503;
      break;
    case ErrorCode::kDataLoss:
    case ErrorCode::kInternal:
      api.status = 500;
      break;
  }
  return api;
}

std::string_view error_type(int status) {
  switch (status) {
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "NotFoundError";
    case 405:
      return "MethodNotAllowed";
    case 429:
      return "RateLimitError";
    case 501:
      return "NotImplementedError";
    case 503:
      return "ServiceUnavailableError";
    default:
      return status < 500 ? "BadRequestError" : "InternalServerError";
  }
}

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Payload Too Large";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    default:
      return "Unknown";
  }
}

std::string error_body(const ApiError& error) {
  std::string out = "{\"object\":\"error\",";
  append_members(out, error, true);
  out += ",\"error\":{";
  append_members(out, error, false);
  out += "}}";
  return out;
}

std::string error_event(const ApiError& error) {
  std::string out = "{\"error\":{\"object\":\"error\",";
  append_members(out, error, true);
  out += "}}";
  return out;
}

}  // namespace capstan::server
