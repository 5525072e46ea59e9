// What the other threads call, and the watcher's turn.
#include "comm/group_control.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <exception>
#include <system_error>

#include "base/log.h"

namespace capstan::comm {
namespace {

constexpr size_t kPhaseLimit = 64, kNameLimit = 256, kTextLimit = 2000;

}  // namespace

GroupControl::GroupControl(const GroupConfig& config, const GroupTiming& timing, Formed formed)
    : config_(config),
      timing_(timing),
      session_(formed.session),
      hosts_(std::move(formed.hosts)),
      peers_(std::move(formed.links)),
      acceptor_(std::move(formed.acceptor)),
      clock_(peers_.size(), config.heartbeat_interval, config.heartbeat_timeout, Clock::now()),
      slow_log_(timing.log_interval) {
  known_.assign(static_cast<size_t>(config_.nodes), Known{{true, 0, 0, "joined"}, Clock::now()});
  seen_.assign(peers_.size(), false);
  received_.assign(peers_.size(), 0);
  const size_t answers = leader() ? 1 : static_cast<size_t>(config_.nodes);
  for (ControlLink& peer : peers_) {
    peer.set_max_body(answers * (kExchangeLimit + 16) + (64 << 10));
  }
}

GroupControl::~GroupControl() {
  {
    const std::lock_guard lock(mutex_);
    callback_ = nullptr;  // its owner may be half gone
    orders_.leave = true;
  }
  wake();
  if (watcher_.joinable()) watcher_.join();
  for (const NodeLink& link : links_.links) close(link.fd);
}

void GroupControl::start() {
  wake_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) throw std::system_error(errno, std::generic_category(), "eventfd");
  watcher_ = std::thread([this] { watch(); });
}

void GroupControl::wake() {
  const uint64_t one = 1;
  // It fails only when so many calls are pending that the watcher is awake anyway.
  if (wake_.valid()) (void)!write(wake_.get(), &one, sizeof one);
}

void GroupControl::set_links(Links links) {
  const std::lock_guard lock(mutex_);
  links_ = std::move(links);
}

Topology GroupControl::topology() const {
  const std::lock_guard lock(mutex_);
  Topology topology{config_.nodes, config_.node, config_.ranks_per_node, links_.shared_memory};
  topology.ucx = links_.ucx;
  topology.interface = links_.interface;
  return topology;
}

std::vector<NodeLink> GroupControl::take_links() {
  const std::lock_guard lock(mutex_);
  return std::exchange(links_.links, {});
}

Result<std::vector<std::string>> GroupControl::exchange(const std::string& name, std::string mine) {
  return exchange_until(name, std::move(mine), nullptr);
}

Result<std::vector<std::string>> GroupControl::exchange_until(const std::string& name,
                                                              std::string mine, const Stop& stop) {
  if (mine.size() > kExchangeLimit || name.size() > kNameLimit) {
    return invalid_argument("the exchange '" + name.substr(0, kNameLimit) + "' of " +
                            std::to_string(mine.size()) + " bytes is above the limit of " +
                            std::to_string(kExchangeLimit));
  }
  std::unique_lock lock(mutex_);
  if (end_) return unavailable(end_->describe());
  if (exchanging_) {
    return internal_error("the exchange '" + name + "' began while another was under way");
  }
  exchanging_ = true;
  answer_ = {};
  orders_.parts.push_back({++exchanges_, name, std::move(mine)});
  wake();
  bool stopped = false;
  while (!answer_.done && !end_ && !stopped) {
    if (!stop) {
      changed_.wait(lock);
      continue;
    }
    changed_.wait_for(lock, std::chrono::milliseconds(50));
    lock.unlock();
    stopped = stop();
    lock.lock();
  }
  exchanging_ = false;
  if (answer_.done) {
    if (!answer_.error.empty()) return internal_error(answer_.error);
    return std::move(answer_.texts);
  }
  if (end_) return unavailable(end_->describe());
  return Error{ErrorCode::kAborted, "cancelled during the exchange '" + name + "'"};
}

void GroupControl::set_phase(std::string phase) {
  phase.resize(std::min(phase.size(), kPhaseLimit));
  const std::lock_guard lock(mutex_);
  phase_ = std::move(phase);
}

std::vector<NodeState> GroupControl::states() const {
  const TimePoint now = Clock::now();
  const std::lock_guard lock(mutex_);
  std::vector<NodeState> out;
  for (size_t i = 0; i < hosts_.size(); ++i) {
    const Known& known = known_[i];
    if (static_cast<int>(i) == config_.node) {
      out.push_back(
          {config_.node, hosts_[i], true, 0, step_.load(std::memory_order_relaxed), phase_});
      continue;
    }
    const double age = static_cast<double>(known.beat.age_ms) / 1000 +
                       std::chrono::duration<double>(now - known.at).count();
    out.push_back({static_cast<int>(i), hosts_[i], known.beat.joined, age, known.beat.step,
                   known.beat.phase});
  }
  return out;
}

void GroupControl::on_end(std::function<void(const GroupEnd&)> callback) {
  GroupEnd end;
  {
    const std::lock_guard lock(mutex_);
    if (!end_) {
      callback_ = std::move(callback);
      return;
    }
    end = *end_;
  }
  if (callback) callback(end);
}

void GroupControl::fail(int rank, const Error& why) {
  {
    const std::lock_guard lock(mutex_);
    if (end_ || orders_.failure) return;
    orders_.failure =
        Failure{rank, why.code == ErrorCode::kUnavailable, why.message.substr(0, kTextLimit)};
  }
  wake();
}

void GroupControl::release() {
  std::unique_lock lock(mutex_);
  if (!leader()) {
    LOG_WARN("node {} cannot release the group, only node 0 can", config_.node);
    return;
  }
  orders_.release = true;
  wake();
  changed_.wait(lock, [this] { return end_.has_value(); });
}

