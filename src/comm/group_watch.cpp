// What the watcher makes of what it hears: heartbeats, exchanges, failures and the verdict.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/log.h"
#include "comm/group_control.h"

namespace capstan::comm {
namespace {

/// A peer that takes nothing gets no more heartbeats queued.
constexpr size_t kBeatBacklog = 64 << 10;

}  // namespace

void GroupControl::handle(size_t peer, const Frame& frame, TimePoint now) {
  if (frame.type == MessageType::kHeartbeat) {
    std::vector<Beat> beats;
    if (decode(frame.body, beats)) return note_beats(peer, beats, now);
  } else if (frame.type == MessageType::kEnd) {
    GroupEnd end;
    if (decode(frame.body, end)) {
      verdict_from_leader_ = !leader();
      return decide(std::move(end));
    }
  } else {
    return leader() ? handle_at_leader(peer, frame, now) : handle_at_member(frame);
  }
  decide(end_of(node_of(peer), -1, "it sent a message that makes no sense"));
}

void GroupControl::handle_at_leader(size_t peer, const Frame& frame, TimePoint now) {
  const int node = node_of(peer);
  if (ExchangePart part; frame.type == MessageType::kExchange && decode(frame.body, part)) {
    return post(node, part);
  }
  if (Failure failure; frame.type == MessageType::kFail && decode(frame.body, failure)) {
    return failed(node, failure, now);
  }
  decide(end_of(node, -1, "it sent a message that makes no sense"));
}

void GroupControl::handle_at_member(const Frame& frame) {
  ExchangeAnswer answer;
  if (frame.type != MessageType::kExchanged || !decode(frame.body, answer)) {
    return decide(end_of(0, -1, "it sent a message that makes no sense"));
  }
  this->answer(config_.node, answer);
}

void GroupControl::note_beats(size_t peer, const std::vector<Beat>& beats, TimePoint now) {
  const std::lock_guard lock(mutex_);
  if (leader()) {
    if (beats.size() == 1) known_[peer] = {beats[0], now};
  } else if (beats.size() == known_.size()) {
    // Beats of another length are from before the group was complete.
    for (size_t i = 0; i < beats.size(); ++i) known_[i] = {beats[i], now};
  }
}

void GroupControl::beat(TimePoint now) {
  if (!clock_.due(now)) return;
  std::vector<Beat> beats;
  {
    const std::lock_guard lock(mutex_);
    const Beat own{true, 0, step_.load(std::memory_order_relaxed), phase_};
    if (leader()) {
      for (const Known& known : known_) {
        beats.push_back(known.beat);
        beats.back().age_ms = static_cast<uint64_t>(
            std::chrono::duration_cast<std::chrono::milliseconds>(now - known.at).count());
      }
      beats[0] = own;
    } else {
      beats.push_back(own);
    }
  }
  const std::string body = encode(beats);
  for (ControlLink& peer : peers_) {
    if (peer.open() && peer.unsent() < kBeatBacklog) peer.send(MessageType::kHeartbeat, body);
  }
}

bool GroupControl::stale(size_t peer, TimePoint now) const {
  return clock_.age(peer, now) >=
         std::max<Duration>(3 * config_.heartbeat_interval, config_.heartbeat_timeout / 5);
}

void GroupControl::check_silence(TimePoint now) {
  size_t open = 0, quiet = 0, first = 0;
  for (size_t i = 0; i < peers_.size(); ++i) {
    if (!peers_[i].open()) continue;
    ++open;
    if (stale(i, now) && quiet++ == 0) first = i;
    if (!clock_.silent(i, now)) continue;
    std::string what = "no heartbeat for " + seconds_text(clock_.age(i, now)) +
                       " (stopped, cut off, or its machine is down)";
    const auto others_quiet = [&] {
      for (size_t k = 0; k < peers_.size(); ++k) {
        if (peers_[k].open() && !stale(k, now)) return false;
      }
      return peers_.size() > 2;
    };
    if (others_quiet()) what += "; all other nodes are silent too, so node 0 may be cut off itself";
    return decide(end_of(node_of(i), -1, std::move(what)));
  }
  if (quiet > 0 && slow_log_.due(now)) {
    LOG_WARN("{}: no heartbeat for {}{}; the group ends at {}",
             describe_node(node_of(first), hosts_[static_cast<size_t>(node_of(first))]),
             seconds_text(clock_.age(first, now)),
             quiet > 1 ? " (and " + std::to_string(quiet - 1) + " other nodes)" : "",
             seconds_text(config_.heartbeat_timeout));
  }
}

void GroupControl::failed(int node, const Failure& failure, TimePoint now) {
  GroupEnd end = end_of(node, failure.rank, failure.what);
  if (!failure.symptom) return decide(std::move(end));
  if (!suspicion_) suspicion_ = Suspicion{now + timing_.grace, std::move(end)};
}

void GroupControl::check_suspicion(TimePoint now) {
  if (verdict_limit_ && now >= *verdict_limit_) return decide(own_failure_);
  if (!suspicion_ || now < suspicion_->until) return;
  // No connection ended. A node that has become silent is likelier at fault than the one that
  // reports it.
  for (size_t i = 0; i < peers_.size(); ++i) {
    if (!peers_[i].open() || !stale(i, now) || node_of(i) == suspicion_->end.node) continue;
    return decide(end_of(node_of(i), -1,
                         "no heartbeat for " + seconds_text(clock_.age(i, now)) + ", and " +
                             describe_node(suspicion_->end.node, suspicion_->end.host) +
                             " reports: " + suspicion_->end.what));
  }
  decide(suspicion_->end);
}

void GroupControl::greet_latecomers(TimePoint now) {
  for (Arrival& arrival : acceptor_.advance(now)) {
    Join join;
    if (!decode(arrival.first.body, join)) join.node = -1;
    arrival.link.send(
        MessageType::kRefuse,
        encode(Refusal{ErrorCode::kUnavailable, true,
                       "the group of " + describe_node(0, hosts_[0]) + " is complete and at work" +
                           (join.node > 0 && join.node < config_.nodes
                                ? ", with host " + hosts_[static_cast<size_t>(join.node)] +
                                      " as node " + std::to_string(join.node)
                                : "") +
                           "; it takes no one in until it has ended"}));
    acceptor_.dismiss(std::move(arrival.link), now);
  }
}

void GroupControl::post(int node, const ExchangePart& part) {
  const size_t nodes = hosts_.size();
  Board& board = boards_[part.number];
  board.texts.resize(nodes);
  std::optional<std::string>& place = board.texts[static_cast<size_t>(node)];
  if (place) return decide(end_of(node, -1, "it sent a message that makes no sense"));
  place = part.text;
  ++board.came;
  const auto answer_all = [&](const ExchangeAnswer& text) {
    for (size_t i = 0; i < nodes; ++i) {
      if (board.texts[i]) answer(static_cast<int>(i), text);
    }
  };
  if (board.first < 0) {
    board.first = node;
    board.name = part.name;
  }
  if (!board.error.empty()) {
    answer(node, {part.number, board.error, {}});
  } else if (part.name != board.name) {
    const auto who = [&](int n) { return describe_node(n, hosts_[static_cast<size_t>(n)]); };
    board.error = "exchange " + std::to_string(part.number) + " is '" + board.name + "' on " +
                  who(board.first) + " and '" + part.name + "' on " + who(node);
    answer_all({part.number, board.error, {}});
  } else if (board.came == nodes) {
    ExchangeAnswer all{part.number, "", {}};
    for (const auto& text : board.texts) all.texts.push_back(*text);
    answer_all(all);
  }
  if (board.came == nodes) boards_.erase(part.number);
}

void GroupControl::answer(int node, const ExchangeAnswer& answer) {
  if (node != config_.node) {
    peers_[static_cast<size_t>(node)].send(MessageType::kExchanged, encode(answer));
    return;
  }
  const std::lock_guard lock(mutex_);
  if (!exchanging_ || answer.number != exchanges_) return;  // given up meanwhile
  answer_ = {true, answer.error, answer.texts};
  changed_.notify_all();
}

void GroupControl::spread(const GroupEnd& end) {
  for (ControlLink& peer : peers_) {
    if (!peer.open()) continue;
    if (verdict_from_leader_) {
      peer.send(MessageType::kEndSeen, "");
    } else {
      peer.send(MessageType::kEnd, encode(end));
    }
    peer.flush();
  }
}

void GroupControl::say_farewell() {
  const TimePoint begin = Clock::now();
  const bool orderly = verdict_->orderly;
  const TimePoint limit = begin + (orderly ? timing_.release : timing_.farewell);
  std::vector<bool> waited(peers_.size());
  for (size_t i = 0; i < peers_.size(); ++i) waited[i] = orderly || !stale(i, begin);
  std::vector<pollfd> fds;
  while (Clock::now() < limit) {
    fds.clear();
    for (size_t i = 0; i < peers_.size(); ++i) {
      ControlLink& peer = peers_[i];
      if (!peer.open() || !waited[i] || seen_[i]) continue;
      peer.flush();
      std::vector<Frame> frames;
      peer.receive(frames);
      for (const Frame& frame : frames) {
        if (frame.type == MessageType::kEndSeen) seen_[i] = true;
      }
      // Node 0 waits until all have confirmed; the others only until their last word is sent.
      if (!leader() && peer.unsent() == 0) seen_[i] = true;
      if (peer.open() && !seen_[i]) fds.push_back({peer.fd(), peer.events(), 0});
    }
    if (fds.empty()) break;
    poll(fds.data(), fds.size(), 20);
  }
  for (const ControlLink& peer : peers_) {
    if (peer.open()) shutdown(peer.fd(), SHUT_WR);
  }
}

}  // namespace capstan::comm
