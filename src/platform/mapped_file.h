// A file mapped read-only into memory.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "base/result.h"

namespace capstan::platform {

/// Move-only owner of a mapping. The pages are the kernel's page cache: shared between processes
/// and dropped under memory pressure. A file that another process truncates while it is mapped
/// raises SIGBUS on access; replace checkpoints by renaming, not by writing in place.
class MappedFile {
 public:
  enum class Advice { kSequential, kWillNeed, kDontNeed };

  /// Maps the whole file. Missing files are kNotFound; directories, devices, pipes and unreadable
  /// files kInvalidArgument; empty files kDataLoss. Messages name the path and the system's reason.
  static Result<MappedFile> open(const std::string& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept { swap(other); }
  MappedFile& operator=(MappedFile&& other) noexcept {
    MappedFile(std::move(other)).swap(*this);
    return *this;
  }
  ~MappedFile();

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

  /// Hints how the range [offset, offset+length) will be read; length 0 means to the end. A hint
  /// that the kernel refuses is ignored: reading works all the same.
  void advise(Advice advice, size_t offset = 0, size_t length = 0) const;

 private:
  void swap(MappedFile& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    path_.swap(other.path_);
  }

  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

}  // namespace capstan::platform
