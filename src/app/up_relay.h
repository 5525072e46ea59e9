// Carries TCP connections from a port of this machine to one in a node's namespace.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <functional>
#include <memory>
#include <set>

#include "base/result.h"
#include "server/server.h"

namespace capstan::app {

/// Takes bytes as they are, in both directions, and passes ends of streams on: a client sees the
/// server's orderly end, its reset or its death as if it were connected to it. Used from the
/// thread of the io_context.
class Relay {
 public:
  /// `make_socket`: a not connected, not blocking IPv4 socket in the namespace, or -1.
  Relay(boost::asio::io_context& io, std::function<int()> make_socket, uint16_t target_port);
  ~Relay();

  /// Accepts from here on; not earlier, so that the port refuses until the server is ready.
  Status listen(server::Listener listener);
  /// Closes the port and, with a reset, all connections.
  void abort();
  /// Closes the port; connections go on.
  void stop_accepting();

 private:
  class Connection;
  void accept();

  boost::asio::io_context& io_;
  std::function<int()> make_socket_;
  uint16_t target_port_;
  boost::asio::ip::tcp::acceptor acceptor_;
  std::set<std::shared_ptr<Connection>> connections_;
};

}  // namespace capstan::app
