// The op table: every computation a model needs, written once against this interface.
//
// A backend (CPU here; CUDA later) implements Ops. `ref` is the plain scalar oracle that every
// other implementation is tested against. Activations are float32, row-major.
//
// Batch invariance (a contract, tested): the bits of an output row depend only on that row's inputs
// and on the weights; never on how many other rows are in the call, on the split of a prompt in
// chunks, on the page size or on the number of threads. So reductions run in one fixed order: over
// k in ascending blocks for linear(), over absolute key positions in fixed tiles for attention().
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/result.h"
#include "tensor/tensor.h"

namespace capstan::kernels {

/// A weight matrix [n, k] (perhaps several stacked along n) in the backend's own panel layout.
/// Made by Ops::pack_linear; opaque to models.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  virtual int64_t n() const = 0;     // output features, all parts together
  virtual int64_t k() const = 0;     // input features
  virtual size_t bytes() const = 0;  // memory held; what one decode step must read
};

struct LinearSpec {
  /// Matrices [n_i, k] stacked along n; dtypes may differ (a Q4_K file has some rows in Q6_K).
  std::span<const TensorView> parts;
  /// Optional biases, one float vector [n_i] per part, empty where there is none.
  std::span<const TensorView> biases = {};
  /// Lay out two equal parts (gate, up) so that the kSwiGlu epilogue can fuse them.
  bool swiglu_pair = false;
};

enum class Epilogue : uint8_t {
  kStore,   // y = W x + b
  kAdd,     // y += W x + b             (residual)
  kSwiGlu,  // y = silu(W_gate x) * (W_up x); the weight was packed with swiglu_pair; y has n/2
            // columns
};

struct LinearArgs {
  MatrixView x;  // [t, k]
  const LinearWeight* weight = nullptr;
  MatrixView y;  // [t, n] or [t, n/2]
  Epilogue epilogue = Epilogue::kStore;
};

struct RmsNormArgs {
  MatrixView x;                   // [t, h]
  const float* weight = nullptr;  // [h]
  float eps = 0;
  MatrixView y;  // [t, h]; may alias x
};

struct EmbedArgs {
  std::span<const int32_t> ids;       // [t]
  const TensorView* table = nullptr;  // [vocab, h], any dtype
  MatrixView y;                       // [t, h]
};

/// Paged key/value memory of one layer. Element (page, kv_head, offset, i) of K lies at
///   base + page*page_stride + kv_head*head_stride + offset*head_dim*elem   (bytes)
/// and V at the same place plus value_offset. dtype is F32, F16 or BF16.
struct PagedKv {
  std::byte* base = nullptr;
  DType dtype = DType::kF32;
  int page_size = 0;  // tokens per page
  int kv_heads = 0;
  int head_dim = 0;
  int64_t page_stride = 0;   // bytes
  int64_t head_stride = 0;   // bytes
  int64_t value_offset = 0;  // bytes
};

enum class RopeStyle : uint8_t {
  kHalfSplit,    // pair i is (i, i + d/2): Hugging Face Llama, Qwen
  kInterleaved,  // pair i is (2i, 2i+1): GGUF llama, DeepSeek
};

/// Takes the fused projection, normalises q and k per head (Qwen3), applies RoPE, leaves q in place
/// and writes k and v to their slots in the paged cache.
struct QkvArgs {
  MatrixView qkv;  // [t, (q_heads + 2*kv_heads) * head_dim]
  int q_heads = 0;
  PagedKv kv;                     // destination; gives kv_heads, head_dim
  const float* q_norm = nullptr;  // [head_dim] or null
  const float* k_norm = nullptr;
  float norm_eps = 0;
  RopeStyle rope = RopeStyle::kHalfSplit;
  const float* cos = nullptr;  // [t, rope_dim/2]
  const float* sin = nullptr;
  int rope_dim = 0;                // <= head_dim; elements beyond are not rotated
  std::span<const int64_t> slots;  // [t]: page * page_size + offset
};

/// One sequence's share of a batch: query rows [q_begin, q_begin+q_len) are positions
/// [kv_len - q_len, kv_len) of the sequence; its keys are all positions below kv_len (causal).
struct SequenceSlice {
  int32_t q_begin = 0;
  int32_t q_len = 0;
  int32_t kv_len = 0;
  const int32_t* pages = nullptr;  // ceil(kv_len / page_size) page numbers
};

struct AttentionArgs {
  MatrixView q;     // [t, >= q_heads*head_dim], after RoPE
  int q_heads = 0;  // multiple of kv.kv_heads
  PagedKv kv;
  float scale = 0;  // head_dim^-0.5
  std::span<const SequenceSlice> sequences;
  MatrixView out;  // [t, q_heads*head_dim]
};

class Ops {
 public:
  virtual ~Ops() = default;
  virtual std::string_view name() const = 0;

  /// Copies weights into panels. Refuses shapes that do not fit the format, naming the tensor.
  /// Safe to call from several threads at once.
  virtual Result<std::unique_ptr<LinearWeight>> pack_linear(const LinearSpec& spec) = 0;

  virtual void embed(const EmbedArgs& args) = 0;
  virtual void rms_norm(const RmsNormArgs& args) = 0;
  virtual void linear(const LinearArgs& args) = 0;
  virtual void qkv_rope_store(const QkvArgs& args) = 0;
  virtual void attention(const AttentionArgs& args) = 0;

  /// Bracket a step: threads spin inside, sleep outside.
  virtual void begin_step() {}
  virtual void end_step() {}
};

}  // namespace capstan::kernels
