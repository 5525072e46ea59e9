#include "platform/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "platform/mapping_faults.h"

namespace capstan::platform {
namespace {

Error system_failure(const char* what, const std::string& path, int error) {
  const std::string text =
      std::string(what) + " '" + path + "': " + std::generic_category().message(error);
  if (error == ENOENT || error == ENOTDIR) return not_found(text);
  if (error == ENOMEM || error == EMFILE || error == ENFILE) return resource_exhausted(text);
  return invalid_argument(text);
}

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  // O_NONBLOCK: opening a pipe must not wait for a writer; it has no effect on regular files.
  int fd;
  do {
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return system_failure("cannot open", path, errno);

  struct stat info;
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    return system_failure("cannot stat", path, error);
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    return invalid_argument("cannot map '" + path + "': " +
                            (S_ISDIR(info.st_mode) ? "it is a directory" : "not a regular file"));
  }
  if (info.st_size == 0) {
    ::close(fd);
    return data_loss("cannot map '" + path + "': the file is empty");
  }
  const auto size = static_cast<size_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  const int error = errno;
  ::close(fd);
  if (data == MAP_FAILED) return system_failure("cannot map", path, error);

  MappedFile file;
  file.data_ = static_cast<const std::byte*>(data);
  file.size_ = size;
  file.path_ = path;
  note_mapping(file.data_, size, path);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  forget_mapping(data_);
  ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::advise(Advice advice, size_t offset, size_t length) const {
  if (data_ == nullptr || offset >= size_) return;
  size_t end = length == 0 ? size_ : offset + std::min(length, size_ - offset);
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGE_SIZE));
  if (advice == Advice::kDontNeed) {
    // Whole pages inside the range only: neighbours may still be in use.
    offset = (offset + page - 1) / page * page;
    if (end != size_) end = end / page * page;
    if (offset >= end) return;
  } else {
    offset = offset / page * page;
  }
  int hint = MADV_NORMAL;
  switch (advice) {
    case Advice::kSequential:
      hint = MADV_SEQUENTIAL;
      break;
    case Advice::kWillNeed:
      hint = MADV_WILLNEED;
      break;
    case Advice::kDontNeed:
      hint = MADV_DONTNEED;
      break;
  }
  ::madvise(const_cast<std::byte*>(data_) + offset, end - offset, hint);
}

}  // namespace capstan::platform
