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
  /// Block scales of F8_E4M3 parts, one per part: F32 (or BF16) [ceil(n_i/128), ceil(k/128)], a
  /// weight is its code times the scale of its 128 x 128 block. A view without data for parts of
  /// other types. Activations of such parts stay float32. NaN codes (0x7F, 0xFF) are refused.
  std::span<const TensorView> scales = {};
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
/// and V at the same place plus value_offset. dtype is F32, F16 or BF16; the latent cache of MLA
/// may also be F8_E4M3 (one byte an element, no scale: see MlaStoreArgs).
struct PagedKv {
  std::byte* base = nullptr;
  DType dtype = DType::kF32;
  int page_size = 0;  // tokens per page
  int kv_heads = 0;
  int head_dim = 0;
  int64_t page_stride = 0;   // bytes
  int64_t head_stride = 0;   // bytes
  int64_t value_offset = 0;  // bytes
  /// Elements of a value row; 0: head_dim. MLA's values are the first value_dim of the key row
  /// itself (value_offset 0); only the mla_ ops read it.
  int value_dim = 0;
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

/// Multi-head latent attention (DeepSeek-V2, V3). The cache keeps one row a token, shared by all
/// heads: the normed latent c [rank], then the roped key kr [rope_dim]:
///   PagedKv{kv_heads 1, head_dim rank + rope_dim, value_offset 0, value_dim rank}.
struct MlaShape {
  int heads = 0;
  int nope_dim = 0;   // of q and k, per head, without position
  int rope_dim = 0;   // even
  int value_dim = 0;  // of v, per head
  int rank = 0;       // of the latent

