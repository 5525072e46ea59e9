#include "engine/step_joiner.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <utility>

#include "engine/burst.h"

namespace capstan::engine {
namespace {

/// Copies the rows of `from` to rows [first, ...) of `to`, or the other way round.
void copy_rows(const MatrixView& from, int64_t from_row, const MatrixView& to, int64_t to_row,
               int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    std::memcpy(to.row(to_row + r), from.row(from_row + r),
                static_cast<size_t>(from.cols) * sizeof(float));
  }
}

MatrixView matrix(std::vector<float>& storage, size_t rows, int64_t cols) {
  storage.resize(rows * static_cast<size_t>(cols));
  return {storage.data(), static_cast<int64_t>(rows), cols, cols};
}

}  // namespace

class StepJoiner::MemberDraft final : public model::DraftModel {
 public:
  MemberDraft(StepJoiner& joiner, int group) : joiner_(joiner), group_(group) {}
  size_t weight_bytes_per_token() const override {
    return joiner_.model_->draft()->weight_bytes_per_token();
  }
  Status forward(const model::DraftBatch& batch, model::KvStore&, MatrixView logits) override {
    return joiner_.run(group_, BatchKind::kDraft, batch, batch.previous, logits);
  }

 private:
  StepJoiner& joiner_;
  const int group_;
};

class StepJoiner::Member final : public model::Model {
 public:
  Member(std::shared_ptr<StepJoiner> joiner, int group)
      : joiner_(std::move(joiner)), group_(group), draft_(*joiner_, group) {}
  ~Member() override { rest(); }

  const model::ModelConfig& config() const override { return joiner_->model_->config(); }
  const model::ModelConfig& local_config() const override {
    return joiner_->model_->local_config();
  }
  size_t weight_bytes_per_token() const override {
    return joiner_->model_->weight_bytes_per_token();
  }
  size_t weight_bytes() const override { return joiner_->model_->weight_bytes(); }
  model::DraftModel* draft() override {
    return joiner_->model_->draft() != nullptr ? &draft_ : nullptr;
  }
  std::vector<std::vector<uint64_t>> expert_load() const override {
    return joiner_->model_->expert_load();
  }
  Status forward(const model::ForwardBatch& batch, model::KvStore&, MatrixView logits) override {
    return joiner_->run(group_, BatchKind::kForward, batch, {}, logits);
  }
  void rest() override { joiner_->rest(group_); }

 private:
  const std::shared_ptr<StepJoiner> joiner_;
  const int group_;
  MemberDraft draft_;
};

StepJoiner::StepJoiner(std::unique_ptr<model::Model> model, std::unique_ptr<model::KvStore> kv,
                       int groups, platform::ThreadPool* pool)
    : model_(std::move(model)),
      kv_(std::move(kv)),
      pool_(pool),
      seats_(static_cast<size_t>(groups)) {}

std::vector<std::unique_ptr<model::Model>> StepJoiner::members(std::shared_ptr<StepJoiner> joiner) {
  std::vector<std::unique_ptr<model::Model>> out;
  for (size_t g = 0; g < joiner->seats_.size(); ++g) {
    out.push_back(std::make_unique<Member>(joiner, static_cast<int>(g)));
  }
  return out;
}

bool StepJoiner::complete() const {
  return !computing_ && std::ranges::all_of(seats_, [](const Seat& s) {
    return s.presence == Presence::kResting || s.presence == Presence::kHere;
  });
}

void StepJoiner::rest(int group) {
  const std::lock_guard lock(mutex_);
  seats_[static_cast<size_t>(group)].presence = Presence::kResting;
  changed_.notify_all();
}

Status StepJoiner::run(int group, BatchKind kind, const model::ForwardBatch& batch,
                       MatrixView previous, MatrixView logits) {
  std::unique_lock lock(mutex_);
  Seat& seat = seats_[static_cast<size_t>(group)];
  seat = {Presence::kHere, kind, &batch, previous, logits, {}};
  changed_.notify_all();
  while (seat.presence != Presence::kDone) {
    if (complete()) {
      compute_next(lock);
    } else {
      changed_.wait(lock);
    }
  }
  seat.presence = Presence::kBusy;
  return std::move(seat.status);
}

/// Engines draft a different number of times between two steps: drafts go first, so that all come
/// to their next step.
void StepJoiner::compute_next(std::unique_lock<std::mutex>& lock) {
  BatchKind kind = BatchKind::kForward;
  for (const Seat& seat : seats_) {
    if (seat.presence == Presence::kHere && seat.kind == BatchKind::kDraft) kind = seat.kind;
  }
  std::vector<Seat*> taken(seats_.size(), nullptr);
  for (size_t g = 0; g < seats_.size(); ++g) {
    if (seats_[g].presence == Presence::kHere && seats_[g].kind == kind) taken[g] = &seats_[g];
  }
  computing_ = true;
  lock.unlock();
  const Status status = compute(kind, taken);
  lock.lock();
  computing_ = false;
  for (Seat* seat : taken) {
    if (seat == nullptr) continue;
    seat->status = status;
    seat->presence = Presence::kDone;
  }
  changed_.notify_all();
}

