#include "app/rank_group.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "base/log.h"

namespace capstan::app {
namespace {

// How long a broken connection may wait for the failure behind it, in the same process.
constexpr auto kSymptomPatience = std::chrono::milliseconds(1000);
// How long a step that failed waits for the end of the group to be known, with its culprit.
constexpr auto kVerdictPatience = std::chrono::milliseconds(4000);
// A rank that computes half as long again as the median, three times in a row, is slow.
constexpr double kSlow = 1.5;
constexpr double kNoticeable = 200e-6;  // seconds a step
constexpr int kSlowWindows = 3;
constexpr auto kBetweenComplaints = std::chrono::seconds(60);

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "localhost";
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  // Of two ranks the quicker one is the measure.
  return values.size() == 2 ? std::min(values[0], values[1]) : *middle;
}

}  // namespace

Result<std::unique_ptr<RankGroup>> RankGroup::create(
    const ParallelOptions& options, std::vector<std::pair<std::string, std::string>> facts,
    const std::function<bool()>& cancelled) {
  std::unique_ptr<RankGroup> out(new RankGroup(options));
  std::vector<std::unique_ptr<comm::Communicator>> ranks;
  if (options.nodes == 1) {
    try {
      ranks = comm::make_local_group(options.ranks);
    } catch (const std::bad_alloc&) {
      return resource_exhausted("no memory for the buffers between " +
                                std::to_string(options.ranks) + " ranks");
    }
  } else {
    comm::GroupConfig config;
    config.nodes = options.nodes;
    config.node = options.node;
    config.ranks_per_node = options.ranks_per_node();
    config.dist_init_addr = options.dist_init_addr;
    config.token = options.token;
    config.interface = options.interface;
    config.transport = options.transport;
    config.facts = std::move(facts);
    config.dist_timeout = options.dist_timeout;
    config.heartbeat_timeout = options.heartbeat_timeout;
    config.heartbeat_interval = std::min<std::chrono::milliseconds>(config.heartbeat_interval,
                                                                    options.heartbeat_timeout / 6);
    CAPSTAN_ASSIGN(out->group_, comm::Group::join(config, cancelled));
    const comm::Topology topology = out->group_->topology();
    out->one_machine_ = !topology.shared_memory.empty();
    auto made = comm::make_group(topology, out->group_->take_links());
    if (!made.ok()) {
      out->group_->fail(options.first_rank(), made.error());
      return made.error();
    }
    ranks = std::move(made).value();
  }
  for (auto& rank : ranks) {
    out->communicators_.push_back(std::make_unique<engine::TimedCommunicator>(std::move(rank)));
  }
  LOG_INFO("Rank{} {}{} of {}, node {} of {}, over {}", options.ranks_per_node() > 1 ? "s" : "",
           options.first_rank(),
           options.ranks_per_node() > 1
               ? " to " + std::to_string(options.first_rank() + options.ranks_per_node() - 1)
               : "",
           options.ranks, options.node, options.nodes, out->communicators_[0]->transport());
  if (out->group_) {
    out->group_->on_end([group = out.get()](const comm::GroupEnd& end) { group->take_end(end); });
  }
  out->set_phase("loading");
  return out;
}

RankGroup::~RankGroup() { group_.reset(); }

Result<std::vector<std::string>> RankGroup::exchange(const std::string& name, std::string mine) {
  if (group_) return group_->exchange(name, std::move(mine));
  if (const auto over = end()) return unavailable(over->describe());
  return std::vector<std::string>{std::move(mine)};
}

void RankGroup::set_step(uint64_t step) {
  {
    const std::lock_guard lock(mutex_);
    step_ = step;
  }
  if (group_) group_->set_step(step);
}

void RankGroup::set_phase(const std::string& phase) {
  {
    const std::lock_guard lock(mutex_);
    phase_ = phase;
  }
  if (group_) group_->set_phase(phase);
}

void RankGroup::take_end(const comm::GroupEnd& end) {
  std::function<void(const comm::GroupEnd&)> callback;
  {
    const std::lock_guard lock(mutex_);
    if (end_) return;
    end_ = end;
    callback = callback_;
  }
  if (!end.orderly) {
    // The one line that says why; all that follows are consequences.
    LOG_ERROR("The group has ended: {}", end.describe());
    for (const auto& rank : communicators_) rank->abort(unavailable(end.describe()));
  }
  if (callback) callback(end);
  changed_.notify_all();
}

/// Waits until a failure of this process's own, or the end, is known.
bool RankGroup::wait_cause(std::chrono::milliseconds most) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, most, [this] { return end_.has_value() || cause_known_; });
}

void RankGroup::fail(int rank, const Error& why) {
  if (why.code == ErrorCode::kUnavailable) {
    if (wait_cause(kSymptomPatience)) return;
  } else {
    const std::lock_guard lock(mutex_);
    cause_known_ = true;
  }
  changed_.notify_all();
  if (group_) {
    group_->fail(rank, why);
    return;
  }
  comm::GroupEnd end;
  end.node = 0;
  end.rank = rank;
  end.host = host_name();
  {
    const std::lock_guard lock(mutex_);
    end.step = step_;
  }
  end.what = why.message;
  take_end(end);
}