  int query_dim() const { return nope_dim + rope_dim; }
  int cache_dim() const { return rank + rope_dim; }
};

/// Normalises the latent, applies RoPE to each head's query tail (in place) and to the shared key,
/// and writes the row [RMSNorm(kv[:rank]) | RoPE(kv[rank:])] to its slot. kv is left as it is.
///
/// F8_E4M3 rows are rounded to nearest even and saturate at +-448 (normed latents and roped keys
/// are of order one to ten). What a rounded cache costs in the attention output, against float32,
/// as cosdiff 1 - 2xy/(xx + yy), random data of V2-Lite's sizes over 1,000 keys: F16 6e-8, BF16
/// 3e-6, F8_E4M3 9e-4 (4% of the output's norm; tested).
struct MlaStoreArgs {
  MlaShape shape;
  MatrixView q;                 // [t, heads * query_dim]
  MatrixView kv;                // [t, rank + rope_dim], output of kv_a_proj_with_mqa
  const float* norm = nullptr;  // kv_a_layernorm [rank]
  float eps = 0;
  RopeStyle rope = RopeStyle::kInterleaved;
  const float* cos = nullptr;  // [t, rope_dim/2]
  const float* sin = nullptr;
  PagedKv cache;
  std::span<const int64_t> slots;  // [t]: page * page_size + offset
};

/// kv_b_proj in the backend's own layout: per head the key rows K_h [nope_dim, rank] and the value
/// rows V_h [value_dim, rank]. Made by Ops::pack_mla; opaque to models.
class MlaProjection {
 public:
  virtual ~MlaProjection() = default;
  virtual size_t bytes() const = 0;  // memory held; what one decode step must read
};

/// Either kv_b (Hugging Face, older GGUF) or the pair k_b and v_b (newer GGUF); the others empty
/// (data null).
struct MlaProjectionSpec {
  MlaShape shape;
  /// [heads * (nope_dim + value_dim), rank], each head's K rows before its V rows.
  TensorView kv_b;
  /// Of an F8_E4M3 kv_b: float32 [ceil(n/128), ceil(rank/128)].
  TensorView kv_b_scale;
  TensorView k_b;  // [heads, rank, nope_dim]: K_h transposed
  TensorView v_b;  // [heads, value_dim, rank]
};

/// Two ways to the same result (within 1e-5 of the largest output).
enum class MlaForm : uint8_t {
  kAuto,      // per sequence, whichever is faster by measured costs
  kNaive,     // expands the latents to keys and values of every head: long prompts
  kAbsorbed,  // folds K_h in the query and V_h in the output: decode, short extends
};

/// out_h = sum_t softmax_t(scale * (qn_h . K_h c_t + qr_h . kr_t)) V_h c_t over the keys a row
/// sees. Bits of a row depend on its inputs and the form alone; kAuto chooses by q_len and kv_len,
/// so with it they may depend on how a prompt is cut in chunks (and on nothing else).
struct MlaAttentionArgs {
  MlaShape shape;
  MatrixView q;  // [t, heads * query_dim], after mla_store
  PagedKv cache;
  const MlaProjection* projection = nullptr;
  float scale = 0;  // query_dim^-0.5 * m^2 (YaRN)
  MlaForm form = MlaForm::kAuto;
  std::span<const SequenceSlice> sequences;
  MatrixView out;  // [t, heads * value_dim]
};

enum class ExpertScoring : uint8_t { kSoftmax, kSigmoid };

/// How a mixture-of-experts layer chooses experts. check_router() (kernels/router.h) says whether
/// the numbers fit each other.
struct RouterSpec {
  ExpertScoring scoring = ExpertScoring::kSoftmax;
  int experts = 0;
  int top_k = 0;
  /// Experts are chosen among the `groups_kept` best of `groups` equal, contiguous groups.
  int groups = 1;
  int groups_kept = 1;
  bool group_top2_sum = false;  // group score: sum of its two largest (V3), or its maximum (V2)
  /// Scores of experts in other groups become 0 (V2 group_limited_greedy) instead of -inf (V3).
  bool mask_with_zero = false;
  bool normalise = false;     // divide weights by their sum + 1e-20 (norm_topk_prob)
  float scale = 1;            // routed_scaling_factor
  bool scale_always = false;  // V3: multiply always; V2: only when not normalised
  /// [experts] or null; added to the scores for choosing, never to the weights.
  const float* bias = nullptr;
};

/// Chooses experts row by row. Ties go to the lowest index, of groups and of experts. Whatever the
/// logits, the experts are valid and distinct; a NaN logit loses to every number.
struct RouteArgs {
  MatrixView logits;  // [t, experts], float32 products
  const RouterSpec* router = nullptr;
  int32_t* experts = nullptr;  // [t, top_k], in order of choice
  float* weights = nullptr;    // [t, top_k]
};

/// y += sum_j weights[t,j] * down_e( silu(gate_e x) * up_e x ) with e = experts[t,j].
///
/// Rows are grouped by expert, so a weight is decoded once per tile of rows, and weights of experts
/// that nobody chose are not read. The sum over j runs in ascending expert number: bits of a row
/// depend neither on the batch nor on threads.
struct ExpertsArgs {
  MatrixView x;                      // [t, k]
  const int32_t* experts = nullptr;  // [t, top_k]; negative: no expert
  const float* weights = nullptr;    // [t, top_k]
  int top_k = 0;
  /// Per expert: [gate; up] packed with swiglu_pair, [2*m, k]; and [h, m]. Null where the expert is
  /// not held here (another rank's): its share of the sum is left out.
  std::span<const LinearWeight* const> gate_up;
  std::span<const LinearWeight* const> down;
  MatrixView y;  // [t, h]; must not overlap x
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
  virtual void route(const RouteArgs& args) = 0;
  virtual void experts(const ExpertsArgs& args) = 0;

  /// Lays kv_b out for mla_attention. Refuses shapes and dtypes that do not fit, naming the tensor.
  /// Safe to call from several threads at once.
  virtual Result<std::unique_ptr<MlaProjection>> pack_mla(const MlaProjectionSpec& spec) = 0;
  virtual void mla_store(const MlaStoreArgs& args) = 0;
  virtual void mla_attention(const MlaAttentionArgs& args) = 0;

  /// Bracket a step: threads spin inside, sleep outside.
  virtual void begin_step() {}
  virtual void end_step() {}
};

}  // namespace capstan::kernels
