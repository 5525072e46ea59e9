// Checks of a step before it touches memory.
#include <algorithm>

#include "model/decoder.h"

namespace capstan::model {
namespace {

Error fail(const std::string& what) { return internal_error("forward: " + what); }

Status check_sequences(const ForwardBatch& b, const KvStore& kv) {
  const auto rows = static_cast<int64_t>(b.tokens.size());
  int64_t next = 0;
  for (const kernels::SequenceSlice& s : b.sequences) {
    if (s.q_begin != next || s.q_len <= 0 || s.kv_len < s.q_len || next + s.q_len > rows) {
      return fail("sequence slice at " + std::to_string(s.q_begin) + " of " +
                  std::to_string(s.q_len) + " queries and " + std::to_string(s.kv_len) + " keys");
    }
    for (int32_t i = 0; i < s.q_len; ++i) {
      const int32_t position = b.positions[static_cast<size_t>(s.q_begin + i)];
      if (position != s.kv_len - s.q_len + i) {
        return fail("position " + std::to_string(position) + " of row " +
                    std::to_string(s.q_begin + i) + " does not match its sequence");
      }
    }
    const int64_t pages = (int64_t{s.kv_len} + kv.page_size() - 1) / kv.page_size();
    for (int64_t i = 0; i < pages; ++i) {
      if (s.pages[i] < 0 || s.pages[i] >= kv.num_pages()) {
        return fail("page " + std::to_string(s.pages[i]) + " outside the cache of " +
                    std::to_string(kv.num_pages()));
      }
    }
    next += s.q_len;
  }
  if (next != rows) return fail("rows that belong to no sequence");
  return {};
}

Status check_groups(const ForwardBatch& b, int groups) {
  const auto sequences = static_cast<int32_t>(b.sequences.size());
  if (b.groups.size() != static_cast<size_t>(groups) + 1 || b.groups.front() != 0 ||
      b.groups.back() != sequences || !std::is_sorted(b.groups.begin(), b.groups.end())) {
    return fail(std::to_string(sequences) + " sequences are not divided among the " +
                std::to_string(groups) + " groups of attention");
  }
  return {};
}

/// `wanted`: the matrix must fit; else it may also be without data.
Status check_output(const char* what, std::span<const int32_t> rows, size_t tokens,
                    const MatrixView& out, int64_t width, bool wanted) {
  int32_t last = -1;
  for (const int32_t row : rows) {
    if (row <= last || row >= static_cast<int64_t>(tokens)) {
      return fail(std::string(what) + " row " + std::to_string(row) + " is out of order or range");
    }
    last = row;
  }
  if (!wanted && out.data == nullptr) return {};
  if (!rows.empty() && (out.rows != static_cast<int64_t>(rows.size()) || out.cols != width ||
                        out.stride < out.cols)) {
    return fail(std::string(what) + " matrix is " + std::to_string(out.rows) + " x " +
                std::to_string(out.cols));
  }
  return {};
}

}  // namespace

Status check_batch(const ForwardBatch& b, const ModelConfig& config, const KvStore& kv,
                   const MatrixView& logits, bool first_rank, int groups) {
  const size_t t = b.tokens.size();
  if (t == 0 || b.positions.size() != t || b.slots.size() != t) {
    return fail(std::to_string(t) + " tokens, " + std::to_string(b.positions.size()) +
                " positions, " + std::to_string(b.slots.size()) + " slots");
  }
  const int64_t num_slots = int64_t{kv.num_pages()} * kv.page_size();
  for (size_t i = 0; i < t; ++i) {
    if (b.tokens[i] < 0 || b.tokens[i] >= config.vocab_size) {
      return fail("token id " + std::to_string(b.tokens[i]) + " outside the vocabulary of " +
                  std::to_string(config.vocab_size));
    }
    if (b.slots[i] < 0 || b.slots[i] >= num_slots) {
      return fail("slot " + std::to_string(b.slots[i]) + " outside the cache of " +
                  std::to_string(num_slots));
    }
  }
  CAPSTAN_RETURN_IF_ERROR(check_sequences(b, kv));
  if (groups > 1) CAPSTAN_RETURN_IF_ERROR(check_groups(b, groups));
  // Other ranks than the first do not touch the logits they are given.
  CAPSTAN_RETURN_IF_ERROR(check_output("logit", b.logit_rows, t, first_rank ? logits : MatrixView{},
                                       config.vocab_size, first_rank));
  return check_output("hidden", b.hidden_rows, t, b.hidden_states, config.hidden_size, first_rank);
}

}  // namespace capstan::model
