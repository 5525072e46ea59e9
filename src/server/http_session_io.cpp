// The reading half of a connection and plain responses; streams are in http_session.cpp.
#include <boost/asio/buffer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "base/log.h"
#include "server/app_state.h"
#include "server/http_session.h"

namespace capstan::server {

namespace http = boost::beast::http;

namespace {

constexpr uint32_t kMaxHeaderBytes = 64 * 1024;
constexpr size_t kReadSize = 64 * 1024;

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

bool is_probe(std::string_view path) {
  return path.starts_with("/health") || path.starts_with("/metrics") || path == "/ping" ||
         path == "/readyz" || path == "/livez";
}

}  // namespace

Task<HttpSession::ReadResult> HttpSession::read_request() {
  http::request_parser<http::string_body> parser;
  parser.header_limit(kMaxHeaderBytes);
  parser.body_limit(app_.config.max_body_bytes);
  parser.eager(false);
  bool began = input_.size() > 0;
  arm_deadline(began ? app_.config.header_timeout : app_.config.keep_alive_timeout);
  error_code ec;
  bool expects_continue_checked = false;

  while (!parser.is_done()) {
    ec = {};
    if (input_.size() > 0) {
      const size_t used = parser.put(input_.data(), ec);
      input_.consume(used);
      if (ec == http::error::need_more) {
        ec = {};
      } else if (ec) {
        break;
      } else if (parser.is_header_done() && !expects_continue_checked) {
        expects_continue_checked = true;
        parser.eager(true);
        const auto expect = parser.get()[http::field::expect];
        if (!expect.empty() && parser.get().version() >= 11) {
          if (lower({expect.data(), expect.size()}) != "100-continue") {
            HttpResponse response = error_response(
                api_error(417, "Expect: " + std::string(expect.data(), expect.size()) +
                                   " is not supported; only 100-continue is."));
            response.status = 417;
            co_await refuse(std::move(response));
            co_return ReadResult::kAnswered;
          }
          if (!parser.is_done() && input_.size() == 0) {
            error_code write_error;
            static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
            co_await asio::async_write(socket_, asio::buffer(kContinue),
                                       asio::redirect_error(use_task, write_error));
          }
        }
        continue;
      } else if (used > 0) {
        continue;
      }
    }
    if (parser.is_done()) break;
    const size_t n = co_await socket_.async_read_some(input_.prepare(kReadSize),
                                                      asio::redirect_error(use_task, ec));
    input_.commit(n);
    if (ec) break;
    if (!began || parser.is_header_done()) {
      arm_deadline(parser.is_header_done() ? app_.config.body_idle_timeout
                                           : app_.config.header_timeout);
    }
    began = true;
  }
  disarm_deadline();

  auto& message = parser.get();
  http11_ = message.version() >= 11;
  if (parser.is_header_done()) {
    request_.method = std::string(message.method_string());
    parse_target({message.target().data(), message.target().size()}, &request_);
    for (const auto& field : message) {
      request_.headers.emplace_back(lower({field.name_string().data(), field.name_string().size()}),
                                    std::string(field.value().data(), field.value().size()));
    }
  }
  request_.received = Clock::now();
  const std::string_view given = request_.header("x-request-id");
  request_.request_id = valid_request_id(given) ? std::string(given) : random_hex_id();

  if (ec) {
    const bool timed_out = ec == asio::error::operation_aborted;
    if (!began || ec == asio::error::eof || ec == asio::error::connection_reset) {
      co_return ReadResult::kClosed;
    }
    HttpResponse response;
    if (timed_out) {
      response = error_response(api_error(408, "The request did not arrive in time."));
    } else if (ec == http::error::body_limit) {
      response = error_response(api_error(413, "The request body exceeds the limit of " +
                                                   std::to_string(app_.config.max_body_bytes) +
                                                   " bytes."));
    } else if (ec == http::error::header_limit) {
      response = error_response(api_error(431, "The request headers exceed the limit of " +
                                                   std::to_string(kMaxHeaderBytes) + " bytes."));
    } else {
      response = error_response(bad_request("Malformed HTTP request: " + ec.message() + "."));
    }
    co_await refuse(std::move(response));
    co_return ReadResult::kAnswered;
  }
  keep_alive_ = message.keep_alive();
  request_.body = std::move(message.body());
  co_return ReadResult::kRequest;
}

Task<void> HttpSession::refuse(HttpResponse response) {
  keep_alive_ = false;
  disarm_deadline();
  co_await write_response(std::move(response));
  co_await linger();
}

// Closing a socket with unread input resets it, and the reset may overtake the response. So the
// rest of what the client sends is read and dropped, for a while.
Task<void> HttpSession::linger() {
  if (disconnected_) co_return;
  error_code ec;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ec);
  arm_deadline(5);
  input_.consume(input_.size());
  for (size_t dropped = 0; dropped < (256u << 20);) {
    const size_t n = co_await socket_.async_read_some(input_.prepare(kReadSize),
                                                      asio::redirect_error(use_task, ec));
    if (ec) break;
    dropped += n;
  }
  disarm_deadline();
}

void HttpSession::append_common_headers(std::string& head) const {
  head += "X-Request-Id: ";
  head += request_.request_id;
  head += "\r\n";
  if (const std::string_view origin = request_.header("origin"); !origin.empty()) {
    head += "Access-Control-Allow-Origin: ";
    head += origin;
    head +=
        "\r\nAccess-Control-Allow-Credentials: true\r\nAccess-Control-Expose-Headers: "
        "X-Request-Id, Retry-After\r\nVary: Origin\r\n";
  }
  if (!keep_alive_ || app_.draining.load(std::memory_order_relaxed)) {
    head += "Connection: close\r\n";
  } else if (!http11_) {
    head += "Connection: keep-alive\r\n";
  }
}

std::string HttpSession::response_head(const HttpResponse& response, size_t body_size) const {
  std::string head;
  head.reserve(320);
  head += "HTTP/1.1 ";
  head += std::to_string(response.status);
  head += ' ';
  head += reason_phrase(response.status);
  head += "\r\n";
  if (response.status != 304) {
    if (body_size > 0) {
      head += "Content-Type: ";
      head += response.content_type;
      head += "\r\n";
    }
    head += "Content-Length: ";
    head += std::to_string(body_size);
    head += "\r\n";
  }
  for (const auto& [name, value] : response.headers) {
    head += name;
    head += ": ";
    head += value;
    head += "\r\n";
  }
  append_common_headers(head);
  head += "\r\n";
  return head;
}

Task<void> HttpSession::write_response(HttpResponse response) {
  const size_t size = response.body.size();
  std::string head = response_head(response, size);
  if (request_.method == "HEAD") response.body.clear();
  app_.metrics->count_response(request_.route, request_.method, response.status);
  if (co_await write_all(std::move(head), std::move(response.body))) {
    log_access(response.status, size);
  }
}

void HttpSession::log_access(int status, size_t bytes) const {
  if (!app_.config.access_log || is_probe(request_.path)) return;
  // As sent (no control characters can be in it), without the query.
  const std::string_view target =
      std::string_view(request_.target).substr(0, request_.target.find('?'));
  LOG_INFO("{} \"{} {}\" {} {}B {:.1f}ms id={}", request_.peer, request_.method, target, status,
           bytes, seconds_between(request_.received, Clock::now()) * 1e3, request_.request_id);
}

}  // namespace capstan::server
