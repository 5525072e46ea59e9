#include "kernels/experts.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace capstan::kernels {

namespace {

// Rows of one expert that are multiplied together; as in linear_run.cpp, their accumulators stay in
// L1 beside a decoded piece of weights.
constexpr int64_t kChunkRows = 256;
// Bounds the memory of hidden rows: longer batches go in several rounds of tokens.
constexpr int64_t kHiddenFloats = 16 << 20;
// What reading and decoding a weight costs, in multiply-adds of it.
constexpr int64_t kReadCost = 3;
// Groups of panels that a thread takes from its share at once, at most: what others may wait for.
// More where rows are prepared anew for every piece, as costs about half a group.
constexpr int64_t kMostGroups = 4;
constexpr int64_t kMostGroupsOfLong = 16;
// Of down products: a piece reads the hidden rows of all experts once more.
constexpr int64_t kMostColumnGroups = 16;

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "experts: %s\n", what);
  std::abort();
}

std::byte* grow(AlignedBuffer& buffer, size_t bytes) {
  if (buffer.bytes() < bytes) buffer = AlignedBuffer(bytes + bytes / 4);
  return buffer.data();
}

/// A thread's memory.
struct Scratch {
  AlignedBuffer rows;  // gathered rows of x
  PreparedRows prepared;
  AlignedBuffer acc;
};
Scratch& thread_scratch() {
  static thread_local Scratch s;
  return s;
}

void check(const ExpertsArgs& args, const PanelWeight& gate_up, const PanelWeight& down) {
  if (!gate_up.swiglu_pair || gate_up.segments.size() != 1)
    die("gate_up was not packed as one gate/up pair");
  if (down.segments.size() != 1 || down.segments[0].panels != 1) die("down has several parts");
  if (gate_up.k_ != args.x.cols) die("x has another width than the experts");
  if (down.k_ != gate_up.n_ / 2) die("gate_up and down do not fit each other");
  if (down.n_ != args.y.cols) die("y has another width than the experts' outputs");
}

}  // namespace

void ExpertsPlan::sort_by_expert(const ExpertsArgs& args) {
  const auto experts = args.gate_up.size();
  const int64_t n = args.x.rows * args.top_k;
  starts_.assign(experts + 1, 0);
  const auto held = [&](int64_t i) {
    const int32_t e = args.experts[i];
    if (e >= static_cast<int64_t>(experts)) die("an expert's number is too large");
    return e >= 0 && args.gate_up[static_cast<size_t>(e)] != nullptr;
  };
  for (int64_t i = 0; i < n; ++i) {
    if (held(i)) ++starts_[static_cast<size_t>(args.experts[i]) + 1];
  }
  for (size_t e = 0; e < experts; ++e) starts_[e + 1] += starts_[e];
  uses_.resize(static_cast<size_t>(starts_[experts]));

  chosen_.clear();
  cost_ = groups_ = 0;
  for (size_t e = 0; e < experts; ++e) {
    const int64_t rows = starts_[e + 1] - starts_[e];
    if (rows == 0) continue;
    const auto* gate_up = static_cast<const PanelWeight*>(args.gate_up[e]);
    const auto* down = static_cast<const PanelWeight*>(args.down[e]);
    if (down == nullptr) die("an expert has gate_up and no down");
    check(args, *gate_up, *down);
    const int64_t cost = rows + kReadCost;
    chosen_.push_back({gate_up, down, starts_[e], rows, cost, cost_, groups_});
    cost_ += cost * gate_up->groups;
    groups_ += gate_up->groups;
  }
  for (int64_t i = 0; i < n; ++i) {
    if (!held(i)) continue;
    const auto place = static_cast<size_t>(starts_[static_cast<size_t>(args.experts[i])]++);
    uses_[place] = {static_cast<int32_t>(i / args.top_k), args.weights[i]};
  }
}

