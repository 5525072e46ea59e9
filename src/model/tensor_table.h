// The tensors of one checkpoint, by Hugging Face name, with the files that hold them.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "platform/mapped_file.h"
#include "tensor/tensor.h"

namespace capstan::model {

class TensorTable {
 public:
  /// The views of added tensors point into kept files.
  const platform::MappedFile& keep(platform::MappedFile file);
  /// kDataLoss when the name is taken; `file` is where this tensor comes from.
  Status add(std::string hf_name, TensorView view, const std::string& file);

  const TensorView* find(const std::string& hf_name) const;
  std::vector<std::string> names() const;  // sorted
  size_t total_bytes() const { return total_bytes_; }
  bool empty() const { return tensors_.empty(); }
  /// The dtype that holds most elements of matrices; `absent` without matrices.
  DType bulk_dtype(DType absent) const;
  void drop_pages(const TensorView& tensor) const;
  void drop_all_pages() const;

 private:
  std::vector<platform::MappedFile> files_;
  std::unordered_map<std::string, TensorView> tensors_;
  size_t total_bytes_ = 0;
};

}  // namespace capstan::model
