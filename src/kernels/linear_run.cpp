// Executes linear(): cuts rows in chunks, prepares activations, hands panels to threads.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "kernels/dot_choice.h"
#include "kernels/linear_internal.h"
#include "kernels/prepared_rows.h"
#include "kernels/work_shares.h"
#include "platform/cpu.h"

namespace capstan::kernels {

namespace {

// Rows whose activations are prepared together. Bounds the scratch memory, and lets the
// accumulators of a panel (64 bytes a row) stay in L1 beside a decoded piece of weights.
constexpr int64_t kChunkRows = 256;
// Tile products outrun L3: for them records of a chunk should stay in half of an L2 of 2 MiB,
// though weights are read more often. Two Emerald Rapids threads, 512 rows of Q4_0, k = 8960: 300
// GMAC/s with 256 rows a chunk, 330 to 380 with 64.
constexpr int64_t kTallChunkBytes = 1 << 20;
constexpr int64_t kFewestChunkRows = 64;
int64_t chunk_rows(const LinearKernels& kernels, unsigned forms, int64_t k) {
  if ((forms & kernels.tall_forms) == 0) return kChunkRows;
  const int64_t row_bytes = (forms & kXInt8) != 0 ? k / 32 * kXRecord : k / 256 * kXSuperRecord;
  const int64_t rows = kTallChunkBytes / row_bytes / kTallRows * kTallRows;
  return std::clamp(rows, kFewestChunkRows, kChunkRows);
}

// Groups of panels that a thread takes from its share at once, at most: what others may wait for.
constexpr int64_t kMostGroups = 4;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "linear: %s\n", what);
  std::abort();
}

void check_args(const LinearArgs& args) {
  if (args.weight == nullptr) die("no weight");
  if (args.x.cols != args.weight->k()) die("x has another width than the weight");
  if (args.y.rows != args.x.rows) die("x and y differ in rows");
  const bool swiglu = args.epilogue == Epilogue::kSwiGlu;
  if (args.y.cols != (swiglu ? args.weight->n() / 2 : args.weight->n()))
    die("y has another width than the weight's outputs");
}

/// Memory that only grows; what one thread needs between two products.
std::byte* scratch(AlignedBuffer& buffer, size_t bytes) {
  if (buffer.bytes() < bytes) buffer = AlignedBuffer(bytes + bytes / 4);
  return buffer.data();
}

struct Scratch {
  PreparedRows rows;
  AlignedBuffer acc;
  WorkShares shares{WorkShares::Order::kAscending};
};
Scratch& thread_scratch() {
  static thread_local Scratch s;
  return s;
}

class Product {
 public:
  Product(const LinearKernels& kernels, const LinearArgs& args, const PanelWeight& weight,
          int threads)
      : kernels_(kernels),
        args_(args),
        weight_(weight),
        threads_(threads),
        shared_(thread_scratch().rows),
        shares_(thread_scratch().shares),
        piece_(std::clamp<int64_t>(weight.groups / threads / 8, 1, kMostGroups)) {
    for (const Segment& s : weight.segments)
      x_forms_ |= forms_of(kernels, s, weight.quantise_activations);
    chunk_rows_ = chunk_rows(kernels, x_forms_, weight.k_);
    shared_.reserve(x_forms_, std::min(args.x.rows, chunk_rows_), weight.k_);
    shares_.share(weight.groups, threads);
  }

  void work(int thread, platform::ThreadPool& pool) const {
    const bool convert = needs_conversion(x_forms_);
    for (int64_t row = 0; row < args_.x.rows; row += chunk_rows_) {
      const int rows = static_cast<int>(std::min(args_.x.rows - row, chunk_rows_));
      const float* x = args_.x.row(row);
      if (convert && args_.x.rows == 1) {
        // One row takes about as long as a barrier, and lands in this core's own L1.
        PreparedRows& mine = thread_scratch().rows;
        mine.reserve(x_forms_, 1, weight_.k_);
        mine.convert_all(kernels_, x, args_.x.stride, 1);
        multiply(mine.view(x, args_.x.stride, 0), row, rows, thread);
        continue;
      }
      if (row != 0) {
        pool.barrier();  // everybody has finished with the previous chunk
        shares_.set_part(thread, weight_.groups);
      }
      if (convert)
        shared_.convert(kernels_, x, args_.x.stride, 0, rows, int64_t{rows} * thread / threads_,
                        int64_t{rows} * (thread + 1) / threads_);
      if (convert || row != 0) pool.barrier();
      multiply(shared_.view(x, args_.x.stride, 0), row, rows, thread);
    }
  }

