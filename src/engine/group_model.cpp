#include "engine/group_model.h"

#include <exception>
#include <string>

#include "model/decoder.h"

namespace capstan::engine {

GroupModel::GroupModel(std::unique_ptr<model::Model> shard, TimedCommunicator& comm,
                       GroupModelOptions options)
    : shard_(std::move(shard)),
      comm_(comm),
      options_(std::move(options)),
      encoder_(options_.page_size),
      clock_(comm) {}

GroupModel::~GroupModel() {
  if (failure_) return;
  // A group that is lost by now ends by other means.
  (void)comm_.send_message(encoder_.encode_stop());
}

Error GroupModel::fail(const Error& why) {
  if (!failure_) {
    failure_ = options_.on_failure ? options_.on_failure(why) : why;
    comm_.abort(why);  // nobody waits for this rank
    failure_->code = ErrorCode::kUnavailable;
  }
  return *failure_;
}

Status GroupModel::start(const model::ForwardBatch& batch, const model::KvStore& kv,
                         MatrixView logits, BatchKind kind) {
  if (failure_) return *failure_;
  CAPSTAN_RETURN_IF_ERROR(
      model::check_batch(batch, config(), kv, logits, /*first_rank=*/true, options_.groups));
  CAPSTAN_ASSIGN(const auto message, encoder_.encode(batch, kind));
  clock_.begin_step();
  if (const Status sent = comm_.send_message(message); !sent.ok()) return fail(sent.error());
  return {};
}

template <class F>
Status GroupModel::run(F&& compute) {
  Status status;
  try {
    status = compute();
  } catch (const std::exception& e) {
    status = internal_error(e.what());
  } catch (...) {
    status = internal_error("an exception of unknown type");
  }
  if (!status.ok()) return fail(status.error());
  const Result<bool> timed = clock_.end_step(encoder_.number());
  if (!timed.ok()) return fail(timed.error());
  if (*timed && options_.on_timings) options_.on_timings(clock_.compute_seconds());
  return {};
}

Status GroupModel::forward(const model::ForwardBatch& batch, model::KvStore& kv,
                           MatrixView logits) {
  CAPSTAN_RETURN_IF_ERROR(start(batch, kv, logits, BatchKind::kForward));
  CAPSTAN_RETURN_IF_ERROR(run([&] { return shard_->forward(batch, kv, logits); }));
  ++steps_;
  if (options_.on_step) options_.on_step(steps_);
  return {};
}

Status GroupModel::Draft::forward(const model::DraftBatch& batch, model::KvStore& kv,
                                  MatrixView logits) {
  CAPSTAN_RETURN_IF_ERROR(model_.start(batch, kv, logits, BatchKind::kDraft));
  return model_.run([&] { return model_.shard_->draft()->forward(batch, kv, logits); });
}

}  // namespace capstan::engine
