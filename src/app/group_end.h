// What a process does when the group that it belongs to ends: it tells its clients and leaves, at
// the latest after a while.
#pragma once

#include <memory>

#include "app/rank_group.h"
#include "app/signals.h"
#include "engine/engine.h"

namespace capstan::app {

/// The group ended without this process being the cause (EX_UNAVAILABLE of sysexits.h); a process
/// whose own step hung leaves with 70.
inline constexpr int kGroupEnded = 69;

/// Watches a group from join() to the end of the process.
class GroupEndWatch {
 public:
  explicit GroupEndWatch(ShutdownSignals& signals) : signals_(signals) {}

  /// Once, when the group stands.
  void watch(RankGroup& group);
  /// From here on the end of the group fails this engine's requests.
  void set_engine(std::shared_ptr<engine::Engine> engine);
  /// The serving part is over: an end that comes now is the process's own leaving.
  void done();

 private:
  void ended(const comm::GroupEnd& end);

  struct State;
  ShutdownSignals& signals_;
  std::shared_ptr<State> state_;
};

}  // namespace capstan::app
