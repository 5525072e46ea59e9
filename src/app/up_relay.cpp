#include "app/up_relay.h"

#include <sys/socket.h>

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <cerrno>
#include <cstring>

namespace capstan::app {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

class Relay::Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Relay& relay, tcp::socket client)
      : relay_(relay), client_(std::move(client)), server_(relay.io_) {}

  void start() {
    const int fd = relay_.make_socket_();
    error_code error;
    if (fd < 0) return reset();
    server_.assign(tcp::v4(), fd, error);
    if (error) {
      ::close(fd);
      return reset();
    }
    client_.set_option(tcp::no_delay(true), error);
    server_.set_option(tcp::no_delay(true), error);
    server_.async_connect({asio::ip::address_v4::loopback(), relay_.target_port_},
                          [self = shared_from_this()](error_code failed) {
                            if (failed) return self->reset();
                            self->pump(self->client_, self->server_, self->upward_);
                            self->pump(self->server_, self->client_, self->downward_);
                          });
  }

  /// As a dead server's kernel would: the client's next read fails.
  void reset() {
    error_code ignored;
    if (client_.is_open()) {
      client_.set_option(asio::socket_base::linger(true, 0), ignored);
      client_.close(ignored);
    }
    server_.close(ignored);
    relay_.connections_.erase(shared_from_this());
  }

 private:
  using Buffer = std::array<char, 32 * 1024>;

  void pump(tcp::socket& from, tcp::socket& to, Buffer& buffer) {
    from.async_read_some(asio::buffer(buffer), [this, self = shared_from_this(), &from, &to,
                                                &buffer](error_code error, size_t bytes) {
      if (error == asio::error::eof) return end_of(to);
      if (error) return reset();
      asio::async_write(to, asio::buffer(buffer.data(), bytes),
                        [this, self, &from, &to, &buffer](error_code failed, size_t) {
                          if (failed) return reset();
                          pump(from, to, buffer);
                        });
    });
  }

  void end_of(tcp::socket& to) {
    error_code ignored;
    to.shutdown(tcp::socket::shutdown_send, ignored);
    if (++ended_ < 2) return;
    client_.close(ignored);
    server_.close(ignored);
    relay_.connections_.erase(shared_from_this());
  }

  Relay& relay_;
  tcp::socket client_, server_;
  Buffer upward_, downward_;
  int ended_ = 0;
};

Relay::Relay(asio::io_context& io, std::function<int()> make_socket, uint16_t target_port)
    : io_(io), make_socket_(std::move(make_socket)), target_port_(target_port), acceptor_(io) {}

Relay::~Relay() { abort(); }

Status Relay::listen(server::Listener listener) {
  const int fd = listener.release();
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length);
  error_code error;
  acceptor_.assign(bound.ss_family == AF_INET6 ? tcp::v6() : tcp::v4(), fd, error);
  if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (error) return unavailable("listen: " + error.message());
  accept();
  return {};
}

void Relay::accept() {
  acceptor_.async_accept([this](error_code error, tcp::socket socket) {
    if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
    if (error) {  // out of descriptors: not at once again
      auto pause = std::make_shared<asio::steady_timer>(io_, std::chrono::milliseconds(50));
      pause->async_wait([this, pause](error_code stopped) {
        if (!stopped && acceptor_.is_open()) accept();
      });
      return;
    }
    const auto connection = std::make_shared<Connection>(*this, std::move(socket));
    connections_.insert(connection);
    connection->start();
    accept();
  });
}

void Relay::stop_accepting() {
  error_code ignored;
  acceptor_.close(ignored);
}

void Relay::abort() {
  stop_accepting();
  while (!connections_.empty()) {
    const auto connection = *connections_.begin();
    connection->reset();
  }
}

}  // namespace capstan::app
