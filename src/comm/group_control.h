// The running group: the thread that watches the control connections, and what the other threads
// ask of it.
//
// Node 0 is the judge. It hears every node directly; the others hear of each other through it, so
// that all end with the same culprit. A node that loses node 0 itself ends with that.
//
// `mutex_` guards what other threads see; everything marked "watcher" belongs to the watching
// thread alone once it runs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "comm/heartbeat.h"
#include "comm/rendezvous.h"

namespace capstan::comm {

/// Bytes of one node's part of an exchange.
inline constexpr size_t kExchangeLimit = 1 << 20;

class GroupControl final : public Group {
 public:
  GroupControl(const GroupConfig& config, const GroupTiming& timing, Formed formed);
  ~GroupControl() override;

  /// Once, before anything else. Throws std::system_error when no thread can be made.
  void start();
  void set_links(Links links);
  /// exchange() that gives up with kAborted when `stop` says so; the group is of no use then.
  Result<std::vector<std::string>> exchange_until(const std::string& name, std::string mine,
                                                  const Stop& stop);

  const GroupConfig& config() const override { return config_; }
  Topology topology() const override;
  std::vector<NodeLink> take_links() override;
  Result<std::vector<std::string>> exchange(const std::string& name, std::string mine) override;
  void set_step(uint64_t step) override { step_.store(step, std::memory_order_relaxed); }
  void set_phase(std::string phase) override;
  std::vector<NodeState> states() const override;
  void on_end(std::function<void(const GroupEnd&)> callback) override;
  void fail(int rank, const Error& why) override;
  void release() override;
  bool ended(GroupEnd* end) const override;

 private:
  /// An exchange on node 0: who has come, under which name.
  struct Board {
    std::string name, error;
    int first = -1;  // the node that named it
    std::vector<std::optional<std::string>> texts;
    size_t came = 0;
  };
  struct Answer {
    bool done = false;
    std::string error;
    std::vector<std::string> texts;
  };
  struct Suspicion {
    TimePoint until;
    GroupEnd end;
  };
  struct Orders {  // from other threads to the watcher
    std::vector<ExchangePart> parts;
    std::optional<Failure> failure;
    bool release = false, leave = false;
  };

  bool leader() const { return config_.node == 0; }
  int node_of(size_t peer) const { return leader() ? static_cast<int>(peer) : 0; }
  void wake();

  // Watcher.
  void watch();
  void turn();
  void sleep();
  void read_peers(TimePoint now);
  void handle(size_t peer, const Frame& frame, TimePoint now);
  void handle_at_leader(size_t peer, const Frame& frame, TimePoint now);
  void handle_at_member(const Frame& frame);
  void lost(size_t peer, TimePoint now);
  void take_orders(TimePoint now);
  void beat(TimePoint now);
  void note_beats(size_t peer, const std::vector<Beat>& beats, TimePoint now);
  void check_silence(TimePoint now);
  void check_suspicion(TimePoint now);
  void greet_latecomers(TimePoint now);
  void post(int node, const ExchangePart& part);
  void answer(int node, const ExchangeAnswer& answer);
  void failed(int node, const Failure& failure, TimePoint now);
  GroupEnd end_of(int node, int rank, std::string what) const;
  /// The first verdict counts.
  void decide(GroupEnd end);
  void spread(const GroupEnd& end);
  void say_farewell();
  void publish();
  /// Longer without a word than a busy machine explains.
  bool stale(size_t peer, TimePoint now) const;

  const GroupConfig config_;
  const GroupTiming timing_;
  const std::string session_;
  const std::vector<std::string> hosts_;
  std::atomic<uint64_t> step_{0};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Orders orders_;
  std::string phase_ = "joined";
  struct Known {
    Beat beat;
    TimePoint at;  // when `beat` was true
  };
  std::vector<Known> known_;  // by node
  uint64_t exchanges_ = 0;    // begun by this node
  bool exchanging_ = false;
  Answer answer_;
  std::optional<GroupEnd> end_;
  std::function<void(const GroupEnd&)> callback_;
  Links links_;

  // Watcher.
  std::vector<ControlLink> peers_;  // node 0: by node; others: [0] is node 0
  std::vector<bool> seen_;          // those that confirmed the end
  Acceptor acceptor_;
  HeartbeatClock clock_;
  LogThrottle slow_log_;
  std::map<uint64_t, Board> boards_;
  std::optional<Suspicion> suspicion_;
  std::optional<TimePoint> verdict_limit_;  // others: node 0 owes a verdict on this node's failure
  GroupEnd own_failure_;
  std::optional<GroupEnd> verdict_;
  bool verdict_from_leader_ = false;
  std::vector<uint64_t> received_;  // bytes, by peer, at the last turn
  Duration slept_{};                // the latest gap in which this process did not run
  TimePoint woke_{};
  Fd wake_;
  std::thread watcher_;
};

/// Group::join() with other limits of time.
Result<std::unique_ptr<GroupControl>> join_group(const GroupConfig& config,
                                                 const GroupTiming& timing, const Stop& stop);

}  // namespace capstan::comm
