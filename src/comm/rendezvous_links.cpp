// The tensor links of a formed group, and whether its nodes share memory.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <thread>

#include "base/log.h"
#include "comm/rendezvous.h"
#include "comm/secret.h"
#include "comm/ucx_support.h"

namespace capstan::comm {
namespace {

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

/// A small segment of node 0 that the others try to read: two containers of one machine have the
/// same boot id, but not always the same /dev/shm.
class Probe {
 public:
  explicit Probe(const std::string& session) : name_("/capstan-" + hex(session) + "-probe") {}
  ~Probe() {
    if (made_) shm_unlink(name_.c_str());
  }
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  /// Returns what stands in it; empty when it could not be made.
  std::string make() {
    Fd fd(shm_open(name_.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600));
    if (!fd.valid()) return "";
    made_ = true;
    const std::string content(view(random_digest()));
    return write(fd.get(), content.data(), content.size()) == static_cast<ssize_t>(content.size())
               ? content
               : "";
  }

  /// Empty: this process sees the segment with that content.
  std::string look_for(const std::string& content) const {
    Fd fd(shm_open(name_.c_str(), O_RDONLY, 0));
    if (!fd.valid()) return "node 0's segment cannot be opened: " + errno_text(errno);
    char found[64];
    const ssize_t n = read(fd.get(), found, sizeof found);
    if (n < 0 || std::string_view(found, static_cast<size_t>(n)) != content) {
      return "its /dev/shm is not node 0's";
    }
    return "";
  }

 private:
  std::string name_;
  bool made_ = false;
};

/// What every node tells of itself before the links are opened.
struct Offer {
  std::string address;  // empty: where node 0 was reached
  uint16_t port = 0;
  std::string boot;
  std::string probe;
};

std::string encode(const Offer& offer) {
  return Writer()
      .text(offer.address)
      .number(offer.port, 2)
      .text(offer.boot)
      .text(offer.probe)
      .take();
}

bool decode(std::string_view body, Offer& offer) {
  Reader in(body);
  offer.address = in.text();
  offer.port = static_cast<uint16_t>(in.number(2));
  offer.boot = in.text();
  offer.probe = in.text();
  return in.done();
}

class Opener {
 public:
  Opener(const GroupConfig& config, const GroupTiming& timing, const Formed& formed,
         const Stop& stop)
      : config_(config),
        timing_(timing),
        formed_(formed),
        stop_(stop),
        key_(link_key(control_key(config.token, config.dist_init_addr), formed.session)),
        deadline_(Clock::now() + timing.links) {}

  Status listen(Offer& offer);
  /// To every node with a smaller number; those with a greater one come here.
  Status connect(const std::vector<Offer>& offers);
  Status accept();
  std::vector<NodeLink> take();
  /// The chosen interface; empty: the kernel chooses.
  const std::string& interface() const { return interface_; }

 private:
  Result<Fd> connect_once(int node, const SocketAddress& address);
  const std::string& host(int node) const { return formed_.hosts[static_cast<size_t>(node)]; }

