#include "model/tensor_table.h"

#include <algorithm>
#include <functional>
#include <map>

#include "model/printable.h"

namespace capstan::model {

const platform::MappedFile& TensorTable::keep(platform::MappedFile file) {
  files_.push_back(std::move(file));
  return files_.back();
}

Status TensorTable::add(std::string hf_name, TensorView view, const std::string& file) {
  const size_t bytes = view.bytes();
  const auto [it, inserted] = tensors_.try_emplace(std::move(hf_name), std::move(view));
  if (!inserted) {
    return data_loss(file + ": tensor " + printable(it->first) + " occurs twice in the checkpoint");
  }
  total_bytes_ += bytes;
  return {};
}

const TensorView* TensorTable::find(const std::string& hf_name) const {
  const auto it = tensors_.find(hf_name);
  return it == tensors_.end() ? nullptr : &it->second;
}

std::vector<std::string> TensorTable::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, view] : tensors_) names.push_back(name);
  std::sort(names.begin(), names.end());
  return names;
}

DType TensorTable::bulk_dtype(DType absent) const {
  std::map<DType, int64_t> elems;
  for (const auto& [name, view] : tensors_) {
    if (view.shape.size() == 2) elems[view.dtype] += view.elems();
  }
  const auto most = std::max_element(
      elems.begin(), elems.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == elems.end() ? absent : most->first;
}

void TensorTable::drop_pages(const TensorView& tensor) const {
  const std::less<const std::byte*> before;
  for (const platform::MappedFile& file : files_) {
    if (!before(tensor.data, file.data()) && before(tensor.data, file.data() + file.size())) {
      file.advise(platform::MappedFile::Advice::kDontNeed,
                  static_cast<size_t>(tensor.data - file.data()), tensor.bytes());
      return;
    }
  }
}

void TensorTable::drop_all_pages() const {
  for (const platform::MappedFile& file : files_) {
    file.advise(platform::MappedFile::Advice::kDontNeed);
  }
}

}  // namespace capstan::model
