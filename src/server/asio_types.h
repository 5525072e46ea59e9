// Asio with concrete executors: no type erasure on the path of a token.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/error_code.hpp>
#include <chrono>

namespace capstan::server {

namespace asio = boost::asio;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

using Executor = asio::io_context::executor_type;
template <class T = void>
using Task = asio::awaitable<T, Executor>;
inline constexpr asio::use_awaitable_t<Executor> use_task{};
using Socket = asio::basic_stream_socket<asio::ip::tcp, Executor>;
using Acceptor = asio::basic_socket_acceptor<asio::ip::tcp, Executor>;
using Timer = asio::basic_waitable_timer<Clock, asio::wait_traits<Clock>, Executor>;

/// Lets one coroutine wait until something happened; both on the same IO thread.
class Signal {
 public:
  explicit Signal(const Executor& executor) : timer_(executor) {}
  void notify() {
    set_ = true;
    timer_.cancel();
  }
  bool is_set() const { return set_; }
  void reset() { set_ = false; }
  /// Returns when set; stays set.
  Task<void> wait() {
    while (!set_) {
      error_code ignored;
      timer_.expires_at(Clock::time_point::max());
      co_await timer_.async_wait(asio::redirect_error(use_task, ignored));
    }
  }
  /// Returns when set (true) or when `deadline` has come (false).
  Task<bool> wait_until(Clock::time_point deadline) {
    while (!set_) {
      if (Clock::now() >= deadline) co_return false;
      error_code ignored;
      timer_.expires_at(deadline);
      co_await timer_.async_wait(asio::redirect_error(use_task, ignored));
    }
    co_return true;
  }

 private:
  Timer timer_;
  bool set_ = false;
};

inline double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace capstan::server
