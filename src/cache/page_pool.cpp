#include "cache/page_pool.h"

namespace capstan::cache {
namespace {

const char* name(PageOwner owner) {
  switch (owner) {
    case PageOwner::kFree:
      return "free";
    case PageOwner::kRequest:
      return "request";
    case PageOwner::kTree:
      return "tree";
  }
  return "?";
}

}  // namespace

PagePool::PagePool(int num_pages, int page_size) : page_size_(page_size) {
  owner_.assign(static_cast<size_t>(num_pages), PageOwner::kFree);
  free_.reserve(owner_.size());
  for (int32_t page = num_pages - 1; page >= 0; --page) free_.push_back(page);
}

int32_t PagePool::allocate() {
  if (free_.empty()) return -1;
  const int32_t page = free_.back();
  free_.pop_back();
  owner_[static_cast<size_t>(page)] = PageOwner::kRequest;
  ++request_pages_;
  return page;
}

bool PagePool::allocate(int count, std::vector<int32_t>& out) {
  if (count > free_pages()) return false;
  out.reserve(out.size() + static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) out.push_back(allocate());
  return true;
}

bool PagePool::move(int32_t page, PageOwner from, PageOwner to) {
  const bool known = page >= 0 && page < num_pages();
  if (known && owner_[static_cast<size_t>(page)] == from) {
    owner_[static_cast<size_t>(page)] = to;
    return true;
  }
  if (first_violation_.empty()) {
    first_violation_ = "page " + std::to_string(page) + " was to move from " + name(from) + " to " +
                       name(to) + " but is " +
                       (known ? name(owner_[static_cast<size_t>(page)]) : "not in the pool");
  }
  return false;
}

void PagePool::give_to_tree(std::span<const int32_t> pages) {
  for (const int32_t page : pages) {
    if (move(page, PageOwner::kRequest, PageOwner::kTree)) --request_pages_;
  }
}

void PagePool::release_from_request(std::span<const int32_t> pages) {
  for (const int32_t page : pages) {
    if (!move(page, PageOwner::kRequest, PageOwner::kFree)) continue;
    --request_pages_;
    free_.push_back(page);
  }
}

void PagePool::release_from_tree(std::span<const int32_t> pages) {
  for (const int32_t page : pages) {
    if (move(page, PageOwner::kTree, PageOwner::kFree)) free_.push_back(page);
  }
}

Status PagePool::check() const {
  if (!first_violation_.empty()) return internal_error("page pool: " + first_violation_);
  int free = 0;
  int request = 0;
  for (const PageOwner owner : owner_) {
    free += owner == PageOwner::kFree;
    request += owner == PageOwner::kRequest;
  }
  if (free != free_pages()) {
    return internal_error("page pool: free list holds " + std::to_string(free_pages()) +
                          " pages, owner table says " + std::to_string(free));
  }
  if (request != request_pages_) {
    return internal_error("page pool: counted " + std::to_string(request_pages_) +
                          " request pages, owner table says " + std::to_string(request));
  }
  for (const int32_t page : free_) {
    if (owner(page) != PageOwner::kFree) {
      return internal_error("page pool: page " + std::to_string(page) +
                            " is on the free list and owned by a " + name(owner(page)));
    }
  }
  return {};
}

}  // namespace capstan::cache
