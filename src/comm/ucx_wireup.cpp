// How a mesh over UCX begins: addresses over the links, then a first message to everybody.
#include <poll.h>

#include <utility>

#include "comm/control_message.h"
#include "comm/socket_handshake.h"
#include "comm/ucx_mesh.h"

namespace capstan::comm {
namespace {

using Clock = std::chrono::steady_clock;

// Connecting through UCX takes milliseconds; a node that cannot be reached may not say so.
constexpr auto kWireUp = std::chrono::seconds(30);
constexpr const char* kHint = "; see UCX_TLS and UCX_NET_DEVICES, or use --comm-transport tcp";

std::string encode(const Status& status, const std::string& text) {
  return Writer()
      .text(status.ok() ? "" : status.error().message)
      .text(status.ok() ? text : "")
      .take();
}

/// What a node said: a text, or why it cannot go on.
Result<std::string> hear(const NodeLink& link) {
  CAPSTAN_ASSIGN(const std::string message, receive_text(link));
  Reader in(message);
  const std::string error = in.text();
  std::string text = in.text();
  if (!in.done()) return unavailable(node_name(link) + " gave no readable address of UCX");
  if (!error.empty()) return unavailable(node_name(link) + ": " + error);
  return text;
}

/// Everybody hears of every failure: nobody is left waiting.
Result<std::vector<std::string>> tell_all(const std::vector<NodeLink>& links, const Status& mine,
                                          const std::string& text) {
  for (const NodeLink& link : links) CAPSTAN_RETURN_IF_ERROR(send_text(link, encode(mine, text)));
  std::vector<std::string> told;
  Status first = mine;
  for (const NodeLink& link : links) {
    auto heard = hear(link);
    if (first.ok() && !heard.ok()) first = heard.status();
    told.push_back(heard.ok() ? std::move(*heard) : "");
  }
  CAPSTAN_RETURN_IF_ERROR(first);
  return told;
}

}  // namespace

Result<std::shared_ptr<Mesh>> UcxMesh::make(const Topology& topology, std::vector<NodeLink> links,
                                            bool crowded, std::shared_ptr<Fate> fate) {
  const std::vector<NodeLink> names = links;  // the mesh owns them
  const std::shared_ptr<UcxMesh> mesh(
      new UcxMesh(topology, std::move(links), crowded, std::move(fate)));
  if (const Status s = mesh->connect(topology, names); !s.ok()) {
    mesh->fate().fail(s.error());  // no farewell
    return s.error();
  }
  return std::shared_ptr<Mesh>(mesh);
}

Status UcxMesh::connect(const Topology& topology, const std::vector<NodeLink>& links) {
  std::string mine;
  auto made = UcxWorker::make(topology.nodes, topology.interface, this);
  Status status = made.status();
  if (made.ok()) {
    worker_ = std::move(*made);
    const auto address = worker_->address();
    status = address.status();
    if (address.ok()) mine = Writer().number(worker_->secret()).text(*address).take();
  }
  CAPSTAN_ASSIGN(const std::vector<std::string> told, tell_all(links, status, mine));
  for (size_t i = 0; i < links.size() && status.ok(); ++i) {
    Reader in(told[i]);
    const uint64_t secret = in.number();
    const std::string address = in.text();
    status = in.done() ? worker_->connect(links[i].node, address, secret)
                       : unavailable("its address is unreadable");
    if (!status.ok()) {
      status = unavailable("UCX finds no way from node " + std::to_string(topology.node) + " to " +
                           node_name(links[i]) + ": " + status.error().message + kHint);
    }
  }
  CAPSTAN_RETURN_IF_ERROR(tell_all(links, status, "").status());
  status = wire_up(links);
  if (status.ok()) {
    worker_->set_wired();
  } else {
    for (const NodeLink& link : links) (void)send_text(link, encode(status, ""));
  }
  return status;
}

/// Until a message came from everybody and everybody says the same.
Status UcxMesh::wire_up(const std::vector<NodeLink>& links) {
  for (const NodeLink& link : links) {
    std::unique_ptr<UcxPiece> piece = worker_->take_piece(0);
    piece->header.kind = UcxHeader::kHello;
    post(*peer(link.node), std::move(piece));
  }
  const auto until = Clock::now() + kWireUp;
  std::vector<bool> heard(links.size());
  bool told = false;
  for (;;) {
    while (worker_->progress()) {
    }
    bool greeted = worker_->flushed();
    bool all = told;
    std::string missing;
    std::vector<pollfd> fds;
    for (size_t i = 0; i < links.size(); ++i) {
      const Peer& other = *peer(links[i].node);
      if (other.broken) {
        return unavailable("UCX cannot connect node " + std::to_string(node_) + " with " +
                           node_name(links[i]) + ": " + other.why + kHint);
      }
      if (!other.greeted) missing += (missing.empty() ? "" : ", ") + node_name(links[i]);
      all = all && heard[i];
      fds.push_back({heard[i] ? -1 : links[i].fd, POLLIN | POLLRDHUP, 0});
    }
    if (all) return {};
    greeted = greeted && missing.empty();
    if (greeted && !told) {
      for (const NodeLink& link : links) CAPSTAN_RETURN_IF_ERROR(send_text(link, encode({}, "")));
      told = true;
      continue;
    }
    if (Clock::now() > until) {
      return unavailable("UCX did not connect node " + std::to_string(node_) + " with " +
                         (missing.empty() ? "all others" : missing) + " within " +
                         std::to_string(kWireUp.count()) + " s" + kHint);
    }
    // The worker is not armed: a millisecond is nothing here.
    poll(fds.data(), fds.size(), 1);
    for (size_t i = 0; i < links.size(); ++i) {
      if (fds[i].revents == 0) continue;
      CAPSTAN_RETURN_IF_ERROR(hear(links[i]).status());
      heard[i] = true;
    }
  }
}

}  // namespace capstan::comm
