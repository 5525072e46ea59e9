// Node 0's side of the rendezvous.
#include <poll.h>

#include <algorithm>
#include <map>
#include <optional>

#include "base/log.h"
#include "comm/address_lookup.h"
#include "comm/heartbeat.h"
#include "comm/rendezvous.h"

namespace capstan::comm {
namespace {

class Leader {
 public:
  Leader(const GroupConfig& config, const GroupTiming& timing, const Stop& stop)
      : config_(config),
        timing_(timing),
        stop_(stop),
        host_(host_name()),
        facts_(all_facts(config)),
        clock_(static_cast<size_t>(config.nodes), config.heartbeat_interval,
               config.heartbeat_timeout, Clock::now()),
        waiting_(timing.log_interval) {}

  Result<Formed> run();

 private:
  struct Member {
    ControlLink link;
    std::string host;
    SocketAddress peer;
  };
  struct Candidate {
    ControlLink link;
    SocketAddress peer;
    Join join;
  };

  void admit(Arrival arrival, TimePoint now);
  void welcome(Candidate candidate, TimePoint now);
  void listen_to(int node, Member& member, TimePoint now);
  void drop(int node, const std::string& why, TimePoint now);
  void report(TimePoint now);
  void beat(TimePoint now);
  void check_own_address();
  std::string missing() const;
  /// Everybody ends; `bystanders` is what the members that fitted are told.
  void give_up(Error error, const std::string& bystanders);
  void say_goodbye();
  Formed take();

