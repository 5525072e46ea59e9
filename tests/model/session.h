// Sequences in paged caches, run chunk by chunk: what the engine does, as plainly as possible.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "model/kv_store.h"
#include "model/model.h"

namespace capstan::model {

class Session {
 public:
  struct Chunk {
    int sequence = 0;
    std::span<const int32_t> tokens;
    bool all_logits = false;  // of every token, else of the last
  };
  using Rows = std::vector<std::vector<float>>;

  /// `groups` of data-parallel attention: sequence i belongs to group i % groups, and each group
  /// has the same pages to give. Chunks of a step stand in the order of their groups.
  Session(Model& model, int page_size, DType kv_dtype = DType::kF32, int max_tokens = 600,
          int groups = 1)
      : model_(model), page_size_(page_size), free_(static_cast<size_t>(groups)) {
    const int pages = max_tokens / page_size + 8;
    auto store = KvStore::create(model.local_config(), pages, page_size, kv_dtype);
    EXPECT_TRUE(store.ok()) << store.error().message;
    kv_ = std::make_unique<KvStore>(std::move(*store));
    free_[0].resize(static_cast<size_t>(pages));
    std::iota(free_[0].begin(), free_[0].end(), 0);
    // Neighbouring positions lie in distant pages, so that page arithmetic is exercised.
    std::sort(free_[0].begin(), free_[0].end(), [](int a, int b) {
      return std::pair(a * 7919 % 101, a) < std::pair(b * 7919 % 101, b);
    });
    std::fill(free_.begin() + 1, free_.end(), free_[0]);
  }

  /// One step with all chunks; the logits asked for, chunk by chunk.
  Rows step(const std::vector<Chunk>& chunks) {
    std::vector<int32_t> tokens, positions, rows;
    std::vector<int64_t> slots;
    std::vector<kernels::SequenceSlice> slices;
    std::vector<int32_t> groups(free_.size() + 1);
    for (const Chunk& chunk : chunks) {
      const size_t group = static_cast<size_t>(chunk.sequence) % free_.size();
      std::fill(groups.begin() + static_cast<std::ptrdiff_t>(group) + 1, groups.end(),
                static_cast<int32_t>(slices.size()) + 1);
      auto& s = sequence(chunk.sequence);
      kernels::SequenceSlice slice;
      slice.q_begin = static_cast<int32_t>(tokens.size());
      slice.q_len = static_cast<int32_t>(chunk.tokens.size());
      for (const int32_t token : chunk.tokens) {
        if (s.length % page_size_ == 0) {
          s.pages.push_back(free_[group].back());
          free_[group].pop_back();
        }
        if (chunk.all_logits) rows.push_back(static_cast<int32_t>(tokens.size()));
        tokens.push_back(token);
        positions.push_back(s.length);
        slots.push_back(int64_t{s.pages.back()} * page_size_ + s.length % page_size_);
        ++s.length;
      }
      if (!chunk.all_logits) rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
      slice.kv_len = s.length;
      slices.push_back(slice);
    }
    for (size_t i = 0; i < chunks.size(); ++i) {
      slices[i].pages = sequence(chunks[i].sequence).pages.data();
    }
    const int64_t vocab = model_.config().vocab_size;
    std::vector<float> logits(rows.size() * static_cast<size_t>(vocab));
    ForwardBatch batch{tokens, positions, slots, slices, rows};
    batch.groups = groups;
    const Status status = model_.forward(
        batch, *kv_, {logits.data(), static_cast<int64_t>(rows.size()), vocab, vocab});
    EXPECT_TRUE(status.ok()) << status.error().message;
    Rows out;
    for (size_t i = 0; i < rows.size(); ++i) {
      const float* row = logits.data() + i * static_cast<size_t>(vocab);
      out.emplace_back(row, row + vocab);
    }
    return out;
  }

  /// A prompt in chunks of `chunk` tokens (0: in one go); logits of every token.
  Rows prefill(std::span<const int32_t> prompt, size_t chunk, int sequence = 0) {
    Rows out;
    if (chunk == 0) chunk = prompt.size();
    for (size_t at = 0; at < prompt.size(); at += chunk) {
      Rows rows = step({{sequence, prompt.subspan(at, std::min(chunk, prompt.size() - at)), true}});
      for (auto& row : rows) out.push_back(std::move(row));
    }
    return out;
  }

  /// Greedy continuation; `last` holds the logits of the prompt's last token. The logits each
  /// token was taken from go to `rows`.
  std::vector<int32_t> greedy(std::vector<float> last, size_t count, Rows* rows = nullptr,
                              int sequence = 0) {
    std::vector<int32_t> tokens;
    while (true) {
      tokens.push_back(
          static_cast<int32_t>(std::max_element(last.begin(), last.end()) - last.begin()));
      if (rows != nullptr) rows->push_back(last);
      if (tokens.size() == count) return tokens;
      last = step({{sequence, std::span(&tokens.back(), 1)}})[0];
    }
  }

  KvStore& kv() { return *kv_; }

 private:
  struct Sequence {
    int32_t length = 0;
    std::vector<int32_t> pages;
  };
  Sequence& sequence(int i) {
    if (sequences_.size() <= static_cast<size_t>(i)) sequences_.resize(static_cast<size_t>(i) + 1);
    return sequences_[static_cast<size_t>(i)];
  }

  Model& model_;
  int page_size_;
  std::unique_ptr<KvStore> kv_;
  std::vector<std::vector<int32_t>> free_;  // pages of each group
  std::vector<Sequence> sequences_;
};

}  // namespace capstan::model
