// Errors as values. Every boundary between rooms returns Status or Result<T>;
// exceptions never cross threads or the C ABI.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace capstan {

/// Why something failed; the server maps it to an HTTP status, main() to an exit code.
enum class ErrorCode {
  kInvalidArgument,    // the caller's value is wrong: HTTP 400, exit 2 for flags
  kNotFound,           // file, tensor, model or id does not exist: HTTP 404
  kOutOfRange,         // value outside a documented range: HTTP 400
  kResourceExhausted,  // queue or memory full; worth retrying: HTTP 503
  kUnavailable,        // starting, draining or shut down: HTTP 503
  kAborted,            // cancelled by client, administrator or timeout
  kDataLoss,           // a file is truncated, inconsistent or hostile
  kInternal,           // a bug here: HTTP 500
};

/// `message` says what was wrong, with which value, and what to do about it.
struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
  std::string param = {};  // the offending request field or flag, if one is to blame
};

inline Error invalid_argument(std::string message, std::string param = {}) {
  return {ErrorCode::kInvalidArgument, std::move(message), std::move(param)};
}
inline Error not_found(std::string message) { return {ErrorCode::kNotFound, std::move(message)}; }
inline Error data_loss(std::string message) { return {ErrorCode::kDataLoss, std::move(message)}; }
inline Error internal_error(std::string message) {
  return {ErrorCode::kInternal, std::move(message)};
}
inline Error unavailable(std::string message) {
  return {ErrorCode::kUnavailable, std::move(message)};
}
inline Error resource_exhausted(std::string message) {
  return {ErrorCode::kResourceExhausted, std::move(message)};
}

/// Success, or an Error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}  // NOLINT(google-explicit-constructor)

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

/// A T, or an Error. Dereferencing without checking ok() is a programming error.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  T& value() & { return std::get<0>(state_); }
  const T& value() const& { return std::get<0>(state_); }
  T&& value() && { return std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const { return std::get<1>(state_); }
  Status status() const { return ok() ? Status() : Status(error()); }

 private:
  std::variant<T, Error> state_;
};

}  // namespace capstan

#define CAPSTAN_CONCAT_INNER(a, b) a##b
#define CAPSTAN_CONCAT(a, b) CAPSTAN_CONCAT_INNER(a, b)

/// Returns the error of a Status or Result expression from the enclosing function.
#define CAPSTAN_RETURN_IF_ERROR(expr)                        \
  do {                                                       \
    auto&& capstan_status = (expr);                          \
    if (!capstan_status.ok()) return capstan_status.error(); \
  } while (false)

/// `CAPSTAN_ASSIGN(auto x, make_x());` declares x or returns the error.
#define CAPSTAN_ASSIGN(decl, expr) \
  CAPSTAN_ASSIGN_INNER(CAPSTAN_CONCAT(capstan_result_, __LINE__), decl, expr)
#define CAPSTAN_ASSIGN_INNER(tmp, decl, expr) \
  auto tmp = (expr);                          \
  if (!tmp.ok()) return tmp.error();          \
  decl = std::move(tmp).value()
