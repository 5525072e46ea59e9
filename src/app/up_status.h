// What the nodes of `capstan up` tell about themselves over HTTP, and how it is shown.
#pragma once

#include <sys/types.h>

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace capstan::app {

/// An answer; status 0: none within the time given.
struct StatusAnswer {
  int status = 0;
  std::string body;
};

/// GET on a socket that is not connected yet, to `port` of loopback or of the address given.
/// `done` is called once, from the io_context's thread. Takes the socket, which may be -1.
void get_status(boost::asio::io_context& io, int socket, const std::string& address, uint16_t port,
                const std::string& path, std::function<void(StatusAnswer)> done);

/// What is known of a node at one moment; unset is not known.
struct NodeReport {
  std::optional<bool> ready;
  std::optional<std::string> phase;
  std::optional<uint64_t> step;
  std::optional<double> heartbeat_age;  // seconds, the oldest of its peers
  std::optional<double> tokens_per_second;
};

/// From the body of /readyz, an object with any of "phase", "step", "heartbeat_age_seconds";
/// anything else is no news.
void read_readyz(const StatusAnswer& answer, NodeReport& report);
/// The value of a gauge without regard to labels, in Prometheus' text format.
std::optional<double> metric(const std::string& text, const std::string& name);
void read_metrics(const StatusAnswer& answer, NodeReport& report);

struct NodeRow {
  int node = 0;
  int first_rank = 0, last_rank = 0;
  std::string host;
  std::string state;  // "waiting", "starting", "ready", "not ready", "ended 137" ...
  NodeReport report;
  std::string last_line;  // of its log, shown while it tells no phase
  pid_t pid = -1;
  std::vector<int> cpus;
  uint64_t resident_bytes = 0;
};

/// The rows under a head, none longer than `width` columns.
std::vector<std::string> status_table(const std::vector<NodeRow>& rows, int width);

/// "0-3,8"
std::string cpu_list(const std::vector<int>& cpus);

}  // namespace capstan::app
