// What the nodes of a group do, as `capstan up` sees and shows it.
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/json.hpp>
#include <cstdio>

#include "app/up_group.h"

namespace capstan::app {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr auto kTick = std::chrono::milliseconds(1000);
constexpr auto kProbe = std::chrono::milliseconds(100);

}  // namespace

int UpGroup::stream_socket(int node) const {
  if (network_) return network_->stream_socket(node);
  const bool v6 = node == 0 && api_address_.find(':') != std::string::npos;
  return ::socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/// The API's port opens when the whole group is ready, not earlier.
void UpGroup::probe_port() {
  probe_.expires_after(kProbe);
  probe_.async_wait([this](error_code stopped) {
    if (stopped || ready_ || failed_ || stopping_) return;
    const int fd = nodes_[0]->running ? stream_socket(0) : -1;
    if (fd < 0) return probe_port();
    const auto address = asio::ip::make_address(api_address_);
    const auto socket = std::make_shared<asio::ip::tcp::socket>(io_);
    socket->assign(address.is_v6() ? asio::ip::tcp::v6() : asio::ip::tcp::v4(), fd);
    socket->async_connect({address, api_port_}, [this, socket](error_code error) {
      if (error) return probe_port();
      if (!ready_ && !failed_) on_ready();
    });
  });
}

void UpGroup::on_ready() {
  ready_ = true;
  if (relay_ && listener_) {
    if (const Status status = relay_->listen(std::move(*listener_)); !status.ok()) {
      screen_.note("can not forward " + url_ + ": " + status.error().message);
    }
    listener_.reset();
    screen_.note("API at " + url_ + "/ (node 0 at http://" + network_->place(0).address + ":" +
                 std::to_string(api_port_) + "/)");
  } else {
    screen_.note("API at " + url_ + "/");
  }
}

void UpGroup::tick() {
  for (int i = 0; i < options_.nodes; ++i) {
    Node& node = *nodes_[static_cast<size_t>(i)];
    if (!node.running) continue;
    node.row.resident_bytes = resident_bytes(node.process.pid);
    poll(i);
  }
  show();
  tick_.expires_after(kTick);
  tick_.async_wait([this](error_code stopped) {
    if (!stopped) tick();
  });
}

void UpGroup::show() {
  if (!screen_.live()) return;
  std::vector<NodeRow> rows;
  for (const auto& node : nodes_) rows.push_back(node->row);
  screen_.table(status_table(rows, screen_.width()));
}

void UpGroup::poll(int i) {
  Node& node = *nodes_[static_cast<size_t>(i)];
  // Node 0's port is probed by connecting alone until it is open.
  if (!node.polled || (i == 0 && !ready_)) return;
  node.polled = false;
  const std::string address = i == 0 ? api_address_ : "127.0.0.1";
  const uint16_t port = node.address.port == 0 ? api_port_ : node.address.port;
  const auto report = std::make_shared<NodeReport>();
  get_status(io_, stream_socket(i), address, port, "/readyz", [=, this, &node](StatusAnswer ready) {
    read_readyz(ready, *report);
    if (ready.status == 0) {
      // No answer: nothing is known, though the process may be well.
      node.polled = true;
      if (node.running && node.row.state == "ready") node.row.state = "no answer";
      node.row.report = {};
      return;
    }
    get_status(io_, stream_socket(i), address, port, "/metrics",
               [report, &node](const StatusAnswer& metrics) {
                 node.polled = true;
                 read_metrics(metrics, *report);
                 if (!node.running) return;
                 node.row.report = *report;
                 node.row.state = report->ready.value_or(true) ? "ready" : "not ready";
               });
  });
}

void UpGroup::print_nodes() const {
  if (!options_.print_nodes) return;
  boost::json::array nodes;
  for (const auto& node : nodes_) {
    const NodeRow& row = node->row;
    boost::json::object entry;
    entry["node"] = row.node;
    if (row.pid > 0) {
      entry["pid"] = row.pid;
    } else {
      entry["pid"] = nullptr;
    }
    boost::json::array ranks, cpus;
    for (int rank = row.first_rank; rank <= row.last_rank; ++rank) ranks.push_back(rank);
    for (const int cpu : row.cpus) cpus.push_back(cpu);
    entry["ranks"] = ranks;
    entry["cpus"] = cpus;
    entry["address"] = row.host;
    entry["port"] = node->address.port;
    if (network_) {
      const UpPlace& place = network_->place(row.node);
      entry["namespace"] = place.name;
      entry["interface"] = place.interface;
      entry["link"] = place.link;
    }
    nodes.push_back(entry);
  }
  boost::json::object object{{"nodes", nodes}, {"url", url_}};
  object["dist_init_addr"] = nodes_[0]->address.dist_init_addr;
  if (network_) {
    object["bridge"] = {{"namespace", network_->bridge_namespace()},
                        {"name", network_->bridge()},
                        {"interface", network_->host_interface()},
                        {"address", network_->host_address()}};
  }
  std::printf("%s\n", boost::json::serialize(object).c_str());
  std::fflush(stdout);
}

}  // namespace capstan::app
