// Executes linear(): cuts rows in chunks, prepares activations, hands panels to threads.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "kernels/linear_internal.h"
#include "platform/cpu.h"

namespace capstan::kernels {

namespace {

// Rows whose activations are prepared together. Bounds the scratch memory, and lets the
// accumulators of a panel (64 bytes a row) stay in L1 beside a decoded piece of weights.
constexpr int64_t kChunkRows = 256;

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
  AlignedBuffer int8, paired, acc;
};
Scratch& thread_scratch() {
  static thread_local Scratch s;
  return s;
}

class Product {
 public:
  Product(const LinearKernels& kernels, const LinearArgs& args, const PanelWeight& weight)
      : kernels_(kernels), args_(args), weight_(weight), blocks_((weight.k_ + 31) / 32) {
    for (const Segment& s : weight.segments) {
      for (int p = 0; p < s.panels; ++p) {
        x_forms_ |= kernels.x_form(s.dtypes[static_cast<size_t>(p)], weight.quantise_activations);
      }
    }
    const int64_t rows = std::min(args.x.rows, kChunkRows);
    if ((x_forms_ & kXInt8) != 0) shared_int8_ = scratch(thread_scratch().int8, record_bytes(rows));
    if ((x_forms_ & kXPaired) != 0)
      shared_paired_ = scratch(thread_scratch().paired, record_bytes(rows));
  }

  void work(int thread, platform::ThreadPool& pool) const {
    const int threads = pool.size();
    const bool quantised = (x_forms_ & (kXInt8 | kXPaired)) != 0;
    for (int64_t row = 0; row < args_.x.rows; row += kChunkRows) {
      const int rows = static_cast<int>(std::min(args_.x.rows - row, kChunkRows));
      XChunk x{args_.x.row(row), args_.x.stride, shared_int8_, shared_paired_};
      if (quantised && args_.x.rows == 1) {
        // One row takes about as long as a barrier, and lands in this core's own L1.
        prepare_own(x);
      } else if (quantised) {
        if (row != 0) pool.barrier();  // everybody has finished with the previous chunk
        prepare_share(x, rows, thread, threads);
        pool.barrier();
      }
      multiply(x, row, rows, thread, threads);
    }
  }

 private:
  size_t record_bytes(int64_t rows) const { return static_cast<size_t>(rows * blocks_ * kXRecord); }

  void prepare_own(XChunk& x) const {
    Scratch& mine = thread_scratch();
    if (x.int8 != nullptr) {
      std::byte* out = scratch(mine.int8, record_bytes(1));
      kernels_.quantise_int8(x.f32, x.stride, weight_.k_, 1, out);
      x.int8 = out;
    }
    if (x.paired != nullptr) {
      std::byte* out = scratch(mine.paired, record_bytes(1));
      kernels_.quantise_paired(x.f32, x.stride, weight_.k_, 1, out);
      x.paired = out;
    }
  }

  void prepare_share(const XChunk& x, int rows, int thread, int threads) const {
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    for (int64_t t = tiles * thread / threads; t < tiles * (thread + 1) / threads; ++t) {
      const int64_t first = t * kTileRows;
      const int height = static_cast<int>(std::min<int64_t>(kTileRows, rows - first));
      const float* source = x.f32 + first * x.stride;
      if (x.int8 != nullptr) {
        kernels_.quantise_int8(source, x.stride, weight_.k_, height,
                               shared_int8_ + record_bytes(first));
      }
      if (x.paired != nullptr) {
        kernels_.quantise_paired(source, x.stride, weight_.k_, height,
                                 shared_paired_ + record_bytes(first));
      }
    }
  }

  // This thread's contiguous share of the groups, equal to within one panel.
  void multiply(const XChunk& x, int64_t row, int rows, int thread, int threads) const {
    float* acc = reinterpret_cast<float*>(
        scratch(thread_scratch().acc, sizeof(float) * kPanelColumns * 2 * kChunkRows));
    int64_t begin = weight_.groups * thread / threads;
    int64_t end = weight_.groups * (thread + 1) / threads;
    for (const Segment& s : weight_.segments) {
      for (int64_t g = std::max<int64_t>(begin, 0); g < std::min(end, s.groups); ++g)
        group(s, g, x, row, rows, acc);
      begin -= s.groups;
      end -= s.groups;
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
  int64_t blocks_;
  unsigned x_forms_ = 0;
  std::byte* shared_int8_ = nullptr;
  std::byte* shared_paired_ = nullptr;
};

}  // namespace

void run_linear_panels(const LinearKernels& kernels, const LinearArgs& args,
                       platform::ThreadPool& pool) {
  const auto* weight = static_cast<const PanelWeight*>(args.weight);
  if (args.epilogue == Epilogue::kSwiGlu && !weight->swiglu_pair)
    die("kSwiGlu needs a weight packed as a gate/up pair");
  const Product product(kernels, args, *weight);
  pool.run([&](int thread) { product.work(thread, pool); });
}

const LinearKernels& linear_kernels(Isa isa) {
  // The layout is the same, and AVX2 is what a CPU without VNNI is fastest with.
  return isa == Isa::kAvx512 && platform::isa_support().avx512_vnni ? avx512_linear_kernels()
                                                                    : avx2_linear_kernels();
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
