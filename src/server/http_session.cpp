#include "server/http_session.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/write.hpp>
#include <exception>

#include "base/log.h"
#include "server/app_state.h"
#include "server/router.h"

namespace capstan::server {
namespace {

// Pipelined bytes kept while a request is served; beyond that a client is not listened to.
constexpr size_t kMaxPipelined = 64 * 1024;
// A client that reads nothing while this much is waiting for it is cut off.
constexpr size_t kMaxUnsent = 64u << 20;

}  // namespace

HttpSession::HttpSession(AppState& app, IoThread& thread, Socket socket)
    : app_(app),
      thread_(thread),
      socket_(std::move(socket)),
      deadline_(thread.executor()),
      watch_ended_(thread.executor()),
      written_(thread.executor()) {
  app_.connections.fetch_add(1, std::memory_order_relaxed);
}

HttpSession::~HttpSession() {
  release_drain_hold();
  app_.connections.fetch_sub(1, std::memory_order_relaxed);
}

void HttpSession::hold_drain() {
  if (!holds_drain_) app_.generations.enter();
  holds_drain_ = true;
}

void HttpSession::release_drain_hold() {
  if (holds_drain_) app_.generations.leave();
  holds_drain_ = false;
}

void HttpSession::start() {
  asio::co_spawn(
      thread_.executor(), [self = shared_from_this()] { return self->run(); },
      [self = shared_from_this()](const std::exception_ptr& error) {
        try {
          if (error) std::rethrow_exception(error);
        } catch (const std::exception& e) {
          LOG_ERROR("http: connection dropped: {}", e.what());
        }
        self->client_left();
        self->close();
      });
}

Task<void> HttpSession::run() {
  error_code ec;
  socket_.non_blocking(true, ec);
  socket_.set_option(asio::ip::tcp::no_delay(true), ec);
  socket_.set_option(asio::socket_base::keep_alive(true), ec);
  // A vanished host (no FIN) is noticed after 30 + 4 x 10 s, so that its requests do not run on.
  const int idle = 30, interval = 10, count = 4;
  const int fd = socket_.native_handle();
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
  const auto remote = socket_.remote_endpoint(ec);
  std::string peer;
  if (!ec) peer = remote.address().to_string() + ":" + std::to_string(remote.port());

  while (keep_alive_ && !disconnected_) {
    request_ = HttpRequest();
    request_.peer = peer;
    if (co_await read_request() != ReadResult::kRequest) break;
    in_request_ = true;
    watch_for_disconnect();
    HttpResponse response;
    std::exception_ptr failure;
    try {
      response = co_await app_.router.dispatch(*this);
    } catch (...) {
      failure = std::current_exception();
    }
    if (failure) {
      try {
        std::rethrow_exception(failure);
      } catch (const std::exception& e) {
        LOG_ERROR("http: {} {} failed: {} (request id {})", request_.method, request_.path,
                  e.what(), request_.request_id);
      }
      response = error_response(api_error(500, "The server failed to handle this request."));
    }
    disconnect_callback_ = nullptr;
    if (streaming_) {
      co_await finish_stream();
    } else {
      co_await stop_watching();
      if (!disconnected_ && !response.aborted) co_await write_response(std::move(response));
    }
    in_request_ = false;
    release_drain_hold();
    if (app_.draining.load(std::memory_order_relaxed)) keep_alive_ = false;
  }
  close();
}

void HttpSession::begin_event_stream() {
  if (streaming_) return;
  streaming_ = true;
  streamed_bytes_ = 0;
  out_.clear();
  out_head_ =
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
      "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n";
  if (http11_) {
    out_head_ += "Transfer-Encoding: chunked\r\n";
  } else {
    keep_alive_ = false;  // the end of the body is the end of the connection
  }
  append_common_headers(out_head_);
  out_head_ += "\r\n";
  head_pending_ = true;
}

void HttpSession::stream_flush() {
  if (!thread_.mailbox()->delivering()) {
    flush();
  } else if (!dirty_) {
    dirty_ = true;
    thread_.mailbox()->mark_dirty(shared_from_this());
  }
}

void HttpSession::flush() {
  dirty_ = false;
  if (writing_ || disconnected_ || (out_.empty() && !head_pending_)) {
    if (writing_ && out_.size() > kMaxUnsent) {
      LOG_WARN("http: {} does not read its stream, {} bytes wait; connection closed", request_.peer,
               out_.size());
      client_left();
    }
    return;
  }
  // head | chunk size | events | CRLF, in one system call.
  char size_line[24];
  int size_length = 0;
  const bool chunk = http11_ && !out_.empty();
  if (chunk) size_length = std::snprintf(size_line, sizeof size_line, "%zx\r\n", out_.size());
  iovec parts[4] = {{out_head_.data(), head_pending_ ? out_head_.size() : 0},
                    {size_line, static_cast<size_t>(size_length)},
                    {out_.data(), out_.size()},
                    {const_cast<char*>("\r\n"), chunk ? 2u : 0u}};
  size_t total = 0;
  for (const iovec& part : parts) total += part.iov_len;
  msghdr message{};
  message.msg_iov = parts;
  message.msg_iovlen = 4;
  const ssize_t sent = sendmsg(socket_.native_handle(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  streamed_bytes_ += out_.size();
  head_pending_ = false;
  if (sent == static_cast<ssize_t>(total)) {
    out_.clear();
    return;
  }
  if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
    client_left();
    return;
  }
  size_t skip = sent < 0 ? 0 : static_cast<size_t>(sent);
  inflight_.clear();
  for (const iovec& part : parts) {
    if (skip >= part.iov_len) {
      skip -= part.iov_len;
      continue;
    }
    inflight_.append(static_cast<const char*>(part.iov_base) + skip, part.iov_len - skip);
    skip = 0;
  }
  out_.clear();
  send_remainder();
}

void HttpSession::send_remainder() {
  writing_ = true;
  asio::async_write(socket_, asio::buffer(inflight_),
                    [self = shared_from_this()](error_code ec, size_t) {
                      self->writing_ = false;
                      self->inflight_.clear();
                      if (ec) {
                        self->client_left();
                      } else {
                        self->flush();
                      }
                      if (!self->writing_) self->written_.notify();
                    });
}

Task<void> HttpSession::finish_stream() {
  flush();
  while (writing_ && !disconnected_) {
    arm_deadline(app_.config.body_idle_timeout + static_cast<double>(inflight_.size()) / 1e5);
    written_.reset();
    co_await written_.wait();
  }
  disarm_deadline();
  co_await stop_watching();
  streaming_ = false;
  if (disconnected_) co_return;
  if (http11_) co_await write_all("0\r\n\r\n", {});
  app_.metrics->count_response(request_.route, request_.method, 200);
  log_access(200, streamed_bytes_);
}

void HttpSession::watch_for_disconnect() {
  if (watching_ || disconnected_ || input_.size() >= kMaxPipelined) return;
  watching_ = true;
  socket_.async_read_some(input_.prepare(2048),
                          [self = shared_from_this()](error_code ec, size_t n) {
                            self->watching_ = false;
                            self->input_.commit(n);
                            if (ec && ec != asio::error::operation_aborted) self->client_left();
                            if (!self->in_request_ || ec) {
                              self->watch_ended_.notify();
                              return;
                            }
                            self->watch_for_disconnect();
                            if (!self->watching_) self->watch_ended_.notify();
                          });
}

Task<void> HttpSession::stop_watching() {
  in_request_ = false;
  if (!watching_) co_return;
  watch_ended_.reset();
  error_code ignored;
  socket_.cancel(ignored);
  co_await watch_ended_.wait();
}

void HttpSession::client_left() {
  if (disconnected_) return;
  disconnected_ = true;
  keep_alive_ = false;
  out_.clear();
  if (disconnect_callback_) {
    auto callback = std::move(disconnect_callback_);
    disconnect_callback_ = nullptr;
    callback();
  }
  written_.notify();
}

Task<bool> HttpSession::write_all(std::string head, std::string body) {
  error_code ec;
  const std::array<asio::const_buffer, 2> buffers = {asio::buffer(head), asio::buffer(body)};
  arm_deadline(app_.config.body_idle_timeout + static_cast<double>(body.size()) / 1e5);
  co_await asio::async_write(socket_, buffers, asio::redirect_error(use_task, ec));
  disarm_deadline();
  if (ec) client_left();
  co_return !ec;
}

void HttpSession::arm_deadline(double seconds) {
  const uint64_t generation = ++deadline_generation_;
  deadline_.expires_after(
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)));
  deadline_.async_wait([self = shared_from_this(), generation](error_code ec) {
    if (ec || generation != self->deadline_generation_) return;
    error_code ignored;
    self->socket_.cancel(ignored);  // the pending read or write ends with operation_aborted
  });
}

void HttpSession::disarm_deadline() {
  ++deadline_generation_;
  deadline_.cancel();
}

void HttpSession::close() {
  disarm_deadline();
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_both, ignored);
  socket_.close(ignored);
}

}  // namespace capstan::server