void ExpertsPlan::share_work(int threads) {
  const int64_t columns = chosen_[0].down->groups;
  // The first group at or behind a cost.
  const auto group_at = [&](int64_t cost) {
    const auto after = std::upper_bound(chosen_.begin(), chosen_.end(), cost,
                                        [](int64_t at, const Chosen& c) { return at < c.begin; });
    const Chosen& c = *(after - 1);
    return c.group + std::min((cost - c.begin + c.cost - 1) / c.cost, c.gate_up->groups);
  };
  gate_up_shares_.set_threads(threads);
  for (int t = 0; t < threads; ++t)
    gate_up_shares_.set(t, group_at(cost_ * t / threads), group_at(cost_ * (t + 1) / threads));
  down_shares_.share(columns, threads);
  const int64_t longest =
      std::max_element(chosen_.begin(), chosen_.end(), [](const Chosen& a, const Chosen& b) {
        return a.rows < b.rows;
      })->rows;
  gate_up_piece_ = std::clamp<int64_t>(groups_ / threads / 8, 1,
                                       longest > kChunkRows ? kMostGroupsOfLong : kMostGroups);
  down_piece_ = std::clamp<int64_t>(columns / threads / 4, 1, kMostColumnGroups);
}

void ExpertsPlan::gate_up(const LinearKernels& kernels, const ExpertsArgs& args, int thread) {
  GatheredRows rows;
  for (WorkShares::Range r; !(r = gate_up_shares_.take(thread, gate_up_piece_)).empty();) {
    while (r.begin < r.end) {
      const auto after = std::upper_bound(chosen_.begin(), chosen_.end(), r.begin,
                                          [](int64_t at, const Chosen& c) { return at < c.group; });
      const Chosen& c = *(after - 1);
      const int64_t end = std::min(r.end, c.group + c.gate_up->groups);
      gate_up_groups(kernels, args, c, r.begin - c.group, end - c.group, rows);
      r.begin = end;
    }
  }
}

void ExpertsPlan::gather(const LinearKernels& kernels, const ExpertsArgs& args, const Chosen& c,
                         int64_t done, GatheredRows& rows) const {
  if (rows.chosen == &c && rows.done == done) return;
  Scratch& mine = thread_scratch();
  const PanelWeight& weight = *c.gate_up;
  const int64_t k = weight.k_;
  const int n = static_cast<int>(std::min(c.rows - done, kChunkRows));
  const ExpertUse* uses = uses_.data() + c.first + done;
  const float* x = args.x.row(uses[0].token);
  int64_t stride = args.x.stride;
  if (n > 1) {
    auto* gathered =
        reinterpret_cast<float*>(grow(mine.rows, static_cast<size_t>(n * k) * sizeof(float)));
    for (int r = 0; r < n; ++r)
      std::memcpy(gathered + r * k, args.x.row(uses[r].token), static_cast<size_t>(k) * 4);
    x = gathered;
    stride = k;
  }
  const unsigned forms = forms_of(kernels, weight.segments[0], weight.quantise_activations);
  mine.prepared.reserve(forms, n, k);
  mine.prepared.convert_all(kernels, x, stride, n);
  rows = {&c, done, mine.prepared.view(x, stride, 0)};
}

void ExpertsPlan::gate_up_groups(const LinearKernels& kernels, const ExpertsArgs& args,
                                 const Chosen& c, int64_t first_group, int64_t end_group,
                                 GatheredRows& gathered) {
  Scratch& mine = thread_scratch();
  const PanelWeight& weight = *c.gate_up;
  const Segment& s = weight.segments[0];
  const int64_t k = weight.k_;
  for (int64_t done = 0; done < c.rows; done += kChunkRows) {
    const int rows = static_cast<int>(std::min(c.rows - done, kChunkRows));
    gather(kernels, args, c, done, gathered);
    const XChunk& chunk = gathered.x;

    auto* acc = reinterpret_cast<float*>(
        grow(mine.acc, static_cast<size_t>(2 * rows * kPanelColumns) * sizeof(float)));
    float* acc2 = acc + static_cast<ptrdiff_t>(rows) * kPanelColumns;
    const auto gate_kernel = kernels.panel(s.dtypes[0], weight.quantise_activations);
    const auto up_kernel = kernels.panel(s.dtypes[1], weight.quantise_activations);
    for (int64_t g = first_group; g < end_group; ++g) {
      const std::byte* panel = s.data + static_cast<size_t>(g) * s.group_bytes();
      gate_kernel(panel, k, chunk, rows, acc);
      up_kernel(panel + s.panel_bytes[0], k, chunk, rows, acc2);
      const int64_t column = g * kPanelColumns;
      const float* bias = s.bias.empty() ? nullptr : s.bias.data() + column;
      kernels.store_swiglu(acc, acc2, bias,
                           bias == nullptr ? nullptr : bias + s.groups * kPanelColumns, rows,
                           static_cast<int>(std::min<int64_t>(kPanelColumns, s.n - column)),
                           hidden_.as<float>() + (c.first + done) * width_ + column, width_);
    }
  }
}

