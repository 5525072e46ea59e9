// One step in flight: what the parts of a layer share, and the memory for activations.
#pragma once

#include <algorithm>
#include <cstring>

#include "model/config.h"
#include "model/expert_load.h"
#include "model/model.h"
#include "model/ranks.h"

namespace capstan::model {

/// Widths of activations that follow from the weights which a rank holds.
struct Widths {
  int64_t attention = 0;  // into the output projection
  int64_t ffn = 0;        // inside a dense or shared FFN
  int64_t vocabulary = 0;
};

/// Activations of one step, [rows, ...] each. Grows to the largest step seen and is reused.
struct Workspace {
  int64_t rows = 0;
  AlignedBuffer x, normed;    // [hidden]
  AlignedBuffer projected;    // q, k, v; or the fused first product of latent attention
  AlignedBuffer q;            // of latent attention with a query rank
  AlignedBuffer attention;    // heads' outputs, between zeros where o was cut inside a block
  AlignedBuffer hidden;       // inside an FFN
  AlignedBuffer router;       // [experts]
  AlignedBuffer expert_ids;   // [top_k] int32
  AlignedBuffer expert_gain;  // [top_k]
  AlignedBuffer pair;         // [2 * hidden], multi-token prediction
  AlignedBuffer cos, sin;
  AlignedBuffer logits;  // [rows with logits, the rank's part of the vocabulary]

  /// Room for `rows` rows; may throw std::bad_alloc. `config`: the rank's.
  void reserve(const ModelConfig& config, const Widths& widths, bool draft, int64_t rows);
};

/// Widths of activations that depend on the kind of attention; `config` is the rank's.
int64_t projected_width(const ModelConfig& config);
int64_t attention_width(const ModelConfig& config);

/// Rows that a rank attends for, behind each other.
struct OwnRows {
  int64_t first = 0, count = 0;
};

struct Step {
  const ModelConfig& config;  // the rank's
  kernels::Ops& ops;
  Ranks& ranks;
  Workspace& work;
  const ForwardBatch& batch;  // of the rank's own rows: its sequences begin at row 0
  OwnRows own;                // where those stand among all rows of the step
  bool first_in_group;        // of the ranks that attend for the same rows
  kernels::MlaForm mla_form;
  float eps;  // of every norm

  /// The rank's own.
  int64_t rows() const { return own.count; }
};

inline MatrixView matrix(AlignedBuffer& buffer, int64_t rows, int64_t cols) {
  return {buffer.as<float>(), rows, cols, cols};
}

inline MatrixView rows_of(const MatrixView& m, OwnRows rows) {
  return {m.row(rows.first), rows.count, m.cols, m.stride};
}

/// Columns [begin, begin + cols) of a matrix.
inline MatrixView columns(const MatrixView& m, int64_t begin, int64_t cols) {
  return {m.data + begin, m.rows, cols, m.stride};
}

/// Moves the chosen rows (ascending) to the front. In place, since row i comes from i or later.
inline void keep_rows(AlignedBuffer& buffer, std::span<const int32_t> rows, int64_t cols) {
  auto* data = buffer.as<float>();
  const auto width = static_cast<size_t>(cols);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto from = static_cast<size_t>(rows[i]);
    if (from != i) std::memcpy(data + i * width, data + from * width, width * sizeof(float));
  }
}

}  // namespace capstan::model
