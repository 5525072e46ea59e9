#include "app/up_group.h"

#include <sched.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <cstdlib>
#include <regex>

#include "platform/cpu.h"

namespace capstan::app {

namespace asio = boost::asio;
using boost::system::error_code;

namespace {

constexpr int kStartFailed = 1;
// Port of the rendezvous in namespaces, that of SGLang's manifests.
constexpr uint16_t kRendezvousPort = 20000;

std::string random_token() {
  std::array<unsigned char, 32> bytes{};
  // Not a guess, and never short for so few bytes.
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) return "";
  std::string text;
  for (const unsigned char byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

Result<uint16_t> free_port() {
  CAPSTAN_ASSIGN(const server::Listener listener, server::Listener::bind("127.0.0.1", 0));
  return listener.port();
}

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

/// Where a client on this machine reaches what listens on the address bound.
std::string reachable_address(server::Listener& listener) {
  const int fd = listener.release();
  sockaddr_storage bound{};
  socklen_t length = sizeof bound;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length);
  ::close(fd);
  asio::ip::tcp::endpoint endpoint;
  endpoint.resize(length);
  std::memcpy(endpoint.data(), &bound, length);
  const auto address = endpoint.address();
  if (!address.is_unspecified()) return address.to_string();
  return address.is_v6() ? "::1" : "127.0.0.1";
}

}  // namespace

int named_culprit(const std::string& line) {
  static const std::regex pattern(R"(rank \d+ \(node (\d{1,6}), host [^)]*\) failed at step \d+)");
  std::smatch match;
  return std::regex_search(line, match, pattern) ? std::stoi(match[1]) : -1;
}

UpGroup::UpGroup(const UpOptions& options, std::unique_ptr<UpNetwork> network,
                 server::Listener listener, UpScreen& screen)
    : options_(options),
      network_(std::move(network)),
      listener_(std::move(listener)),
      screen_(screen),
      signals_(io_, SIGINT, SIGTERM),
      tick_(io_),
      probe_(io_),
      end_(io_) {
  signals_.add(SIGHUP);
  signals_.add(SIGCHLD);
}

UpGroup::~UpGroup() {
  for (const auto& node : nodes_) {
    if (!node->running) continue;
    ::kill(node->process.pid, SIGKILL);
    ::waitpid(node->process.pid, nullptr, 0);
  }
}

int UpGroup::run() {
  if (const Status status = plan(*listener_); !status.ok()) {
    std::fprintf(stderr, "capstan up: error: %s\n", status.error().message.c_str());
    return kStartFailed;
  }
  await_signal();
  for (size_t node = 0; node < nodes_.size(); ++node) start_later(static_cast<int>(node));
  if (failed_ && finished()) return kStartFailed;
  print_nodes();
  probe_port();
  tick();
  io_.run();
  return result();
}

Status UpGroup::plan(const server::Listener& listener) {
  const char* token = std::getenv("CAPSTAN_GROUP_TOKEN");
  token_ = token != nullptr && *token != '\0' ? token : random_token();
  api_port_ = listener.port();
  const auto shares = share_cpus(platform::affinity_cpus(), options_.nodes);
  const uint16_t rendezvous = api_port_ == kRendezvousPort ? kRendezvousPort + 1 : kRendezvousPort;
  std::string init = network_ ? network_->place(0).address + ":" + std::to_string(rendezvous) : "";
  if (!network_) {
    CAPSTAN_ASSIGN(const uint16_t port, free_port());
    init = "127.0.0.1:" + std::to_string(port);
  }
  for (int i = 0; i < options_.nodes; ++i) {
    auto node = std::make_unique<Node>(io_);
    node->row.node = i;
    node->row.first_rank = i * options_.ranks_per_node();
    node->row.last_rank = node->row.first_rank + options_.ranks_per_node() - 1;
    node->row.cpus = shares[static_cast<size_t>(i)];
    node->row.state = "waiting";
    node->address = {init, network_ ? "0.0.0.0" : "127.0.0.1", api_port_};
    node->row.host = network_ ? network_->place(i).address : "127.0.0.1";
    if (!network_ && i == 0) node->address.host = options_.host;
    if (!network_ && i > 0) {
      CAPSTAN_ASSIGN(node->address.port, free_port());
    }
    nodes_.push_back(std::move(node));
  }
  if (network_) {
    api_address_ = "127.0.0.1";  // inside the namespace, so that a cut link hides nothing
    relay_ = std::make_unique<Relay>(
        io_, [this] { return network_->stream_socket(0); }, api_port_);
  } else {
    api_address_ = reachable_address(*listener_);
    listener_.reset();  // node 0 binds it
  }
  const std::string shown =
      options_.host == "0.0.0.0" || options_.host.empty() ? "127.0.0.1" : options_.host;
  url_ = "http://" + (shown.find(':') == std::string::npos ? shown : "[" + shown + "]") + ":" +
         std::to_string(api_port_);
  return {};
}

void UpGroup::start_later(int node) {
  const double seconds = options_.node_delay[static_cast<size_t>(node)];
  const auto now = [this, node] {
    if (stopping_ || failed_) return;
    if (const Status status = start(node); !status.ok()) {
      screen_.note("node " + std::to_string(node) + ": " + status.error().message);
      nodes_[static_cast<size_t>(node)]->row.state = "not started";
      if (!failed_) first_failed_ = node;
      failed_ = true;
      end_others(0, SIGTERM);
    }
  };
  if (seconds == 0) return now();
  auto& timer = nodes_[static_cast<size_t>(node)]->delay;
  timer.expires_after(milliseconds(seconds));
  timer.async_wait([this, now](error_code stopped) {
    if (stopped) return;
    now();
    print_nodes();
  });
}

Status UpGroup::start(int i) {
  Node& node = *nodes_[static_cast<size_t>(i)];
  NodeCommand command;
  command.program = "/proc/self/exe";
  command.arguments = node_arguments(options_, i, node.address);
  const std::string interface = network_ ? network_->place(i).interface : "lo";
  command.environment = {"CAPSTAN_GROUP_TOKEN=" + token_, "GLOO_SOCKET_IFNAME=" + interface,
                         "NCCL_SOCKET_IFNAME=" + interface};
  for (const std::string& variable : options_.node_environment[static_cast<size_t>(i)]) {
    command.environment.push_back(variable);
  }
  command.cpus = node.row.cpus;
  if (network_) {
    command.network_namespace = network_->place(i).path;
    command.host_name = network_->place(i).name;
  }
  CAPSTAN_ASSIGN(node.process, start_node(command));
  node.started = node.running = true;
  node.row.pid = node.process.pid;
  node.row.state = "starting";
  node.output.assign(node.process.output);
  read_output(i);
  return {};
}

void UpGroup::read_output(int i) {
  Node& node = *nodes_[static_cast<size_t>(i)];
  node.output.async_read_some(
      asio::buffer(node.buffer), [this, i, &node](error_code error, size_t bytes) {
        node.partial.append(node.buffer.data(), bytes);
        size_t from = 0;
        for (size_t at; (at = node.partial.find('\n', from)) != std::string::npos; from = at + 1) {
          on_line(i, node.partial.substr(from, at - from));
        }
        node.partial.erase(0, from);
        if (!error) return read_output(i);
        if (!node.partial.empty()) on_line(i, std::exchange(node.partial, ""));
        error_code ignored;
        node.output.close(ignored);
        if (finished()) io_.stop();
      });
}

void UpGroup::on_line(int i, const std::string& line) {
  screen_.line(i, line);
  nodes_[static_cast<size_t>(i)]->row.last_line = line;
  if (culprit_ < 0) culprit_ = named_culprit(line);
  if (culprit_ >= options_.nodes) culprit_ = -1;
}

void UpGroup::await_signal() {
  signals_.async_wait([this](error_code error, int number) {
    if (error) return;
    if (number == SIGCHLD) {
      reap();
    } else {
      on_signal(number);
    }
    await_signal();
  });
}

void UpGroup::on_signal(int number) {
  if (forced_by_ != 0) return;
  if (stopping_) {
    screen_.note("Signal " + std::to_string(number) + ": ending all nodes at once");
    forced_by_ = number;
    signal_all(SIGKILL);
    return;
  }
  stopping_ = true;
  screen_.note("Signal " + std::to_string(number) +
               ": draining all nodes; a second one ends them at once");
  if (relay_ && !ready_) relay_->stop_accepting();
  signal_all(SIGTERM);
  for (const auto& node : nodes_) {
    node->delay.cancel();
    if (!node->started) node->row.state = "not started";
  }
  if (finished()) io_.stop();
}

void UpGroup::reap() {
  for (size_t i = 0; i < nodes_.size(); ++i) {
    Node& node = *nodes_[i];
    int status = 0;
    if (!node.running || ::waitpid(node.process.pid, &status, WNOHANG) != node.process.pid) {
      continue;
    }
    node.running = false;
    node.exit = node_exit(status);
    on_exit(static_cast<int>(i), *node.exit);
  }
  if (finished()) io_.stop();
}

void UpGroup::on_exit(int i, const NodeExit& exit) {
  NodeRow& row = nodes_[static_cast<size_t>(i)]->row;
  row.state = "ended " + std::to_string(exit.code);
  row.report = {};
  row.resident_bytes = 0;
  screen_.note("node " + std::to_string(i) + " " + exit.describe());
  show();
  // Its sockets are gone; what the clients have not been told they will not hear any more.
  if (i == 0 && relay_) {
    asio::post(io_, [this] { relay_->stop_accepting(); });
    probe_.cancel();
  }
  if (exit.orderly() || failed_) return;
  failed_ = true;
  first_failed_ = i;
  // A node that refuses to start has said why; the others would wait for it.
  const bool refused = !ready_ && exit.signal == 0 && exit.code <= 2;
  end_others(refused ? std::min(3.0, options_.grace) : options_.grace, SIGTERM);
}

void UpGroup::signal_all(int number) {
  for (const auto& node : nodes_) {
    if (node->running) ::kill(node->process.pid, number);
  }
}

void UpGroup::end_others(double seconds, int number) {
  end_.expires_after(milliseconds(seconds));
  end_.async_wait([this, number](error_code stopped) {
    if (stopped) return;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (!nodes_[i]->running) continue;
      const char state = process_state(nodes_[i]->process.pid);
      screen_.note("node " + std::to_string(i) + " has not ended by itself" +
                   (state == 'T' ? ", it is stopped" : "") + ": signal " + std::to_string(number));
    }
    signal_all(number);
    if (number != SIGKILL) end_others(5, SIGKILL);
  });
}

bool UpGroup::finished() const {
  for (const auto& node : nodes_) {
    if (node->running || node->output.is_open()) return false;
    if (!node->started && !stopping_ && !failed_) return false;  // its delay is not over
  }
  return true;
}

int UpGroup::result() {
  relay_.reset();
  if (forced_by_ != 0) return 128 + forced_by_;
  int culprit = culprit_ >= 0 ? culprit_ : first_failed_;
  const auto failed = [&](int i) {
    return i >= 0 && nodes_[static_cast<size_t>(i)]->exit &&
           !nodes_[static_cast<size_t>(i)]->exit->orderly();
  };
  if (!failed(culprit)) culprit = first_failed_;
  for (int i = 0; culprit < 0 && i < options_.nodes; ++i) {
    if (failed(i)) culprit = i;
  }
  if (culprit < 0) return 0;
  const Node& node = *nodes_[static_cast<size_t>(culprit)];
  if (!node.exit) return kStartFailed;
  std::fprintf(stderr, "capstan up: node %d (pid %d, %s) %s\n", culprit, node.process.pid,
               node.row.host.c_str(), node.exit->describe().c_str());
  return node.exit->code == 0 ? kStartFailed : node.exit->code;
}

}  // namespace capstan::app
