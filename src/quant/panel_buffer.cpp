#include <sys/mman.h>

#include <cstdint>
#include <mutex>
#include <utility>

#include "quant/panel.h"

namespace capstan::quant {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;
// Buffers up to kShared are cut from blocks of kBlock. A process may have 65,530 mappings by
// default, and the experts of DeepSeek-V3 alone are 29,696 matrices of 15 and 29 MB, two or three
// mappings each if every one had its own; cut from common blocks they also waste no huge page.
constexpr size_t kShared = size_t{32} << 20;
constexpr size_t kBlock = size_t{128} << 20;

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

}  // namespace

/// A mapping, its usable part aligned to 2 MiB if it is as large.
class PanelBuffer::Mapping {
 public:
  explicit Mapping(size_t bytes) {
    // One huge page more than needed, so that a huge page boundary lies inside; the surplus is
    // address space that is never touched.
    const size_t slack = bytes >= kHugePage ? kHugePage : 0;
    if (bytes > SIZE_MAX - slack) return;
    void* p =
        mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return;
    mapping_ = p;
    mapped_ = bytes + slack;
    auto address = reinterpret_cast<uintptr_t>(p);
    if (slack != 0) {
      address = round_up(address, kHugePage);
      // Refusal (a kernel without transparent huge pages) costs speed only.
      (void)madvise(reinterpret_cast<void*>(address), bytes, MADV_HUGEPAGE);
    }
    data_ = reinterpret_cast<std::byte*>(address);
  }
  ~Mapping() {
    if (mapping_ != nullptr) munmap(mapping_, mapped_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* data() const { return data_; }

  /// The next `bytes` (whole pages) of a shared block, or null if it is used up. Pieces are never
  /// handed out twice, so they are zero.
  std::byte* cut(size_t bytes) {
    if (kBlock - used_ < bytes) return nullptr;
    std::byte* piece = data_ + used_;
    used_ += bytes;
    return piece;
  }

 private:
  std::byte* data_ = nullptr;
  void* mapping_ = nullptr;
  size_t mapped_ = 0;
  size_t used_ = 0;
};

PanelBuffer::PanelBuffer(size_t bytes) {
  if (bytes == 0) return;
  if (bytes <= kShared) {
    static std::mutex mutex;
    static std::weak_ptr<Mapping> current;  // lives as long as a buffer in it
    const std::lock_guard lock(mutex);
    const size_t piece = round_up(bytes, kPage);
    std::shared_ptr<Mapping> block = current.lock();
    if (block != nullptr) data_ = block->cut(piece);
    if (data_ == nullptr) {
      block = std::make_shared<Mapping>(kBlock);
      if (block->data() != nullptr) {
        data_ = block->cut(piece);
        current = block;
      }
    }
    if (data_ != nullptr) {
      bytes_ = bytes;
      mapping_ = std::move(block);
      return;
    }
  }
  // Large, or no address space for a whole block.
  mapping_ = std::make_shared<Mapping>(bytes);
  data_ = mapping_->data();
  if (data_ != nullptr) bytes_ = bytes;
}

PanelBuffer::~PanelBuffer() {
  // The block may live on for others: give this part's memory back now.
  if (data_ != nullptr && bytes_ <= kShared && mapping_.use_count() > 1)
    (void)madvise(data_, round_up(bytes_, kPage), MADV_DONTNEED);
}

PanelBuffer::PanelBuffer(PanelBuffer&& other) noexcept { *this = std::move(other); }

PanelBuffer& PanelBuffer::operator=(PanelBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapping_, other.mapping_);
  return *this;
}

}  // namespace capstan::quant