  const GroupConfig& config_;
  const GroupTiming& timing_;
  const Formed& formed_;
  const Stop& stop_;
  std::string key_;
  TimePoint deadline_;
  std::string interface_;
  SocketAddress own_;  // of the chosen interface; length 0: the kernel chooses
  Acceptor acceptor_;
  std::map<int, Fd> open_;
};

Status Opener::listen(Offer& offer) {
  std::string through;
  if (!config_.interface.empty()) {
    CAPSTAN_ASSIGN(const Interface chosen,
                   select_interface(config_.interface, list_interfaces(), formed_.local.family()));
    own_ = chosen.address;
    interface_ = chosen.name;
    through = " (interface " + chosen.name + ")";
  }
  // Members are found where they spoke from; node 0 at the address at which each member found it.
  const bool any = config_.interface.empty() && config_.node == 0;
  const SocketAddress& at = own_.length > 0 ? own_ : formed_.local;
  CAPSTAN_ASSIGN(Fd listener, listen_on(any ? nullptr : &at, 0));
  Acceptor::Limits limits;
  limits.opening = timing_.opening;
  limits.log_interval = timing_.log_interval;
  acceptor_ = Acceptor(std::move(listener), Purpose::kLink, key_, limits);
  offer.address = any ? "" : at.host();
  offer.port = acceptor_.port();
  if (config_.node + 1 < config_.nodes) {
    LOG_INFO("node {} listens on {} port {}{} for tensor links of the other nodes", config_.node,
             any ? "every address," : offer.address, offer.port, through);
  }
  return {};
}

Result<Fd> Opener::connect_once(int node, const SocketAddress& address) {
  const TimePoint limit = std::min(deadline_, Clock::now() + timing_.connect);
  CAPSTAN_ASSIGN(Fd fd, connect_to(address, own_.length > 0 ? &own_ : nullptr, limit, stop_));
  CAPSTAN_RETURN_IF_ERROR(open_as_client(
      fd.get(), Purpose::kLink, key_, std::min(deadline_, Clock::now() + timing_.opening), stop_));
  ControlLink link(std::move(fd), 64);
  link.send(MessageType::kLink, Writer().number(static_cast<uint32_t>(config_.node), 4).take());
  CAPSTAN_ASSIGN(const Frame answer,
                 link.wait(std::min(deadline_, Clock::now() + timing_.opening), stop_));
  if (answer.type != MessageType::kLinkOpen) {
    return unavailable(describe_node(node, host(node)) + " refused the link");
  }
  return link.take_socket();
}

Status Opener::connect(const std::vector<Offer>& offers) {
  for (int node = 0; node < config_.node; ++node) {
    const Offer& offer = offers[static_cast<size_t>(node)];
    CAPSTAN_ASSIGN(
        SocketAddress address,
        numeric_address(offer.address.empty() ? formed_.leader.host() : offer.address, offer.port));
    while (true) {
      Result<Fd> fd = connect_once(node, address);
      if (fd.ok()) {
        open_[node] = std::move(fd).value();
        break;
      }
      if (fd.error().code == ErrorCode::kAborted) return fd.error();
      if (Clock::now() + timing_.backoff >= deadline_) {
        return unavailable(
            "node " + std::to_string(config_.node) + " (host " + host(config_.node) +
            ") cannot open a tensor link to " + describe_node(node, host(node)) + " at " +
            address.text() + ": " + fd.error().message +
            "; let the nodes reach each other on all ports of that network, or choose another "
            "with GLOO_SOCKET_IFNAME");
      }
      std::this_thread::sleep_for(timing_.backoff);
    }
  }
  return {};
}

Status Opener::accept() {
  // A member that cannot connect says so and ends the group; the limit here is the last resort.
  const TimePoint limit = deadline_ + timing_.opening;
  std::vector<pollfd> fds;
  while (open_.size() < static_cast<size_t>(config_.nodes) - 1) {
    if (stop_()) return Error{ErrorCode::kAborted, "cancelled while opening tensor links"};
    if (Clock::now() >= limit) {
      std::string missing;
      for (int node = config_.node + 1; node < config_.nodes; ++node) {
        if (!open_.contains(node)) missing += " " + describe_node(node, host(node));
      }
      return unavailable("no tensor link came from" + missing);
    }
    fds.clear();
    acceptor_.collect(fds);
    poll(fds.data(), fds.size(), 50);
    const TimePoint now = Clock::now();
    for (Arrival& arrival : acceptor_.advance(now)) {
      Reader in(arrival.first.body);
      const auto node = static_cast<int>(in.number(4));
      if (arrival.other_protocol || arrival.first.type != MessageType::kLink || !in.done() ||
          node <= config_.node || node >= config_.nodes) {
        continue;
      }
      arrival.link.send(MessageType::kLinkOpen, "");
      arrival.link.flush();
      // The latest counts: an earlier one is of an attempt that its opener gave up.
      if (Result<Fd> fd = arrival.link.take_socket(); fd.ok()) open_[node] = std::move(*fd);
    }
  }
  return {};
}

std::vector<NodeLink> Opener::take() {
  std::vector<NodeLink> links;
  for (auto& [node, fd] : open_) {
    // Collectives choose their own way of waiting; a plain socket is the least surprise.
    const int flags = fcntl(fd.get(), F_GETFL);
    fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK);
    links.push_back({node, fd.release(), host(node)});
  }
  return links;
}

/// Whether all are to use UCX; an error if one cannot.
Result<bool> agree_on_ucx(const GroupConfig& config, const Formed& formed,
                          const Exchange& exchange) {
  if (config.transport != Transport::kAuto && config.transport != Transport::kUcx) return false;
  CAPSTAN_ASSIGN(const std::vector<std::string> told,
                 exchange("UCX", encode(ucx_support(config.transport))));
  std::vector<UcxSupport> nodes(told.size());
  std::vector<std::string> names;
  for (size_t i = 0; i < told.size(); ++i) {
    names.push_back(describe_node(static_cast<int>(i), formed.hosts[i]));
    if (!decode(told[i], nodes[i])) return internal_error(names[i] + " gave unreadable facts");
  }
  if (config.transport == Transport::kAuto) {
    const std::string hint = ucx_hint(nodes);
    if (config.node == 0 && !hint.empty()) LOG_INFO("{}", hint);
    return false;
  }
  CAPSTAN_RETURN_IF_ERROR(check_ucx(nodes, names));
  const std::string& rdma = nodes[static_cast<size_t>(config.node)].rdma;
  LOG_INFO("tensors go through UCX {}, {}", nodes[0].version,
           rdma.empty() ? "without RDMA, which this node does not have" : "RDMA over " + rdma);
  return true;
}

}  // namespace

