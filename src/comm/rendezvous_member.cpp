// The side of the rendezvous of every node but 0: it may start minutes before node 0 answers.
#include <algorithm>
#include <optional>
#include <thread>

#include "base/log.h"
#include "comm/address_lookup.h"
#include "comm/heartbeat.h"
#include "comm/rendezvous.h"

namespace capstan::comm {
namespace {

class Member {
 public:
  Member(const GroupConfig& config, const GroupTiming& timing, const Stop& stop, HostPort target)
      : config_(config),
        timing_(timing),
        stop_(stop),
        target_(std::move(target)),
        lookup_(target_),
        failures_(timing.log_interval) {}

  Result<Formed> run();

 private:
  Result<Formed> attempt(const Stop& stop);
  Result<ControlLink> reach(const Stop& stop, SocketAddress& address);
  Result<Formed> wait_for_start(ControlLink link, const std::string& leader_host, const Stop& stop);
  Error refused(const Refusal& refusal) {
    refused_for_good_ = !refusal.retry;
    return Error{refusal.retry ? ErrorCode::kUnavailable : refusal.code, refusal.what};
  }
  std::optional<TimePoint> deadline() const;
  Error late() const;

  const GroupConfig& config_;
  const GroupTiming& timing_;
  const Stop& stop_;
  HostPort target_;
  AddressLookup lookup_;
  TimePoint started_ = Clock::now();
  std::optional<TimePoint> first_welcome_;
  LogThrottle failures_;
  std::string last_failure_ = "nothing was tried yet";
  bool welcomed_ = false;  // by the last attempt
  bool refused_for_good_ = false;
};

std::optional<TimePoint> Member::deadline() const {
  if (config_.dist_timeout.count() > 0) return started_ + config_.dist_timeout;
  // Node 0 knows which nodes are missing: its word comes first.
  if (first_welcome_) return *first_welcome_ + timing_.forming + timing_.opening;
  return std::nullopt;
}

Error Member::late() const {
  const std::string limit =
      config_.dist_timeout.count() > 0
          ? "within --dist-timeout " + std::to_string(config_.dist_timeout.count()) + " s"
          : "within " + seconds_text(timing_.forming) + " of first meeting node 0";
  return unavailable("node " + std::to_string(config_.node) + " did not join the group at " +
                     target_.text() + " " + limit + ": " + last_failure_);
}

/// An authenticated connection to one of the addresses that the name has now.
Result<ControlLink> Member::reach(const Stop& stop, SocketAddress& reached) {
  CAPSTAN_ASSIGN(const std::vector<SocketAddress> addresses, lookup_.resolve(stop));
  const std::string key = control_key(config_.token, config_.dist_init_addr);
  std::string why;
  for (const SocketAddress& address : addresses) {
    Result<Fd> fd = connect_to(address, nullptr, Clock::now() + timing_.connect, stop);
    Status status = fd.status();
    if (status.ok()) {
      status =
          open_as_client(fd->get(), Purpose::kControl, key, Clock::now() + timing_.opening, stop);
    }
    if (status.ok()) {
      reached = address;
      return ControlLink(std::move(fd).value(), 64 << 10);
    }
    if (status.error().code == ErrorCode::kAborted) return status.error();
    const std::string what = address.text() + ": " + status.error().message;
    if (status.error().code == ErrorCode::kInvalidArgument) return invalid_argument(what);
    why += (why.empty() ? "" : "; ") + what;
  }
  return unavailable(why);
}

Result<Formed> Member::attempt(const Stop& stop) {
  SocketAddress leader;
  CAPSTAN_ASSIGN(ControlLink link, reach(stop, leader));
  link.send(MessageType::kJoin, encode(Join{config_.node, host_name(), all_facts(config_)}));
  // Node 0 answers at once, unless it has to find out whether an earlier holder of this number is
  // still alive.
  const TimePoint limit = Clock::now() + timing_.opening + config_.heartbeat_timeout;
  Result<Frame> answer = link.wait(limit, stop);
  if (!answer.ok()) {
    return Error{
        answer.error().code,
        leader.text() + ": node 0 did not answer the request to join: " + answer.error().message};
  }
  if (Refusal refusal; answer->type == MessageType::kRefuse && decode(answer->body, refusal)) {
    return refused(refusal);
  }
  Reader in(answer->body);
  const std::string host = in.text();
  if (answer->type != MessageType::kWelcome || !in.done()) {
    return unavailable(leader.text() + ": node 0 gave an answer that makes no sense");
  }
  welcomed_ = true;
  if (!first_welcome_) first_welcome_ = Clock::now();
  LOG_INFO("node {} joined the group of {} at {}; waiting for the other nodes", config_.node,
           describe_node(0, host), leader.text());
  const SocketAddress local = local_address(link.fd());
  CAPSTAN_ASSIGN(Formed formed, wait_for_start(std::move(link), host, stop));
  formed.local = local;
  formed.leader = leader;
  return formed;
}

Result<Formed> Member::wait_for_start(ControlLink link, const std::string& leader_host,
                                      const Stop& stop) {
  const std::string body = encode(std::vector<Beat>{{true, 0, 0, "joining"}});
  HeartbeatClock clock(1, config_.heartbeat_interval, config_.heartbeat_timeout, Clock::now());
  while (true) {
    link.send(MessageType::kHeartbeat, body);
    Result<Frame> frame = link.wait(Clock::now() + config_.heartbeat_interval, stop);
    const TimePoint now = Clock::now();
    // Node 0, which slept as well, must not find this one gone.
    *first_welcome_ += clock.tick(now);
    if (!frame.ok()) {
      if (frame.error().code == ErrorCode::kAborted) {
        if (stop()) return frame.error();
        continue;
      }
      const std::string who = describe_node(0, leader_host);
      if (!link.open()) {
        return unavailable(who + " went away before the group was complete: " + link.broken());
      }
      if (clock.silent(0, now)) {
        return unavailable(who + " fell silent for " + seconds_text(clock.age(0, now)) +
                           " before the group was complete");
      }
      continue;
    }
    clock.heard(0, now);
    if (Refusal refusal; frame->type == MessageType::kRefuse && decode(frame->body, refusal)) {
      return refused(refusal);
    }
    Start start;
    if (frame->type != MessageType::kStart) continue;
    if (!decode(frame->body, start) || start.session.size() != 16 ||
        start.hosts.size() != static_cast<size_t>(config_.nodes)) {
      return unavailable(describe_node(0, leader_host) +
                         " began the group in a way that makes no "
                         "sense");
    }
    Formed formed;
    formed.session = start.session;
    formed.hosts = start.hosts;
    formed.links.push_back(std::move(link));
    return formed;
  }
}

Result<Formed> Member::run() {
  LOG_INFO("node {} of {} looks for node 0 at {}", config_.node, config_.nodes, target_.text());
  const Stop limited = [this] {
    const auto limit = deadline();
    return stop_() || (limit && Clock::now() >= *limit);
  };
  Duration backoff = timing_.backoff;
  for (int attempts = 1;; ++attempts) {
    welcomed_ = false;
    Result<Formed> formed = attempt(limited);
    if (formed.ok()) return formed;
    if (stop_()) return Error{ErrorCode::kAborted, "cancelled while joining " + target_.text()};
    const Error& error = formed.error();
    if (error.code == ErrorCode::kAborted) return late();
    if (refused_for_good_ || error.code != ErrorCode::kUnavailable) return error;
    last_failure_ = error.message;
    const TimePoint now = Clock::now();
    if (failures_.due(now)) {
      LOG_WARN("node 0 at {} cannot be joined yet (attempt {}, after {}): {}; trying on",
               target_.text(), attempts, seconds_text(now - started_), error.message);
    }
    if (welcomed_) backoff = timing_.backoff;
    for (const TimePoint until = now + backoff; Clock::now() < until && !limited();) {
      std::this_thread::sleep_for(std::clamp<Duration>(until - Clock::now(), Duration::zero(),
                                                       std::chrono::milliseconds(50)));
    }
    if (stop_()) return Error{ErrorCode::kAborted, "cancelled while joining " + target_.text()};
    if (limited()) return late();
    backoff = std::min(backoff * 2, timing_.backoff_limit);
  }
}

}  // namespace

Result<Formed> form_as_member(const GroupConfig& config, const GroupTiming& timing,
                              const Stop& stop) {
  CAPSTAN_ASSIGN(const HostPort target, parse_host_port(config.dist_init_addr));
  return Member(config, timing, stop, target).run();
}

}  // namespace capstan::comm
