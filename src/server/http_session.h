// One connection: reads requests, has the router answer them, writes responses or event streams,
// and watches for the client leaving while a request is being worked on.
#pragma once

#include <boost/beast/core/flat_buffer.hpp>
#include <functional>
#include <memory>
#include <string>

#include "server/exchange.h"

namespace capstan::server {

struct AppState;

class HttpSession final : public Exchange,
                          public Flushable,
                          public std::enable_shared_from_this<HttpSession> {
 public:
  HttpSession(AppState& app, IoThread& thread, Socket socket);
  ~HttpSession() override;

  /// Serves until the connection ends; called once, on the IO thread.
  void start();

  // Exchange
  HttpRequest& request() override { return request_; }
  Executor executor() override { return thread_.executor(); }
  const std::shared_ptr<Mailbox>& mailbox() override { return thread_.mailbox(); }
  bool disconnected() const override { return disconnected_; }
  void on_disconnect(std::function<void()> callback) override {
    disconnect_callback_ = std::move(callback);
  }
  void begin_event_stream() override;
  bool streaming() const override { return streaming_; }
  std::string& stream_buffer() override { return out_; }
  void stream_flush() override;

  void hold_drain() override;

  // Flushable
  void flush() override;

 private:
  enum class ReadResult { kRequest, kClosed, kAnswered };

  Task<void> run();
  Task<ReadResult> read_request();
  Task<void> refuse(HttpResponse response);  // answers a request that could not be read, then ends
  Task<void> write_response(HttpResponse response);
  Task<void> finish_stream();
  Task<bool> write_all(std::string head, std::string body);
  Task<void> linger();
  void arm_deadline(double seconds);
  void disarm_deadline();
  void watch_for_disconnect();
  Task<void> stop_watching();
  void client_left();
  void send_remainder();
  std::string response_head(const HttpResponse& response, size_t body_size) const;
  void append_common_headers(std::string& head) const;
  void log_access(int status, size_t bytes) const;
  void close();
  void release_drain_hold();

  AppState& app_;
  IoThread& thread_;
  Socket socket_;
  Timer deadline_;
  uint64_t deadline_generation_ = 0;
  boost::beast::flat_buffer input_;
  HttpRequest request_;
  bool http11_ = true;
  bool keep_alive_ = true;
  bool in_request_ = false;

  bool holds_drain_ = false;

  bool watching_ = false;
  Signal watch_ended_;
  bool disconnected_ = false;
  std::function<void()> disconnect_callback_;

  // Event stream: text not yet handed to the kernel.
  bool streaming_ = false;
  bool dirty_ = false;
  bool head_pending_ = false;  // out_head_ not sent yet
  std::string out_head_;
  std::string out_;       // events appended since the last write
  std::string inflight_;  // remainder of a write that would have blocked
  bool writing_ = false;
  Signal written_;
  size_t streamed_bytes_ = 0;
};

}  // namespace capstan::server
