#include "app/group_end.h"

#include <cstdlib>
#include <thread>

#include "base/log.h"

namespace capstan::app {
namespace {

// From the end of a group to the end of its processes: time for error events to reach clients. A
// thread that hangs in a kernel or a system call does not hold the process longer than that.
constexpr auto kLeaveWithin = std::chrono::seconds(6);

}  // namespace

struct GroupEndWatch::State {
  std::mutex mutex;
  std::shared_ptr<engine::Engine> engine;
  bool done = false;
};

void GroupEndWatch::watch(RankGroup& group) {
  state_ = std::make_shared<State>();
  group.on_end([this](const comm::GroupEnd& end) { ended(end); });
}

void GroupEndWatch::set_engine(std::shared_ptr<engine::Engine> engine) {
  if (state_ == nullptr) return;
  const std::lock_guard lock(state_->mutex);
  state_->engine = std::move(engine);
}

void GroupEndWatch::done() {
  if (state_ == nullptr) return;
  const std::lock_guard lock(state_->mutex);
  state_->engine.reset();
  state_->done = true;
}

void GroupEndWatch::ended(const comm::GroupEnd& end) {
  std::shared_ptr<engine::Engine> engine;
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->done) return;
    engine = state_->engine;
  }
  if (!end.orderly) {
    std::thread([] {
      std::this_thread::sleep_for(kLeaveWithin);
      std::_Exit(kGroupEnded);
    }).detach();
    if (engine) engine->fail(unavailable("the server lost a part of itself: " + end.describe()));
  }
  signals_.notify();
}

}  // namespace capstan::app
