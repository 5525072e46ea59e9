#include "model/kv_store.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

namespace capstan::model {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Strides that are multiples of this put the same rows of all pages into the same few sets of the
// first two cache levels.
constexpr int64_t kAliasing = 4096;

/// What one token of one layer takes.
struct Geometry {
  int heads, row_dim;  // rows [row_dim], one per head
  int64_t values;      // 2: as many value rows behind the keys'; 1: values are part of the key row
  int value_dim;       // as in PagedKv
};

Geometry geometry_of(const ModelConfig& config) {
  if (config.has_mla()) {
    return {1, config.mla.kv_lora_rank + config.mla.qk_rope_head_dim, 1, config.mla.kv_lora_rank};
  }
  return {config.num_kv_heads, config.head_dim, 2, 0};
}

Status check_dtype(const ModelConfig& config, DType dtype) {
  if (dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16) return {};
  if (dtype == DType::kF8E4M3 && config.has_mla()) return {};
  return invalid_argument(
      "KV cache dtype " + std::string(dtype_info(dtype).name) + " is not supported" +
          (dtype == DType::kF8E4M3 ? " for models without latent attention (DeepSeek)" : "") +
          "; use F32, F16 or BF16" + (config.has_mla() ? " or F8_E4M3" : ""),
      "kv-cache-dtype");
}

}  // namespace

void KvStore::Unmap::operator()(std::byte* p) const { ::munmap(p, bytes); }

size_t KvStore::bytes_per_token(const ModelConfig& config, DType dtype, int draft_layers) {
  const Geometry g = geometry_of(config);
  return static_cast<size_t>(g.values) * static_cast<size_t>(config.num_layers + draft_layers) *
         static_cast<size_t>(g.heads) * dtype_bytes(dtype, g.row_dim);
}

/// Layout: [page][layer][K, V][kv_head][offset][head_dim], without V for latent attention. One page
/// of one layer is contiguous, and within it one head's keys are, which is what attention reads in
/// one go. All layers of a page lie together so that sequences grow into fresh memory huge page by
/// huge page: a fault costs up to 3 ms (2 MiB are zeroed), and with one region per layer all layers
/// faulted in the same step, every 2,700 tokens of a 30-layer model, which then took 105 ms,
/// not 15.
Result<KvStore> KvStore::create(const ModelConfig& config, int num_pages, int page_size,
                                DType dtype, int draft_layers) {
  CAPSTAN_RETURN_IF_ERROR(check_dtype(config, dtype));
  if (num_pages <= 0 || page_size <= 0) {
    return invalid_argument("KV cache of " + std::to_string(num_pages) + " pages of " +
                            std::to_string(page_size) + " tokens: both must be above 0");
  }
  const auto overflow = [&] {
    return invalid_argument("KV cache of " + std::to_string(num_pages) + " pages of " +
                            std::to_string(page_size) + " tokens is larger than an address space");
  };
  int64_t head = 0, half = 0, layer = 0, page = 0, total = 0;
  const Geometry g = geometry_of(config);
  const int num_layers = config.num_layers + draft_layers;
  const auto row = static_cast<int64_t>(dtype_bytes(dtype, g.row_dim));
  if (__builtin_mul_overflow(row, int64_t{page_size}, &head) ||
      __builtin_mul_overflow(head, int64_t{g.heads}, &half) ||
      __builtin_mul_overflow(half, g.values, &layer) ||
      __builtin_mul_overflow(layer, int64_t{num_layers}, &page)) {
    return overflow();
  }
  if (page % kAliasing == 0 && __builtin_add_overflow(page, head, &page)) return overflow();
  if (__builtin_mul_overflow(page, int64_t{num_pages}, &total) ||
      __builtin_add_overflow(total, static_cast<int64_t>(kHugePage), &total)) {
    return overflow();
  }

  const auto bytes = static_cast<size_t>(total);
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return resource_exhausted("cannot reserve " + std::to_string(bytes) + " bytes of KV cache (" +
                              std::to_string(num_pages) + " pages of " + std::to_string(page_size) +
                              " tokens): " + std::strerror(errno) +
                              "; lower --max-total-tokens or --mem-fraction-static");
  }
  // Attention walks whole pages; without huge pages each 4 KiB costs a TLB entry. Refusal is fine.
  ::madvise(memory, bytes, MADV_HUGEPAGE);

  KvStore store;
  store.memory_ = std::unique_ptr<std::byte, Unmap>(static_cast<std::byte*>(memory), Unmap(bytes));
  store.memory_bytes_ = bytes;
  store.num_pages_ = num_pages;
  store.page_size_ = page_size;
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const size_t shift = (kHugePage - address % kHugePage) % kHugePage;
  for (int l = 0; l < num_layers; ++l) {
    kernels::PagedKv kv;
    kv.base = store.memory_.get() + shift + layer * l;
    kv.dtype = dtype;
    kv.page_size = page_size;
    kv.kv_heads = g.heads;
    kv.head_dim = g.row_dim;
    kv.page_stride = page;
    kv.head_stride = head;
    kv.value_offset = g.values == 2 ? half : 0;
    kv.value_dim = g.value_dim;
    store.layers_.push_back(kv);
  }
  return store;
}

}  // namespace capstan::model
