// Non-owning views of tensors and one aligned owning buffer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace capstan {

/// A tensor as stored in a checkpoint: row-major, outermost dimension first, contiguous.
/// `data` points into a mapped file or a buffer that outlives the view; no alignment is promised.
struct TensorView {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::string name;  // for error messages

  int64_t elems() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
  size_t bytes() const { return dtype_bytes(dtype, elems()); }
  int64_t rows() const { return shape.size() < 2 ? 1 : elems() / shape.back(); }
  int64_t cols() const { return shape.empty() ? 1 : shape.back(); }
};

/// Float activations [rows, cols], row-major with a stride in elements. Non-owning.
struct MatrixView {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements between consecutive rows, >= cols

  float* row(int64_t i) const { return data + i * stride; }
};

/// Uninitialised bytes aligned to 64 (one cache line, one zmm). Move-only owner.
class AlignedBuffer {
 public:
  static constexpr size_t kAlignment = 64;

  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes)
      : bytes_(bytes),
        data_(bytes == 0
                  ? nullptr
                  : static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlignment}))) {}

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_.get());
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }
  size_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{kAlignment}); }
  };
  size_t bytes_ = 0;
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace capstan