void ExpertsPlan::convert_hidden(const LinearKernels& kernels, int thread, int threads) {
  const auto rows = static_cast<int64_t>(uses_.size());
  const int64_t low = rows * thread / threads, high = rows * (thread + 1) / threads;
  for (const Chosen& c : chosen_) {
    prepared_hidden_.convert(kernels, hidden_.as<float>() + c.first * width_, width_, c.first,
                             c.rows, low - c.first, high - c.first);
  }
}

void ExpertsPlan::down(const LinearKernels& kernels, const ExpertsArgs& args, int thread) {
  for (WorkShares::Range r; !(r = down_shares_.take(thread, down_piece_)).empty();)
    down_columns(kernels, args, r.begin, r.end);
}

void ExpertsPlan::down_columns(const LinearKernels& kernels, const ExpertsArgs& args, int64_t first,
                               int64_t end) const {
  Scratch& mine = thread_scratch();
  for (const Chosen& c : chosen_) {
    const PanelWeight& weight = *c.down;
    const Segment& s = weight.segments[0];
    const auto kernel = kernels.panel(s.dtypes[0], weight.quantise_activations);
    for (int64_t done = 0; done < c.rows; done += kChunkRows) {
      const int rows = static_cast<int>(std::min(c.rows - done, kChunkRows));
      const XChunk chunk = prepared_hidden_.view(hidden_.as<float>() + (c.first + done) * width_,
                                                 width_, c.first + done);
      auto* acc = reinterpret_cast<float*>(
          grow(mine.acc, static_cast<size_t>(rows * kPanelColumns) * sizeof(float)));
      for (int64_t g = first; g < end; ++g) {
        kernel(s.data + static_cast<size_t>(g) * s.group_bytes(), weight.k_, chunk, rows, acc);
        const int64_t column = g * kPanelColumns;
        avx2::add_weighted(
            acc, s.bias.empty() ? nullptr : s.bias.data() + column, uses_.data() + c.first + done,
            rows, static_cast<int>(std::min<int64_t>(kPanelColumns, s.n - column)), args.y, column);
      }
    }
  }
}

void ExpertsPlan::run_tokens(const LinearKernels& kernels, const ExpertsArgs& args,
                             platform::ThreadPool& pool) {
  sort_by_expert(args);
  if (chosen_.empty()) return;
  hidden_forms_ = 0;
  for (const Chosen& c : chosen_)
    hidden_forms_ |= forms_of(kernels, c.down->segments[0], c.down->quantise_activations);
  const auto uses = static_cast<int64_t>(uses_.size());
  grow(hidden_, static_cast<size_t>(uses * width_) * sizeof(float));
  prepared_hidden_.reserve(hidden_forms_, uses, width_);
  const int threads = pool.size();
  share_work(threads);
  pool.run([&](int thread) {
    gate_up(kernels, args, thread);
    pool.barrier();
    if (needs_conversion(hidden_forms_)) {
      convert_hidden(kernels, thread, threads);
      pool.barrier();
    }
    down(kernels, args, thread);
  });
}

void ExpertsPlan::run(const LinearKernels& kernels, const ExpertsArgs& args,
                      platform::ThreadPool& pool) {
  if (args.gate_up.size() != args.down.size()) die("gate_up and down differ in experts");
  if (args.x.rows != args.y.rows) die("x and y differ in rows");
  const auto held = std::find_if(args.gate_up.begin(), args.gate_up.end(),
                                 [](const LinearWeight* w) { return w != nullptr; });
  if (held == args.gate_up.end() || args.top_k <= 0) return;
  width_ = (*held)->n() / 2;
  const int64_t tokens = std::max<int64_t>(1, kHiddenFloats / (width_ * args.top_k));
  for (int64_t t = 0; t < args.x.rows; t += tokens) {
    ExpertsArgs part = args;
    part.x.rows = part.y.rows = std::min(tokens, args.x.rows - t);
    part.x.data = args.x.row(t);
    part.y.data = args.y.row(t);
    part.experts += t * args.top_k;
    part.weights += t * args.top_k;
    run_tokens(kernels, part, pool);
  }
}

}  // namespace capstan::kernels
