// The pages of the KV store by number: who owns which. No memory lies behind them here; the KV
// store keeps the bytes and is indexed by these numbers.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"

namespace capstan::cache {

enum class PageOwner : uint8_t {
  kFree,     // on the free list
  kRequest,  // in the page table of exactly one request
  kTree,     // in exactly one node of the radix tree
};

/// Fixed number of pages, each of `page_size` token slots. A page has exactly one owner at any time
/// and moves kFree -> kRequest -> kTree -> kFree or kFree -> kRequest -> kFree. Every other move is
/// a bug of the caller: it is refused, and check() reports the first one for ever after, so that a
/// double release shows up as a message and not as two requests writing to one page.
class PagePool {
 public:
  /// num_pages >= 0, page_size >= 1.
  PagePool(int num_pages, int page_size);

  int num_pages() const { return static_cast<int>(owner_.size()); }
  int page_size() const { return page_size_; }
  int free_pages() const { return static_cast<int>(free_.size()); }
  int request_pages() const { return request_pages_; }
  int tree_pages() const { return num_pages() - free_pages() - request_pages_; }
  PageOwner owner(int32_t page) const { return owner_[static_cast<size_t>(page)]; }

  /// One page for a request; -1 when none is free.
  int32_t allocate();
  /// Appends `count` pages to `out`, or none and returns false.
  bool allocate(int count, std::vector<int32_t>& out);
  /// kRequest -> kTree.
  void give_to_tree(std::span<const int32_t> pages);
  /// kRequest -> kFree.
  void release_from_request(std::span<const int32_t> pages);
  /// kTree -> kFree.
  void release_from_tree(std::span<const int32_t> pages);

  /// Counts and owner table agree with the free list, and no forbidden move was ever asked for.
  Status check() const;

 private:
  bool move(int32_t page, PageOwner from, PageOwner to);

  int page_size_;
  int request_pages_ = 0;
  std::vector<PageOwner> owner_;
  std::vector<int32_t> free_;  // a stack: the page released last is warmest in the CPU's caches
  std::string first_violation_;
};

}  // namespace capstan::cache
