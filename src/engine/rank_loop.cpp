#include "engine/rank_loop.h"

#include <pthread.h>

#include <exception>
#include <string>

#include "base/log.h"
#include "engine/burst.h"

namespace capstan::engine {
namespace {

/// A step is bracketed for the watchdog even when it throws.
class Watched {
 public:
  explicit Watched(Watchdog& watchdog) : watchdog_(watchdog) { watchdog_.step_begins(); }
  ~Watched() { watchdog_.step_ends(); }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

 private:
  Watchdog& watchdog_;
};

Status compute(const RankParts& parts, const BatchDecoder& decoder) {
  if (decoder.kind() == BatchKind::kForward) {
    return parts.shard->forward(decoder.batch(), *parts.kv, {});
  }
  model::DraftModel* draft = parts.shard->draft();
  if (draft == nullptr) {
    return internal_error("rank 0 drafts tokens, and this rank has no multi-token prediction");
  }
  model::DraftBatch batch;
  static_cast<model::ForwardBatch&>(batch) = decoder.batch();
  return draft->forward(batch, *parts.kv, {});
}

Status loop(const RankParts& parts, const RankOptions& options) {
  BatchDecoder decoder(
      {options.page_size, parts.kv->num_pages(), parts.shard->config().vocab_size});
  RankClock clock(*parts.comm);
  uint64_t steps = 0;
  Watchdog watchdog(options.watchdog, [&] {
    return "Rank " + std::to_string(parts.comm->rank()) + ", step " + std::to_string(steps + 1) +
           (parts.comm->clock().inside ? ", waiting for other ranks." : ", computing.");
  });
  for (;;) {
    CAPSTAN_ASSIGN(const auto message, parts.comm->receive_message());
    const Watched watched(watchdog);
    clock.begin_step();
    CAPSTAN_RETURN_IF_ERROR(decoder.decode(message));
    if (decoder.kind() == BatchKind::kStop) return {};
    {
      const Burst burst(parts.pool.get());
      CAPSTAN_RETURN_IF_ERROR(compute(parts, decoder));
    }
    CAPSTAN_RETURN_IF_ERROR(clock.end_step(decoder.number()));
    if (decoder.kind() != BatchKind::kForward) continue;
    ++steps;
    if (options.on_step) options.on_step(steps);
  }
}

}  // namespace

Status run_rank(const RankParts& parts, const RankOptions& options) {
  Status status;
  try {
    status = loop(parts, options);
  } catch (const std::exception& e) {
    status = internal_error(e.what());
  } catch (...) {
    status = internal_error("an exception of unknown type");
  }
  if (!status.ok()) {
    // First the reason, then its consequences for the others.
    if (options.on_failure) options.on_failure(parts.comm->rank(), status.error());
    parts.comm->abort(status.error());
  }
  return status;
}

RankThread::RankThread(RankParts parts, RankOptions options)
    : parts_(std::move(parts)), options_(std::move(options)), thread_([this] { run(); }) {}

RankThread::~RankThread() { thread_.join(); }

void RankThread::run() {
  const int rank = parts_.comm->rank();
  ::pthread_setname_np(::pthread_self(), ("rank " + std::to_string(rank)).c_str());
  set_thread_rank(rank);
  (void)run_rank(parts_, options_);  // told through on_failure
  finished_ = true;
}

}  // namespace capstan::engine
