// The ranks of this process and the group they belong to: how they talk, and how all of it ends.
//
// With one node there is no comm::Group; the end of a rank then ends the others through their
// communicators, and is described in the same way.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "app/parallel_options.h"
#include "comm/group.h"
#include "engine/timed_communicator.h"
#include "server/group_view.h"

namespace capstan::app {

class RankGroup {
 public:
  /// Joins the other nodes, if there are any, and connects the ranks; waits for the slowest.
  /// `facts`: what must be equal on all nodes. kAborted when `cancelled` says so.
  static Result<std::unique_ptr<RankGroup>> create(
      const ParallelOptions& options, std::vector<std::pair<std::string, std::string>> facts,
      const std::function<bool()>& cancelled);
  /// Destroy the ranks first. Leaving a group that has not ended ends it.
  ~RankGroup();
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  const ParallelOptions& options() const { return options_; }
  /// Of the local-th rank of this node.
  engine::TimedCommunicator& communicator(int local) {
    return *communicators_[static_cast<size_t>(local)];
  }
  /// Whether all nodes are processes of this machine.
  bool one_machine() const { return one_machine_; }

  /// comm::Group::exchange(); with one node, its own text.
  Result<std::vector<std::string>> exchange(const std::string& name, std::string mine);
  void set_step(uint64_t step);
  void set_phase(const std::string& phase);

  /// A rank of this process cannot go on. kUnavailable, from a communicator, is taken for the
  /// consequence of another's failure, for a second.
  void fail(int rank, const Error& why);
  /// fail(), and the end as it came to be known: what clients are told.
  Error fail_and_explain(int rank, const Error& why);
  /// All work is done: the other nodes end in order as well. On the leader.
  void release();

  /// Called once, when the group ends, at once if it has; from any thread.
  void on_end(std::function<void(const comm::GroupEnd&)> callback);
  bool ended() const;
  std::optional<comm::GroupEnd> end() const;
  /// Waits for the end; false when `give_up` is over.
  bool wait_end(std::chrono::milliseconds give_up);
  /// Waits until all nodes say that they are ready, which takes a heartbeat. kAborted when
  /// `cancelled` says so.
  Status wait_ready(const std::function<bool()>& cancelled);

  /// Seconds that each rank computed per step; the slow one is named in the log.
  void note_timings(const std::vector<double>& seconds);
  server::GroupView view() const;
  /// For a step that waits too long for other nodes: which are behind, " (node 1 (b) is at step 4,
  /// heard 3.2 s ago)"; empty: none.
  std::string who_is_behind() const;
  /// Whether another node asked to be drained.
  bool drain_requested() const;

 private:
  RankGroup(const ParallelOptions& options) : options_(options) {}
  void take_end(const comm::GroupEnd& end);
  bool wait_cause(std::chrono::milliseconds most);

  const ParallelOptions options_;
  std::vector<std::unique_ptr<engine::TimedCommunicator>> communicators_;
  bool one_machine_ = true;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<comm::GroupEnd> end_;
  bool cause_known_ = false;
  std::function<void(const comm::GroupEnd&)> callback_;
  uint64_t step_ = 0;
  std::string phase_ = "starting";
  std::vector<double> compute_seconds_;
  int slow_windows_ = 0;
  std::chrono::steady_clock::time_point last_complaint_{};
  std::unique_ptr<comm::Group> group_;  // null: one node. First to go: its thread calls take_end()
};

}  // namespace capstan::app
