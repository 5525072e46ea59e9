// A sequence run through the model and its multi-token prediction layer, chunk by chunk.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "model/kv_store.h"
#include "session.h"

namespace capstan::model {

class DraftSession {
 public:
  /// `groups`: ForwardBatch::groups of a step with one sequence.
  explicit DraftSession(Model& model, int page_size = 16, int max_tokens = 64,
                        std::vector<int32_t> groups = {})
      : model_(model), page_size_(page_size), groups_(std::move(groups)) {
    const int pages = (max_tokens + page_size - 1) / page_size;
    auto store =
        KvStore::create(model.local_config(), pages, page_size, DType::kF32, /*draft_layers=*/1);
    EXPECT_TRUE(store.ok()) << store.error().message;
    kv_ = std::make_unique<KvStore>(std::move(*store));
    pages_.resize(static_cast<size_t>(pages));
    std::iota(pages_.rbegin(), pages_.rend(), 0);
  }

  /// Logits of the draft rows 0 to prompt.size() - 2: the last token has no successor yet.
  Session::Rows run(std::span<const int32_t> prompt, size_t chunk) {
    Session::Rows out;
    for (size_t at = 0; at < prompt.size(); at += chunk) {
      const size_t n = std::min(chunk, prompt.size() - at);
      Rows rows(*this, at, n);
      std::vector<float> states(n * width());
      ForwardBatch batch = rows.batch(prompt.subspan(at, n));
      batch.groups = groups_;
      batch.hidden_rows = rows.all;
      batch.hidden_states = view(states, n, width());
      check(model_.forward(batch, *kv_, MatrixView{}));

      const size_t drafted = std::min(n, prompt.size() - 1 - at);
      if (drafted == 0) break;
      Rows draft_rows(*this, at, drafted);
      DraftBatch draft;
      static_cast<ForwardBatch&>(draft) = draft_rows.batch(prompt.subspan(at + 1, drafted));
      draft.groups = groups_;
      draft.previous = view(states, drafted, width());
      draft.logit_rows = draft_rows.all;
      const auto vocab = static_cast<size_t>(model_.config().vocab_size);
      std::vector<float> logits(drafted * vocab);
      check(model_.draft()->forward(draft, *kv_, view(logits, drafted, vocab)));
      for (size_t i = 0; i < drafted; ++i) {
        const float* row = logits.data() + i * vocab;
        out.emplace_back(row, row + vocab);
      }
    }
    return out;
  }

  KvStore& kv() { return *kv_; }

 private:
  /// Positions [at, at + n) of the sequence.
  struct Rows {
    Rows(const DraftSession& s, size_t at, size_t n) : positions(n), all(n), slots(n) {
      std::iota(positions.begin(), positions.end(), static_cast<int32_t>(at));
      std::iota(all.begin(), all.end(), 0);
      for (size_t i = 0; i < n; ++i) {
        const int p = positions[i];
        slots[i] = int64_t{s.pages_[static_cast<size_t>(p / s.page_size_)]} * s.page_size_ +
                   p % s.page_size_;
      }
      slice = {0, static_cast<int32_t>(n), static_cast<int32_t>(at + n), s.pages_.data()};
    }
    ForwardBatch batch(std::span<const int32_t> tokens) const {
      return {tokens, positions, slots, {&slice, 1}, {}};
    }
    std::vector<int32_t> positions, all;
    std::vector<int64_t> slots;
    kernels::SequenceSlice slice;
  };

  size_t width() const { return static_cast<size_t>(model_.config().hidden_size); }
  static MatrixView view(std::vector<float>& v, size_t rows, size_t cols) {
    return {v.data(), static_cast<int64_t>(rows), static_cast<int64_t>(cols),
            static_cast<int64_t>(cols)};
  }
  static void check(const Status& status) { EXPECT_TRUE(status.ok()) << status.error().message; }

  Model& model_;
  int page_size_;
  std::vector<int32_t> groups_;
  std::unique_ptr<KvStore> kv_;
  std::vector<int32_t> pages_;
};

}  // namespace capstan::model
