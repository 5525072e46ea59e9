#include "engine/draft_windows.h"

namespace capstan::engine {

bool DraftWindows::whole(std::span<const int32_t> pages, int32_t from, int32_t end) const {
  for (int32_t at = from; at < end; at += page_size_) {
    if (window_of(pages[static_cast<size_t>(at / page_size_)]) != from) return false;
  }
  return true;
}

int32_t DraftWindows::cached(std::span<const int32_t> pages, int32_t end) const {
  if (end == 0 || end % page_size_ != 0) return -1;
  const int32_t from = window_of(pages[static_cast<size_t>(end / page_size_ - 1)]);
  // A window that begins behind this page is another text's.
  return from >= 0 && from < end && whole(pages, from, end) ? from : -1;
}

void DraftWindows::wrote(std::span<const int32_t> pages, int32_t first, int32_t end, int32_t from) {
  for (int32_t at = next_page(first); at < end; at += page_size_) {
    set(pages[static_cast<size_t>(at / page_size_)], from);
  }
}

void DraftWindows::skipped(std::span<const int32_t> pages, int32_t first, int32_t end) {
  for (int32_t at = first / page_size_ * page_size_; at < end; at += page_size_) {
    set(pages[static_cast<size_t>(at / page_size_)], -1);
  }
}

void DraftWindows::set(int32_t page, int32_t window) {
  const auto at = static_cast<size_t>(page);
  if (at >= windows_.size()) windows_.resize(at + 1, -1);
  windows_[at] = window;
}

}  // namespace capstan::engine
