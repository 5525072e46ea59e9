#include "engine/null_model.h"

#include <cstring>
#include <string>

namespace capstan::engine {
namespace {

// Finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that mixes all bits.
constexpr uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

constexpr uint64_t extend(uint64_t prefix, int32_t token) {
  return mix(prefix * 0x9E3779B97F4A7C15u + static_cast<uint32_t>(token) + 1);
}

/// The eight bytes of key memory (head 0, layer 0) that hold the hash of the prefix ending at
/// `slot`.
std::byte* cell(const kernels::PagedKv& kv, int64_t slot) {
  const int64_t page = slot / kv.page_size, offset = slot % kv.page_size;
  return kv.base + page * kv.page_stride +
         offset * kv.head_dim * static_cast<int64_t>(dtype_bytes(kv.dtype, 1));
}

/// A state as a row of four floats, 16 bits each, which is exact.
void write_state(uint64_t state, float* row) {
  for (int i = 0; i < 4; ++i) row[i] = static_cast<float>((state >> (16 * i)) & 0xFFFF);
}
uint64_t read_state(const float* row) {
  uint64_t state = 0;
  for (int i = 0; i < 4; ++i) state |= static_cast<uint64_t>(row[i]) << (16 * i);
  return state;
}

}  // namespace

NullModel::NullModel(NullModelOptions options) : options_(std::move(options)) {
  config_.architecture_name = "NullModel";
  config_.model_type = "null";
  config_.hidden_size = 4;
  config_.num_layers = 1;
  config_.num_heads = 1;
  config_.num_kv_heads = 1;
  config_.head_dim = 4;  // 4 elements of 2 bytes hold one hash
  config_.vocab_size = options_.vocab_size;
  config_.max_position_embeddings = options_.max_position_embeddings;
  config_.eos_token_ids = options_.eos_token_ids;
  config_.rope.dim = 4;
  config_.weight_dtype = DType::kF16;
}

void NullModel::fill_row(uint64_t state, float* row) const {
  const float scale = options_.logit_range * 0x1.0p-24f;
  for (int64_t v = 0; v < config_.vocab_size; ++v) {
    const uint64_t bits = mix(state + static_cast<uint64_t>(v) * 0x9E3779B97F4A7C15u);
    row[v] = static_cast<float>(bits >> 40) * scale;
  }
}

Status NullModel::forward(const model::ForwardBatch& batch, model::KvStore& kv, MatrixView logits) {
  if (options_.before_forward) CAPSTAN_RETURN_IF_ERROR(options_.before_forward(batch));
  const kernels::PagedKv memory = kv.layer(0);
  size_t next_logit = 0, next_hidden = 0;
  for (const kernels::SequenceSlice& sequence : batch.sequences) {
    const int32_t start = sequence.kv_len - sequence.q_len;
    uint64_t state = options_.seed;
    if (start > 0) {
      const int64_t slot =
          static_cast<int64_t>(sequence.pages[(start - 1) / memory.page_size]) * memory.page_size +
          (start - 1) % memory.page_size;
      std::memcpy(&state, cell(memory, slot), sizeof(state));
    }
    for (int32_t i = 0; i < sequence.q_len; ++i) {
      const auto row = static_cast<size_t>(sequence.q_begin + i);
      if (batch.positions[row] != start + i) {
        return internal_error("row " + std::to_string(row) + " is at position " +
                              std::to_string(batch.positions[row]) + ", expected " +
                              std::to_string(start + i));
      }
      state = extend(state, batch.tokens[row]);
      std::memcpy(cell(memory, batch.slots[row]), &state, sizeof(state));
      if (next_hidden < batch.hidden_rows.size() &&
          static_cast<size_t>(batch.hidden_rows[next_hidden]) == row) {
        write_state(state, batch.hidden_states.row(static_cast<int64_t>(next_hidden++)));
      }
      if (next_logit < batch.logit_rows.size() &&
          static_cast<size_t>(batch.logit_rows[next_logit]) == row) {
        fill_row(state, logits.row(static_cast<int64_t>(next_logit)));
        ++next_logit;
      }
    }
  }
  if (next_logit != batch.logit_rows.size()) {
    return internal_error("logit_rows is not an ascending list of rows of the batch");
  }
  if (options_.after_forward) options_.after_forward(batch, logits);
  return {};
}

Status NullModel::Draft::forward(const model::DraftBatch& batch, model::KvStore& kv,
                                 MatrixView logits) {
  const kernels::PagedKv memory = kv.layer(1);
  size_t wanted = 0;
  for (const kernels::SequenceSlice& sequence : batch.sequences) {
    for (int32_t i = 0; i < sequence.q_len; ++i) {
      const auto row = static_cast<size_t>(sequence.q_begin + i);
      const int32_t position = batch.positions[row];
      const int64_t slot = int64_t{sequence.pages[position / memory.page_size]} * memory.page_size +
                           position % memory.page_size;
      if (position != sequence.kv_len - sequence.q_len + i || slot != batch.slots[row]) {
        return internal_error("draft row " + std::to_string(row) + " is at position " +
                              std::to_string(position) + ", slot " +
                              std::to_string(batch.slots[row]));
      }
      const uint64_t before = read_state(batch.previous.row(static_cast<int64_t>(row)));
      uint64_t state = extend(before, batch.tokens[row]);
      if (position > 0) {
        const int64_t last =
            int64_t{sequence.pages[(position - 1) / memory.page_size]} * memory.page_size +
            (position - 1) % memory.page_size;
        uint64_t stored = 0;
        std::memcpy(&stored, cell(memory, last), sizeof(stored));
        if (stored != before) state = mix(state);  // a gap in the cache: a wrong guess
      }
      std::memcpy(cell(memory, slot), &state, sizeof(state));
      if (wanted < batch.logit_rows.size() &&
          static_cast<size_t>(batch.logit_rows[wanted]) == row) {
        model_.fill_row(state, logits.row(static_cast<int64_t>(wanted)));
        write_state(state, batch.hidden_states.row(static_cast<int64_t>(wanted)));
        ++wanted;
      }
    }
  }
  if (wanted != batch.logit_rows.size()) {
    return internal_error("logit_rows is not an ascending list of rows of the draft batch");
  }
  if (model_.options_.after_draft) model_.options_.after_draft(batch, logits);
  return {};
}

std::vector<float> NullModel::expected_logits(std::span<const int32_t> tokens) const {
  uint64_t state = options_.seed;
  for (int32_t token : tokens) state = extend(state, token);
  std::vector<float> row(static_cast<size_t>(config_.vocab_size));
  fill_row(state, row.data());
  return row;
}

}  // namespace capstan::engine