 private:
  void multiply(const XChunk& x, int64_t row, int rows, int thread) const {
    float* acc = reinterpret_cast<float*>(
        scratch(thread_scratch().acc, sizeof(float) * kPanelColumns * 2 * kChunkRows));
    for (WorkShares::Range r; !(r = shares_.take(thread, piece_)).empty();) {
      for (int64_t g = r.begin; g < r.end; ++g) {
        int64_t i = g;
        auto s = weight_.segments.begin();
        for (; i >= s->groups; ++s) i -= s->groups;
        group(*s, i, x, row, rows, acc);
      }
    }
  }

  void group(const Segment& s, int64_t g, const XChunk& x, int64_t row, int rows,
             float* acc) const {
    const std::byte* panel = s.data + static_cast<size_t>(g) * s.group_bytes();
    float* part_acc[2] = {acc, acc + static_cast<ptrdiff_t>(rows) * kPanelColumns};
    for (int p = 0; p < s.panels; ++p) {
      const auto i = static_cast<size_t>(p);
      kernels_.panel(s.dtypes[i], weight_.quantise_activations)(panel, weight_.k_, x, rows,
                                                                part_acc[p]);
      panel += s.panel_bytes[i];
    }
    const int64_t first = g * kPanelColumns;
    const int columns = static_cast<int>(std::min<int64_t>(kPanelColumns, s.n - first));
    const float* bias = s.bias.empty() ? nullptr : s.bias.data() + first;
    const float* bias2 = s.bias.empty() ? nullptr : bias + s.groups * kPanelColumns;
    float* y = args_.y.row(row) + s.column + first;
    if (args_.epilogue == Epilogue::kSwiGlu) {
      kernels_.store_swiglu(part_acc[0], part_acc[1], bias, bias2, rows, columns, y,
                            args_.y.stride);
      return;
    }
    const bool add = args_.epilogue == Epilogue::kAdd;
    kernels_.store(part_acc[0], bias, rows, columns, add, y, args_.y.stride);
    if (s.panels == 2)
      kernels_.store(part_acc[1], bias2, rows, columns, add, y + s.n, args_.y.stride);
  }

  const LinearKernels& kernels_;
  const LinearArgs& args_;
  const PanelWeight& weight_;
  const int threads_;
  PreparedRows& shared_;
  WorkShares& shares_;
  const int64_t piece_;
  unsigned x_forms_ = 0;
  int64_t chunk_rows_ = kChunkRows;
};

}  // namespace

void run_linear_panels(const LinearKernels& kernels, const LinearArgs& args,
                       platform::ThreadPool& pool) {
  const auto* weight = static_cast<const PanelWeight*>(args.weight);
  if (args.epilogue == Epilogue::kSwiGlu && !weight->swiglu_pair)
    die("kSwiGlu needs a weight packed as a gate/up pair");
  const Product product(kernels, args, *weight, pool.size());
  pool.run([&](int thread) { product.work(thread, pool); });
}

const LinearKernels& linear_kernels(Isa isa) {
  // The layout is the same, and AVX2 is what a CPU without VNNI is fastest with.
  const platform::IsaSupport& cpu = platform::isa_support();
  if (isa != Isa::kAvx512 || !cpu.avx512_vnni) return avx2_linear_kernels();
  return amx_pays() ? amx_linear_kernels() : avx512_linear_kernels();
}

void run_linear(Isa isa, const LinearArgs& args, platform::ThreadPool& pool) {
  check_args(args);
  if (args.x.rows == 0) return;
  if (isa == Isa::kRef) {
    run_linear_ref(args, pool);
  } else {
    run_linear_panels(linear_kernels(isa), args, pool);
  }
}

}  // namespace capstan::kernels
