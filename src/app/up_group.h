// The nodes of `capstan up` from the first fork to the last exit.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "app/up_network.h"
#include "app/up_options.h"
#include "app/up_process.h"
#include "app/up_relay.h"
#include "app/up_screen.h"
#include "app/up_status.h"

namespace capstan::app {

/// The node a line of a group's log names as the reason of its end: "rank 8 (node 1, host b) failed
/// at step 41: ..."; -1 if it does not.
int named_culprit(const std::string& line);

/// One thread runs everything, the one that starts the nodes: the kernel ends them with it.
class UpGroup {
 public:
  /// `network` may be null: processes on loopback.
  UpGroup(const UpOptions& options, std::unique_ptr<UpNetwork> network, server::Listener listener,
          UpScreen& screen);
  ~UpGroup();  // kills what still runs

  /// Until the last node has ended. The exit code.
  int run();

 private:
  struct Node {
    explicit Node(boost::asio::io_context& io) : output(io), delay(io) {}
    NodeRow row;
    NodeAddress address;
    NodeProcess process;
    boost::asio::posix::stream_descriptor output;
    boost::asio::steady_timer delay;
    std::string partial;  // of a line
    std::array<char, 8192> buffer;
    bool started = false, running = false, polled = true;
    std::optional<NodeExit> exit;
  };

  Status plan(const server::Listener& listener);
  Status start(int node);
  void start_later(int node);
  void read_output(int node);
  void on_line(int node, const std::string& line);
  void await_signal();
  void on_signal(int number);
  void reap();
  void on_exit(int node, const NodeExit& exit);
  void signal_all(int number);
  void end_others(double seconds, int number);
  void tick();
  void show();
  void poll(int node);
  void probe_port();
  void on_ready();
  void print_nodes() const;
  int stream_socket(int node) const;
  bool finished() const;
  int result();

  const UpOptions& options_;
  std::unique_ptr<UpNetwork> network_;
  std::optional<server::Listener> listener_;
  UpScreen& screen_;
  boost::asio::io_context io_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::unique_ptr<Relay> relay_;
  boost::asio::signal_set signals_;
  boost::asio::steady_timer tick_, probe_, end_;
  std::string token_, url_, api_address_;
  uint16_t api_port_ = 0;
  bool ready_ = false, stopping_ = false, failed_ = false;
  int first_failed_ = -1, culprit_ = -1;
  int forced_by_ = 0;  // the second signal
};

}  // namespace capstan::app
