// What a draft layer has seen of a text.
//
// The layer keeps a row of keys and values for every position, in pages that texts share. It does
// not run for texts that are not drafted for, so a page may lie in the prefix cache without its
// rows. Therefore a text has a window: the layer sees it from the beginning of some page on, as if
// it began there, and a page remembers for which window its rows were written. Rows outside the
// window are never read, so what they contain does not matter; a text whose pages are not of one
// window gets a new one, which costs the quality of its next drafts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace capstan::engine {

class DraftWindows {
 public:
  explicit DraftWindows(int page_size) : page_size_(page_size) {}

  /// The first page's beginning at or after a position.
  int32_t next_page(int32_t position) const {
    return (position + page_size_ - 1) / page_size_ * page_size_;
  }
  /// Whether positions [from, end) of a text with these pages were written for the window at
  /// `from`, a page's beginning.
  bool whole(std::span<const int32_t> pages, int32_t from, int32_t end) const;
  /// The window of a text that has positions [0, end) from the cache; -1: there is none to go on
  /// with.
  int32_t cached(std::span<const int32_t> pages, int32_t end) const;
  /// Rows [first, end) are written now, for the window at `from`.
  void wrote(std::span<const int32_t> pages, int32_t first, int32_t end, int32_t from);
  /// Rows [first, end) are not written, while the model's are.
  void skipped(std::span<const int32_t> pages, int32_t first, int32_t end);

 private:
  int32_t window_of(int32_t page) const {
    return static_cast<size_t>(page) < windows_.size() ? windows_[static_cast<size_t>(page)] : -1;
  }
  void set(int32_t page, int32_t window);

  const int page_size_;
  std::vector<int32_t> windows_;  // by page: where the window begins; -1: rows are missing
};

}  // namespace capstan::engine
