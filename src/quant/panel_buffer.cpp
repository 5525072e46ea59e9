#include <sys/mman.h>

#include <utility>

#include "quant/panel.h"

namespace capstan::quant {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

PanelBuffer::PanelBuffer(size_t bytes) {
  if (bytes == 0) return;
  // One huge page more than needed, so that a huge page boundary lies inside; the surplus is
  // address space that is never touched.
  const size_t slack = bytes >= kHugePage ? kHugePage : 0;
  if (bytes > SIZE_MAX - slack) return;
  void* p =
      mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return;
  mapping_ = p;
  mapped_ = bytes + slack;
  bytes_ = bytes;
  auto address = reinterpret_cast<uintptr_t>(p);
  if (slack != 0) {
    address = (address + kHugePage - 1) & ~(kHugePage - 1);
    // Refusal (a kernel without transparent huge pages) costs speed only.
    (void)madvise(reinterpret_cast<void*>(address), bytes, MADV_HUGEPAGE);
  }
  data_ = reinterpret_cast<std::byte*>(address);
}

PanelBuffer::~PanelBuffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapped_);
}

PanelBuffer::PanelBuffer(PanelBuffer&& other) noexcept { *this = std::move(other); }

PanelBuffer& PanelBuffer::operator=(PanelBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

}  // namespace capstan::quant