bool GroupControl::ended(GroupEnd* end) const {
  const std::lock_guard lock(mutex_);
  if (end_ && end != nullptr) *end = *end_;
  return end_.has_value();
}

void GroupControl::watch() {
  pthread_setname_np(pthread_self(), "group");
  try {
    while (!verdict_) turn();
  } catch (const std::exception& e) {
    decide(end_of(config_.node, -1, std::string("its group thread failed: ") + e.what()));
  }
  try {
    spread(*verdict_);
    say_farewell();
  } catch (const std::exception& e) {
    LOG_ERROR("the end of the group could not be told to all nodes: {}", e.what());
  }
  peers_.clear();
  acceptor_ = Acceptor();
  publish();
}

void GroupControl::publish() {
  std::function<void(const GroupEnd&)> callback;
  {
    const std::lock_guard lock(mutex_);
    end_ = verdict_;
    callback = std::move(callback_);
    callback_ = nullptr;
    changed_.notify_all();
  }
  if (!callback) return;
  try {
    callback(*verdict_);
  } catch (const std::exception& e) {
    LOG_ERROR("the handler of the group's end failed: {}", e.what());
  }
}

void GroupControl::turn() {
  sleep();
  const TimePoint now = Clock::now();
  if (const Duration gap = clock_.tick(now); gap > Duration::zero()) {
    slept_ = gap;
    woke_ = now;
    if (gap >= config_.heartbeat_timeout / 5) {
      LOG_WARN(
          "this process did not run for {} (stopped, suspended, or short of CPU time); the other "
          "nodes give it up after {}",
          seconds_text(gap), seconds_text(config_.heartbeat_timeout));
    }
  }
  read_peers(now);
  take_orders(now);
  greet_latecomers(now);
  check_silence(now);
  check_suspicion(now);
  beat(now);
  for (ControlLink& peer : peers_) peer.flush();
}

void GroupControl::sleep() {
  std::vector<pollfd> fds{{wake_.get(), POLLIN, 0}};
  for (const ControlLink& peer : peers_) {
    if (peer.open()) fds.push_back({peer.fd(), peer.events(), 0});
  }
  acceptor_.collect(fds);
  const TimePoint now = Clock::now();
  TimePoint until = std::min(clock_.next(), acceptor_.next(now));
  if (suspicion_) until = std::min(until, suspicion_->until);
  if (verdict_limit_) until = std::min(until, *verdict_limit_);
  const Duration left =
      std::clamp<Duration>(until - now, Duration::zero(), config_.heartbeat_interval);
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left);
  poll(fds.data(), fds.size(), static_cast<int>(ms.count()));
  uint64_t count = 0;
  (void)!read(wake_.get(), &count, sizeof count);
}

void GroupControl::read_peers(TimePoint now) {
  for (size_t i = 0; i < peers_.size() && !verdict_; ++i) {
    if (!peers_[i].open()) continue;
    std::vector<Frame> frames;
    peers_[i].receive(frames);
    if (peers_[i].received() != received_[i] || !frames.empty()) clock_.heard(i, now);
    received_[i] = peers_[i].received();
    for (const Frame& frame : frames) {
      if (!verdict_) handle(i, frame, now);
    }
    if (!peers_[i].open() && !verdict_) lost(i, now);
  }
}

void GroupControl::lost(size_t peer, TimePoint now) {
  // Somebody who wakes up after the others gave it up finds closed connections everywhere.
  if (slept_ >= config_.heartbeat_timeout * 4 / 5 && now - woke_ < timing_.grace * 2) {
    decide(end_of(config_.node, -1,
                  "it did not run for " + seconds_text(slept_) +
                      " (stopped or suspended), and the others went on without it"));
    return;
  }
  decide(end_of(node_of(peer), -1, "its connection broke (" + peers_[peer].broken() + ")"));
}

void GroupControl::take_orders(TimePoint now) {
  Orders orders;
  {
    const std::lock_guard lock(mutex_);
    orders = std::exchange(orders_, {});
  }
  for (ExchangePart& part : orders.parts) {
    if (leader()) {
      post(0, part);
    } else {
      peers_[0].send(MessageType::kExchange, encode(part));
    }
  }
  if (orders.release) {
    GroupEnd end = end_of(0, -1, "released");
    end.orderly = true;
    decide(end);
  }
  if (orders.leave && !orders.failure && !verdict_limit_) {
    orders.failure = Failure{config_.node * config_.ranks_per_node, false, "it left the group"};
  }
  if (!orders.failure) return;
  if (leader()) return failed(0, *orders.failure, now);
  own_failure_ = end_of(config_.node, orders.failure->rank, orders.failure->what);
  verdict_limit_ = now + timing_.grace + 2 * timing_.farewell;
  // With the step that was reached until now.
  peers_[0].send(MessageType::kHeartbeat,
                 encode(std::vector<Beat>{{true, 0, own_failure_.step, "failed"}}));
  peers_[0].send(MessageType::kFail, encode(*orders.failure));
}

GroupEnd GroupControl::end_of(int node, int rank, std::string what) const {
  GroupEnd end;
  end.node = node;
  end.rank = rank < 0 ? node * config_.ranks_per_node : rank;
  end.host = hosts_[static_cast<size_t>(node)];
  end.what = std::move(what);
  const std::lock_guard lock(mutex_);
  end.step = node == config_.node ? step_.load(std::memory_order_relaxed)
                                  : known_[static_cast<size_t>(node)].beat.step;
  return end;
}

void GroupControl::decide(GroupEnd end) {
  if (!verdict_) verdict_ = std::move(end);
}

}  // namespace capstan::comm