Error RankGroup::fail_and_explain(int rank, const Error& why) {
  fail(rank, why);
  wait_end(kVerdictPatience);
  const auto over = end();
  return unavailable(over ? over->describe() : why.message);
}

void RankGroup::release() {
  if (group_) {
    group_->release();
  } else {
    comm::GroupEnd end;
    end.orderly = true;
    take_end(end);
  }
}

void RankGroup::on_end(std::function<void(const comm::GroupEnd&)> callback) {
  std::optional<comm::GroupEnd> over;
  {
    const std::lock_guard lock(mutex_);
    callback_ = callback;
    over = end_;
  }
  if (over) callback(*over);
}

bool RankGroup::ended() const {
  const std::lock_guard lock(mutex_);
  return end_.has_value();
}

std::optional<comm::GroupEnd> RankGroup::end() const {
  const std::lock_guard lock(mutex_);
  return end_;
}

bool RankGroup::wait_end(std::chrono::milliseconds give_up) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, give_up, [this] { return end_.has_value(); });
}

Status RankGroup::wait_ready(const std::function<bool()>& cancelled) {
  constexpr auto kLook = std::chrono::milliseconds(20);
  while (!view().unready().empty()) {
    if (cancelled()) return Error{ErrorCode::kAborted, "stopped while loading"};
    if (wait_end(kLook)) return unavailable(end()->describe());
  }
  return {};
}

std::string RankGroup::who_is_behind() const {
  const server::GroupView now = view();
  const server::NodeView* own = now.own();
  std::string text;
  for (const server::NodeView& n : now.nodes) {
    if (own == nullptr || n.node == now.own_node) continue;
    // A node that finished the last step and was just heard is no suspect.
    if (n.step >= own->step && n.heartbeat_age < now.heartbeat_timeout / 3) continue;
    char part[160];
    std::snprintf(part, sizeof(part), "%snode %d (%s) is at step %llu, heard %.1f s ago",
                  text.empty() ? " (" : ", ", n.node, n.host.c_str(),
                  static_cast<unsigned long long>(n.step), n.heartbeat_age);
    text += part;
  }
  return text.empty() ? text : text + ")";
}

void RankGroup::note_timings(const std::vector<double>& seconds) {
  const double usual = median(seconds);
  const auto slowest = std::max_element(seconds.begin(), seconds.end());
  const bool slow = *slowest > kSlow * usual && *slowest - usual > kNoticeable;
  bool complain = false;
  {
    const std::lock_guard lock(mutex_);
    compute_seconds_ = seconds;
    slow_windows_ = slow ? slow_windows_ + 1 : 0;
    const auto now = std::chrono::steady_clock::now();
    complain = slow_windows_ >= kSlowWindows && (last_complaint_.time_since_epoch().count() == 0 ||
                                                 now - last_complaint_ >= kBetweenComplaints);
    if (complain) last_complaint_ = now;
  }
  if (!complain) return;
  const auto rank = static_cast<int>(slowest - seconds.begin());
  std::string where;
  if (group_) {
    const int node = rank / options_.ranks_per_node();
    for (const comm::NodeState& state : group_->states()) {
      if (state.node == node) where = " (node " + std::to_string(node) + ", " + state.host + ")";
    }
  }
  LOG_WARN(
      "Rank {}{} is slow and holds up the others: it computes {:.2f} ms a step, the median is "
      "{:.2f} ms",
      rank, where, *slowest * 1e3, usual * 1e3);
}

bool RankGroup::drain_requested() const {
  if (!group_) return false;
  for (const comm::NodeState& state : group_->states()) {
    if (state.node != options_.node && state.phase == server::kPhaseDraining) return true;
  }
  return false;
}

server::GroupView RankGroup::view() const {
  server::GroupView view;
  view.own_node = options_.node;
  view.ranks_per_node = options_.ranks_per_node();
  view.heartbeat_timeout = std::chrono::duration<double>(options_.heartbeat_timeout).count();
  std::vector<comm::NodeState> states;
  if (group_) states = group_->states();
  const std::lock_guard lock(mutex_);
  if (!group_) {
    states.push_back({0, host_name(), true, 0, step_, phase_});
  }
  for (const comm::NodeState& s : states) {
    const bool own = s.node == options_.node;
    view.nodes.push_back({s.node, s.host, own ? 0 : s.seconds_since_heartbeat, own ? step_ : s.step,
                          own ? phase_ : s.phase, s.joined});
  }
  view.compute_seconds = compute_seconds_;
  if (end_) view.end = end_->orderly ? "the group was released" : end_->describe();
  return view;
}

}  // namespace capstan::app
