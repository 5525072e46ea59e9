// The memory behind the page pool: keys and values of all layers, page by page.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "kernels/ops.h"
#include "model/config.h"
#include "tensor/tensor.h"

namespace capstan::model {

/// Owns num_pages * page_size tokens for every layer: K and V per KV head, or with latent attention
/// one row [latent | roped key] (kernels::MlaShape). Page numbers are the ones that
/// cache::PagePool hands out. Memory is zero-initialised lazily by the operating system.
class KvStore {
 public:
  /// dtype is F32, F16 or BF16, and for latent attention also F8_E4M3, which halves the cache again
  /// and costs accuracy (figures: kernels::MlaStoreArgs). `draft_layers`
  /// (multi-token prediction) are numbered behind the model's own.
  static Result<KvStore> create(const ModelConfig& config, int num_pages, int page_size,
                                DType dtype, int draft_layers = 0);
  /// Bytes one token takes over all layers.
  static size_t bytes_per_token(const ModelConfig& config, DType dtype, int draft_layers = 0);

  kernels::PagedKv layer(int l) const { return layers_[static_cast<size_t>(l)]; }
  int num_layers() const { return static_cast<int>(layers_.size()); }
  int num_pages() const { return num_pages_; }
  int page_size() const { return page_size_; }
  size_t bytes() const { return memory_bytes_; }

 private:
  struct Unmap {
    Unmap() : bytes(0) {}
    explicit Unmap(size_t n) : bytes(n) {}
    size_t bytes;
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte, Unmap> memory_;
  size_t memory_bytes_ = 0;
  std::vector<kernels::PagedKv> layers_;
  int num_pages_ = 0;
  int page_size_ = 0;
};

}  // namespace capstan::model