Result<Links> open_links(const GroupConfig& config, const GroupTiming& timing, const Formed& formed,
                         const Exchange& exchange, const Stop& stop) {
  Opener opener(config, timing, formed, stop);
  Probe probe(formed.session);
  Offer mine;
  mine.boot = boot_id();
  CAPSTAN_RETURN_IF_ERROR(opener.listen(mine));
  const bool shared =
      config.transport == Transport::kAuto || config.transport == Transport::kSharedMemory;
  if (shared && config.node == 0) mine.probe = probe.make();
  CAPSTAN_ASSIGN(const std::vector<std::string> told, exchange("tensor links", encode(mine)));
  std::vector<Offer> offers(told.size());
  for (size_t i = 0; i < told.size(); ++i) {
    if (!decode(told[i], offers[i])) {
      return internal_error(describe_node(static_cast<int>(i), formed.hosts[i]) +
                            " gave an unreadable offer of links");
    }
  }
  CAPSTAN_RETURN_IF_ERROR(opener.connect(offers));
  CAPSTAN_RETURN_IF_ERROR(opener.accept());

  std::string apart = "another transport was asked for";
  if (shared) {
    apart = offers[0].probe.empty()       ? "node 0 cannot make a segment in /dev/shm"
            : mine.boot != offers[0].boot ? "it is another machine than node 0's"
                                          : probe.look_for(offers[0].probe);
  }
  CAPSTAN_ASSIGN(const std::vector<std::string> verdicts, exchange("shared memory", apart));
  Links out;
  const auto first = std::find_if(verdicts.begin(), verdicts.end(),
                                  [](const std::string& why) { return !why.empty(); });
  if (first == verdicts.end()) {
    out.shared_memory = "/capstan-" + hex(formed.session);
  } else if (shared) {
    const auto node = static_cast<size_t>(first - verdicts.begin());
    const std::string what = describe_node(static_cast<int>(node), formed.hosts[node]) +
                             " has no memory in common with node 0: " + *first;
    if (config.transport == Transport::kSharedMemory) {
      return invalid_argument("shared memory was asked for, but " + what);
    }
    if (config.node == 0) LOG_INFO("tensors go through the network: {}", what);
  }
  if (out.shared_memory.empty()) {
    CAPSTAN_ASSIGN(out.ucx, agree_on_ucx(config, formed, exchange));
    if (out.ucx) out.interface = opener.interface();
  }
  out.links = opener.take();
  return out;
}

}  // namespace capstan::comm
