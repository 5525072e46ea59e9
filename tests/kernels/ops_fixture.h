// Paged caches with random contents and the kernels that this machine can test.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "kernels/paged_kv.h"
#include "platform/cpu.h"
#include "quant/codecs.h"

namespace capstan::kernels {

/// The AVX-512 sources compiled on SIMDe (tests/kernels/test.cmake).
const CpuKernels& simde_avx512_kernels();

struct KernelsUnderTest {
  std::string name;
  const CpuKernels* kernels;
};

inline std::vector<KernelsUnderTest> kernels_under_test() {
  std::vector<KernelsUnderTest> out;
  if (platform::isa_support().avx2) {
    out.push_back({"avx2", &avx2_kernels()});
    if (!platform::isa_support().avx512_vnni) out.push_back({"simde", &simde_avx512_kernels()});
  }
  if (platform::isa_support().avx512_vnni) out.push_back({"avx512", &avx512_kernels()});
  return out;
}

inline std::vector<float> random_floats(std::mt19937& random, size_t n, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

/// A cache whose pages are handed out in random order; every byte that no token owns is a NaN.
class RandomCache {
 public:
  RandomCache(DType dtype, int page_size, int kv_heads, int head_dim, int tokens, unsigned seed)
      : random_(seed) {
    kv_.dtype = dtype;
    kv_.page_size = page_size;
    kv_.kv_heads = kv_heads;
    kv_.head_dim = head_dim;
    kv_.head_stride = static_cast<int64_t>(dtype_bytes(dtype, int64_t{page_size} * head_dim));
    kv_.value_offset = kv_heads * kv_.head_stride;
    kv_.page_stride = 2 * kv_.value_offset;
    free_.resize(static_cast<size_t>((tokens + page_size - 1) / page_size + 3));
    std::iota(free_.begin(), free_.end(), 0);
    std::shuffle(free_.begin(), free_.end(), random_);
    bytes_ = AlignedBuffer(free_.size() * static_cast<size_t>(kv_.page_stride));
    std::memset(bytes_.data(), 0xff, bytes_.bytes());  // NaN in all three dtypes
    kv_.base = bytes_.data();
  }

  const PagedKv& kv() const { return kv_; }

  std::vector<int32_t> take_pages(int tokens) {
    std::vector<int32_t> pages;
    for (int t = 0; t < tokens; t += kv_.page_size) {
      pages.push_back(free_.back());
      free_.pop_back();
    }
    return pages;
  }

  void put(const std::vector<int32_t>& pages, int position, int head, const float* key,
           const float* value) {
    std::byte* row = key_row_of_position(kv_, pages.data(), position, head);
    (void)quant::quantize_row(kv_.dtype, key, row, kv_.head_dim);
    (void)quant::quantize_row(kv_.dtype, value, row + kv_.value_offset, kv_.head_dim);
  }

 private:
  std::mt19937 random_;
  PagedKv kv_;
  std::vector<int32_t> free_;
  AlignedBuffer bytes_;
};

/// One sequence: queries, keys and values of every position, all heads.
struct Sequence {
  int length = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
  std::vector<float> q, k, v;  // [length][heads][head_dim]

  Sequence(std::mt19937& random, int length_, int q_heads_, int kv_heads_, int head_dim_)
      : length(length_), q_heads(q_heads_), kv_heads(kv_heads_), head_dim(head_dim_) {
    const auto rows = static_cast<size_t>(length) * static_cast<size_t>(head_dim);
    q = random_floats(random, rows * static_cast<size_t>(q_heads), 1.5f);
    k = random_floats(random, rows * static_cast<size_t>(kv_heads), 1.5f);
    v = random_floats(random, rows * static_cast<size_t>(kv_heads));
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
  const float* query(int position) const {
    return q.data() + static_cast<int64_t>(position) * q_heads * head_dim;
  }
  int64_t kv_at(int position, int head) const {
    return (static_cast<int64_t>(position) * kv_heads + head) * head_dim;
  }

  /// Writes keys and values; returns the page table.
  std::vector<int32_t> store(RandomCache& cache) const {
    const std::vector<int32_t> pages = cache.take_pages(length);
    for (int p = 0; p < length; ++p) {
      for (int h = 0; h < kv_heads; ++h) {
        cache.put(pages, p, h, k.data() + kv_at(p, h), v.data() + kv_at(p, h));
      }
    }
    return pages;
  }

  /// Rounds keys and values to what a cache of `dtype` holds.
  void round_to(DType dtype) {
    std::vector<std::byte> bytes(dtype_bytes(dtype, static_cast<int64_t>(k.size())));
    for (std::vector<float>* x : {&k, &v}) {
      const auto n = static_cast<int64_t>(x->size());
      (void)quant::quantize_row(dtype, x->data(), bytes.data(), n);
      quant::dequantize_row(dtype, bytes.data(), x->data(), n);
    }
  }

  /// Attention of one position in float64 on dense arrays: [q_heads * head_dim].
  std::vector<double> dense(int position) const {
    std::vector<double> out(static_cast<size_t>(q_heads * head_dim), 0.0);
    for (int h = 0; h < q_heads; ++h) {
      const int kv_head = h / (q_heads / kv_heads);
      std::vector<double> p(static_cast<size_t>(position) + 1);
      double max = -1e300, sum = 0;
      for (int j = 0; j <= position; ++j) {
        double dot = 0;
        for (int e = 0; e < head_dim; ++e) {
          dot += static_cast<double>(query(position)[h * head_dim + e]) *
                 k[static_cast<size_t>(kv_at(j, kv_head) + e)];
        }
        p[static_cast<size_t>(j)] = dot / std::sqrt(static_cast<double>(head_dim));
        max = std::max(max, p[static_cast<size_t>(j)]);
      }
      for (double& x : p) sum += x = std::exp(x - max);
      for (int j = 0; j <= position; ++j) {
        for (int e = 0; e < head_dim; ++e) {
          out[static_cast<size_t>(h * head_dim + e)] +=
              p[static_cast<size_t>(j)] / sum * v[static_cast<size_t>(kv_at(j, kv_head) + e)];
        }
      }
    }
    return out;
  }
};

}  // namespace capstan::kernels