  const GroupConfig& config_;
  const GroupTiming& timing_;
  const Stop& stop_;
  std::string host_;
  Facts facts_;
  Acceptor acceptor_;
  std::map<int, Member> members_;
  /// Came with the number of a member that may or may not be alive.
  std::map<int, Candidate> contenders_;
  HeartbeatClock clock_;  // by node
  TimePoint started_ = Clock::now();
  std::optional<TimePoint> first_joined_;
  LogThrottle waiting_;
  std::optional<Error> error_;
  /// Until it is known whether the others can find this machine under the group's address.
  std::optional<AddressLookup> own_address_;
};

void Leader::give_up(Error error, const std::string& bystanders) {
  const TimePoint now = Clock::now();
  for (auto& [node, member] : members_) {
    member.link.send(MessageType::kRefuse, encode(Refusal{error.code, false, bystanders}));
    acceptor_.dismiss(std::move(member.link), now);
  }
  members_.clear();
  error_ = std::move(error);
}

void Leader::say_goodbye() {
  const TimePoint deadline = Clock::now() + timing_.farewell;
  std::vector<pollfd> fds;
  while (acceptor_.busy() && Clock::now() < deadline) {
    fds.clear();
    acceptor_.collect(fds);
    poll(fds.data(), fds.size(), 20);
    // Whoever arrives now finds nobody and tries again.
    (void)acceptor_.advance(Clock::now());
  }
}

void Leader::admit(Arrival arrival, TimePoint now) {
  Candidate candidate{std::move(arrival.link), arrival.peer, {}};
  const auto refuse = [&](ErrorCode code, const std::string& what) {
    candidate.link.send(MessageType::kRefuse, encode(Refusal{code, false, what}));
    acceptor_.dismiss(std::move(candidate.link), now);
  };
  if (arrival.other_protocol) {
    const std::string where = "the node at " + arrival.peer.text();
    give_up(invalid_argument(where + " is " + protocol_difference(arrival.hello)),
            where + " is " + protocol_difference(arrival.hello));
    return;
  }
  Join& join = candidate.join;
  if (arrival.first.type != MessageType::kJoin || !decode(arrival.first.body, join)) {
    return refuse(ErrorCode::kInvalidArgument, "node 0 does not understand this node's request");
  }
  const std::string who = describe_node(join.node, join.host);
  const std::string me = describe_node(0, host_);
  if (const std::string all = describe_difference(join.facts, facts_, "here it"); !all.empty()) {
    refuse(ErrorCode::kInvalidArgument,
           me + ": " + describe_difference(facts_, join.facts, "here it"));
    give_up(invalid_argument(who + ": " + all),
            who + ": " + describe_difference(join.facts, facts_, "on " + me + " it"));
    return;
  }
  if (join.node < 1 || join.node >= config_.nodes) {
    const std::string what = join.node == 0
                                 ? "host " + join.host + " also has --node-rank 0, as host " +
                                       host_ + " does; give each node its own"
                                 : who + ": its --node-rank is outside 0 to " +
                                       std::to_string(config_.nodes - 1) + " (--nnodes " +
                                       std::to_string(config_.nodes) + ")";
    refuse(ErrorCode::kInvalidArgument, what);
    give_up(invalid_argument(what), what);
    return;
  }
  if (members_.contains(join.node)) {
    // The member may have died without a word; its next heartbeat, or the lack of it, decides.
    const int node = join.node;
    if (const auto old = contenders_.find(node); old != contenders_.end()) {
      acceptor_.dismiss(std::move(old->second.link), now);
      contenders_.erase(old);
    }
    contenders_.emplace(node, std::move(candidate));
    return;
  }
  welcome(std::move(candidate), now);
}

void Leader::welcome(Candidate candidate, TimePoint now) {
  const int node = candidate.join.node;
  candidate.link.send(MessageType::kWelcome, Writer().text(host_).take());
  candidate.link.flush();
  members_.insert_or_assign(node,
                            Member{std::move(candidate.link), candidate.join.host, candidate.peer});
  clock_.heard(static_cast<size_t>(node), now);
  if (!first_joined_) first_joined_ = now;
  LOG_INFO("{} joined from {}: {} of {} nodes are here", describe_node(node, candidate.join.host),
           candidate.peer.host(), members_.size() + 1, config_.nodes);
}

void Leader::drop(int node, const std::string& why, TimePoint now) {
  const auto member = members_.find(node);
  LOG_WARN("{} left before the group was complete ({}); waiting for it to come again",
           describe_node(node, member->second.host), why);
  members_.erase(member);
  if (const auto next = contenders_.find(node); next != contenders_.end()) {
    Candidate candidate = std::move(next->second);
    contenders_.erase(next);
    welcome(std::move(candidate), now);
  }
}

void Leader::listen_to(int node, Member& member, TimePoint now) {
  std::vector<Frame> frames;
  member.link.flush();
  member.link.receive(frames);
  const auto peer = static_cast<size_t>(node);
  if (!frames.empty()) clock_.heard(peer, now);
  if (!member.link.open()) return drop(node, member.link.broken(), now);
  if (clock_.silent(peer, now)) {
    return drop(node, "no heartbeat for " + seconds_text(clock_.age(peer, now)), now);
  }
  const auto contender = contenders_.find(node);
  if (contender == contenders_.end() || frames.empty()) return;
  Candidate candidate = std::move(contender->second);
  contenders_.erase(contender);
  const std::string what = "two nodes have --node-rank " + std::to_string(node) + ": host " +
                           member.host + " (" + member.peer.text() + ") and host " +
                           candidate.join.host + " (" + candidate.peer.text() +
                           "); give each node its own";
  candidate.link.send(MessageType::kRefuse,
                      encode(Refusal{ErrorCode::kInvalidArgument, false, what}));
  acceptor_.dismiss(std::move(candidate.link), now);
  give_up(invalid_argument(what), what);
}

std::string Leader::missing() const {
  std::string out;
  for (int node = 1; node < config_.nodes; ++node) {
    if (!members_.contains(node)) out += (out.empty() ? "" : ", ") + std::to_string(node);
  }
  return out;
}

void Leader::report(TimePoint now) {
  const bool bounded = config_.dist_timeout.count() > 0;
  const std::string state =
      "node " + missing() + " of 0 to " + std::to_string(config_.nodes - 1) + " did not join";
  if (bounded && now - started_ >= config_.dist_timeout) {
    const std::string what =
        state + " within --dist-timeout " + std::to_string(config_.dist_timeout.count()) +
        " s; look for its process and its log, and whether it reaches " + config_.dist_init_addr;
    return give_up(unavailable(what), what);
  }
  if (!bounded && first_joined_ && now - *first_joined_ >= timing_.forming) {
    const std::string what = state + " within " + seconds_text(timing_.forming) +
                             " of the first; look for its process and its log, and whether it "
                             "reaches " +
                             config_.dist_init_addr;
    return give_up(unavailable(what), what);
  }
  if (waiting_.due(now)) {
    LOG_INFO("waiting at {} for node {} ({} of {} are here)", config_.dist_init_addr, missing(),
             members_.size() + 1, config_.nodes);
  }
}

/// A second node 0 on another machine would otherwise wait in silence for nodes that find the
/// first.
void Leader::check_own_address() {
  if (!own_address_) return;
  const auto found = own_address_->resolve([] { return true; });
  if (!found.ok() && found.error().code == ErrorCode::kAborted) return;  // not answered yet
  own_address_.reset();
  if (!found.ok()) {
    LOG_INFO(
        "node 0 cannot look up its own --dist-init-addr {} ({}); the other nodes must be able "
        "to",
        config_.dist_init_addr, found.error().message);
    return;
  }
  std::string elsewhere;
  for (const SocketAddress& address : *found) {
    for (const Interface& own : list_interfaces()) {
      if (own.address.host() == address.host()) return;
    }
    // All of 127.0.0.0/8 is this machine.
    if (address.host().starts_with("127.")) return;
    elsewhere += (elsewhere.empty() ? "" : ", ") + address.host();
  }
  LOG_WARN(
      "--dist-init-addr {} means {}, which is no address of this machine (host {}): is this "
      "really node 0?",
      config_.dist_init_addr, elsewhere, host_);
}

void Leader::beat(TimePoint now) {
  if (!clock_.due(now)) return;
  const std::string body = encode(std::vector<Beat>{{true, 0, 0, "joining"}});
  for (auto& [node, member] : members_) {
    member.link.send(MessageType::kHeartbeat, body);
    member.link.flush();
  }
}

Formed Leader::take() {
  Formed formed;
  formed.session = std::string(view(random_digest()).substr(0, 16));
  formed.hosts.resize(static_cast<size_t>(config_.nodes));
  formed.links.resize(static_cast<size_t>(config_.nodes));
  formed.hosts[0] = host_;
  for (auto& [node, member] : members_) {
    if (formed.local.length == 0) formed.local = local_address(member.link.fd());
    formed.hosts[static_cast<size_t>(node)] = member.host;
    formed.links[static_cast<size_t>(node)] = std::move(member.link);
  }
  const std::string start = encode(Start{formed.session, formed.hosts});
  for (ControlLink& link : formed.links) {
    if (!link.open()) continue;
    link.send(MessageType::kStart, start);
    link.flush();
  }
  formed.acceptor = std::move(acceptor_);
  return formed;
}

Result<Formed> Leader::run() {
  CAPSTAN_ASSIGN(const HostPort at, parse_host_port(config_.dist_init_addr));
  Result<Fd> listener = listen_on(nullptr, at.port);
  if (!listener.ok()) {
    Error error = listener.error();
    if (error.code == ErrorCode::kInvalidArgument) {
      error.message = "--dist-init-addr " + config_.dist_init_addr + ": " + error.message +
                      " on host " + host_ +
                      "; end the program that has the port, or give all nodes another one";
      error.param = "dist-init-addr";
    }
    return error;
  }
  Acceptor::Limits limits;
  limits.opening = timing_.opening;
  limits.log_interval = timing_.log_interval;
  acceptor_ = Acceptor(std::move(listener).value(), Purpose::kControl,
                       control_key(config_.token, config_.dist_init_addr), limits);
  LOG_INFO("node 0 of {} listens on port {} for the other nodes", config_.nodes, at.port);
  if (config_.token.empty()) {
    LOG_WARN(
        "CAPSTAN_GROUP_TOKEN is not set: the group's secret is made from --dist-init-addr, which "
        "keeps out strays, not attackers");
  }
  own_address_.emplace(at);
  std::vector<pollfd> fds;
  while (true) {
    check_own_address();
    if (stop_()) return Error{ErrorCode::kAborted, "cancelled while waiting for node " + missing()};
    fds.clear();
    acceptor_.collect(fds);
    for (const auto& [node, member] : members_) {
      fds.push_back({member.link.fd(), member.link.events(), 0});
    }
    poll(fds.data(), fds.size(), 50);
    const TimePoint now = Clock::now();
    const Duration slept = clock_.tick(now);
    if (first_joined_) *first_joined_ += slept;
    for (Arrival& arrival : acceptor_.advance(now)) {
      if (!error_) admit(std::move(arrival), now);
    }
    for (int node = 1; node < config_.nodes && !error_; ++node) {
      if (const auto member = members_.find(node); member != members_.end()) {
        listen_to(node, member->second, now);
      }
    }
    if (!error_ && contenders_.empty() &&
        members_.size() == static_cast<size_t>(config_.nodes) - 1) {
      return take();
    }
    if (!error_) report(now);
    if (error_) {
      say_goodbye();
      return *error_;
    }
    beat(now);
  }
}

}  // namespace

Result<Formed> form_as_leader(const GroupConfig& config, const GroupTiming& timing,
                              const Stop& stop) {
  return Leader(config, timing, stop).run();
}

}  // namespace capstan::comm