Status StepJoiner::compute(BatchKind kind, const std::vector<Seat*>& seats) {
  try {
    return compute_all(kind, seats);
  } catch (const std::bad_alloc&) {
    return resource_exhausted("not enough memory to join the batches of " +
                              std::to_string(seats.size()) +
                              " groups; lower --chunked-prefill-size or --max-running-requests");
  } catch (const std::exception& e) {
    return internal_error(std::string("joining the groups' batches: ") + e.what());
  }
}

void StepJoiner::add(const Seat& seat, uint64_t group) {
  const model::ForwardBatch& b = *seat.batch;
  const auto row = static_cast<int32_t>(tokens_.size());
  tokens_.insert(tokens_.end(), b.tokens.begin(), b.tokens.end());
  positions_.insert(positions_.end(), b.positions.begin(), b.positions.end());
  slots_.insert(slots_.end(), b.slots.begin(), b.slots.end());
  for (kernels::SequenceSlice s : b.sequences) {
    s.q_begin += row;
    sequences_.push_back(s);
  }
  for (const uint64_t id : b.sequence_ids) ids_.push_back(id * seats_.size() + group);
  for (const int32_t r : b.logit_rows) logit_rows_.push_back(row + r);
  for (const int32_t r : b.hidden_rows) hidden_rows_.push_back(row + r);
}

void StepJoiner::join(const std::vector<Seat*>& seats) {
  for (auto* v : {&tokens_, &positions_, &logit_rows_, &hidden_rows_, &groups_}) v->clear();
  slots_.clear();
  sequences_.clear();
  ids_.clear();
  for (size_t g = 0; g < seats.size(); ++g) {
    groups_.push_back(static_cast<int32_t>(sequences_.size()));
    if (seats[g] != nullptr) add(*seats[g], g);
  }
  groups_.push_back(static_cast<int32_t>(sequences_.size()));
  if (ids_.size() != sequences_.size()) ids_.clear();  // not all of them have any
  batch_ = {};
  batch_.tokens = tokens_;
  batch_.positions = positions_;
  batch_.slots = slots_;
  batch_.sequences = sequences_;
  batch_.logit_rows = logit_rows_;
  batch_.hidden_rows = hidden_rows_;
  batch_.sequence_ids = ids_;
  batch_.groups = groups_;
}

Status StepJoiner::forward(BatchKind kind, MatrixView previous, MatrixView logits) {
  const Burst burst(pool_);
  if (kind == BatchKind::kForward) return model_->forward(batch_, *kv_, logits);
  model::DraftBatch draft;
  static_cast<model::ForwardBatch&>(draft) = batch_;
  draft.previous = previous;
  return model_->draft()->forward(draft, *kv_, logits);
}

Status StepJoiner::compute_all(BatchKind kind, const std::vector<Seat*>& seats) {
  join(seats);
  std::vector<const Seat*> present;
  for (const Seat* seat : seats) {
    if (seat != nullptr) present.push_back(seat);
  }
  if (present.size() == 1) {  // the common case at low load: nothing to take apart
    batch_.hidden_states = present[0]->batch->hidden_states;
    return forward(kind, present[0]->previous, present[0]->logits);
  }
  const int64_t width = model_->config().hidden_size, vocab = model_->config().vocab_size;
  const MatrixView logits = matrix(logits_, logit_rows_.size(), vocab);
  batch_.hidden_states = matrix(hidden_, hidden_rows_.size(), width);
  MatrixView previous;
  if (kind == BatchKind::kDraft) {
    previous = matrix(previous_, tokens_.size(), width);
    int64_t row = 0;
    for (const Seat* seat : present) {
      copy_rows(seat->previous, 0, previous, row, seat->previous.rows);
      row += seat->previous.rows;
    }
  }
  CAPSTAN_RETURN_IF_ERROR(forward(kind, previous, logits));
  int64_t logit = 0, hidden = 0;
  for (const Seat* seat : present) {
    const auto logit_count = static_cast<int64_t>(seat->batch->logit_rows.size());
    const auto hidden_count = static_cast<int64_t>(seat->batch->hidden_rows.size());
    copy_rows(logits, logit, seat->logits, 0, logit_count);
    copy_rows(batch_.hidden_states, hidden, seat->batch->hidden_states, 0, hidden_count);
    logit += logit_count;
    hidden += hidden_count;
  }
  return {};
}

}  // namespace capstan::engine
