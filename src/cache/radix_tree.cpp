#include "cache/radix_tree.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <string>

namespace capstan::cache {

Result<EvictionPolicy> parse_eviction_policy(std::string_view name) {
  if (name == "lru") return EvictionPolicy::kLru;
  if (name == "slru") return EvictionPolicy::kSlru;
  if (name == "lfu") return EvictionPolicy::kLfu;
  return invalid_argument(
      "unknown eviction policy '" + std::string(name) + "': use lru, slru or lfu",
      "radix-eviction-policy");
}

RadixTree::RadixTree(PagePool& pool, EvictionPolicy policy)
    : pool_(pool), policy_(policy), buckets_(64, nullptr) {}

RadixTree::~RadixTree() {
  assert(live_pins_ == 0);
  for (Node* node : buckets_) {
    while (node != nullptr) delete std::exchange(node, node->chain);
  }
}

void RadixTree::Pin::reset() {
  if (node_ != nullptr) {
    --tree_->live_pins_;
    tree_->unlock(node_);
  }
  tree_ = nullptr;
  node_ = nullptr;
  pages_ = 0;
}

uint64_t RadixTree::page_hash(uint64_t parent_id, std::span<const int32_t> page_tokens) {
  uint64_t h = parent_id * 0x9E3779B97F4A7C15u;
  for (const int32_t token : page_tokens) {
    h = (h ^ static_cast<uint32_t>(token)) * 0xD6E8FEB86659FD93u;
    h ^= h >> 32;
  }
  return h;
}

RadixTree::Node* RadixTree::find_child(const Node* parent, const int32_t* page_tokens) const {
  const std::span page(page_tokens, static_cast<size_t>(pool_.page_size()));
  const uint64_t hash = page_hash(parent->id, page);
  for (Node* node = buckets_[hash & (buckets_.size() - 1)]; node != nullptr; node = node->chain) {
    if (node->hash == hash && node->parent == parent &&
        std::equal(page.begin(), page.end(), node->tokens.begin())) {
      return node;
    }
  }
  return nullptr;
}

int RadixTree::common_pages(const Node* node, std::span<const int32_t> tokens) const {
  const size_t n = std::min(node->tokens.size(), tokens.size());
  const auto end = node->tokens.begin() + static_cast<std::ptrdiff_t>(n);
  const auto [differs, ignored] = std::mismatch(node->tokens.begin(), end, tokens.begin());
  return static_cast<int>(differs - node->tokens.begin()) / pool_.page_size();
}

RadixTree::Match RadixTree::peek(uint64_t name_space, std::span<const int32_t> tokens,
                                 int max_pages) const {
  Match match;
  const auto found = roots_.find(name_space);
  if (found == roots_.end()) return match;
  const auto page_size = static_cast<size_t>(pool_.page_size());
  tokens = tokens.first(
      std::min(tokens.size() / page_size, static_cast<size_t>(std::max(max_pages, 0))) * page_size);
  const Node* node = found->second.get();
  while (!tokens.empty()) {
    node = find_child(node, tokens.data());
    if (node == nullptr) break;
    const int pages = common_pages(node, tokens);
    match.node = node;
    match.pages += pages;
    if (!node->locked()) match.unlocked_pages += pages;
    if (static_cast<size_t>(pages) < node->pages.size()) break;
    tokens = tokens.subspan(static_cast<size_t>(pages) * page_size);
  }
  return match;
}

RadixTree::Pin RadixTree::acquire(uint64_t name_space, std::span<const int32_t> tokens,
                                  int max_pages, std::vector<int32_t>& pages) {
  const auto found = roots_.find(name_space);
  if (found == roots_.end()) return {};
  const auto page_size = static_cast<size_t>(pool_.page_size());
  tokens = tokens.first(
      std::min(tokens.size() / page_size, static_cast<size_t>(std::max(max_pages, 0))) * page_size);
  Node* node = found->second.get();
  int matched = 0;
  while (!tokens.empty()) {
    Node* child = find_child(node, tokens.data());
    if (child == nullptr) break;
    const int common = common_pages(child, tokens);
    // A pin must end at the end of a node, so that it locks no page that its request cannot use.
    if (static_cast<size_t>(common) < child->pages.size()) child = split(child, common);
    pages.insert(pages.end(), child->pages.begin(), child->pages.end());
    matched += common;
    tokens = tokens.subspan(static_cast<size_t>(common) * page_size);
    node = child;
  }
  if (matched == 0) return {};
  lock(node);
  ++live_pins_;
  for (Node* n = node; n->parent != nullptr; n = n->parent) ++n->uses;
  return Pin(this, node, matched);
}

void RadixTree::extend(Pin& pin, uint64_t name_space, std::span<const int32_t> tokens,
                       std::vector<int32_t>& table) {
  const auto page_size = static_cast<size_t>(pool_.page_size());
  const auto total = static_cast<int>(tokens.size() / page_size);
  int done = pin.pages_;
  if (total <= done) return;
  Node* node = pin.node_ != nullptr ? pin.node_ : root(name_space);
  while (done < total) {
    const auto rest = tokens.subspan(static_cast<size_t>(done) * page_size,
                                     static_cast<size_t>(total - done) * page_size);
    const std::span<int32_t> rest_pages(table.data() + done, static_cast<size_t>(total - done));
    Node* child = find_child(node, rest.data());
    if (child == nullptr) {
      pool_.give_to_tree(rest_pages);
      stats_.inserted_pages += rest_pages.size();
      cached_pages_ += static_cast<int>(rest_pages.size());
      node = make_node(node, rest, rest_pages);
      ++version_;
      done = total;
      break;
    }
    const int common = common_pages(child, rest);
    if (static_cast<size_t>(common) < child->pages.size()) child = split(child, common);
    pool_.release_from_request(rest_pages.first(static_cast<size_t>(common)));
    std::copy(child->pages.begin(), child->pages.end(), rest_pages.begin());
    stats_.duplicate_pages += static_cast<uint64_t>(common);
    done += common;
    node = child;
  }
  lock(node);  // before the old pin goes: the path above stays locked throughout
  ++live_pins_;
  pin = Pin(this, node, done);
}

int RadixTree::evict(int pages) {
  int freed = 0;
  for (List& list : lists_) {
    while (freed < pages && list.head != nullptr) {
      Node* victim = list.head;
      const auto count = std::min(static_cast<size_t>(pages - freed), victim->pages.size());
      const auto kept = victim->pages.size() - count;
      pool_.release_from_tree(std::span(victim->pages).subspan(kept));
      freed += static_cast<int>(count);
      if (kept == 0) {
        remove(victim);
      } else {
        victim->pages.resize(kept);
        victim->tokens.resize(kept * static_cast<size_t>(pool_.page_size()));
      }
    }
    if (freed == pages) break;
  }
  if (freed > 0) {
    ++version_;
    cached_pages_ -= freed;
    stats_.evicted_pages += static_cast<uint64_t>(freed);
  }
  return freed;
}

int RadixTree::exclusive_pages(const Pin& pin) const {
  int pages = 0;
  bool last_lock = true;  // whether the child below (or the pin) is this node's only lock
  for (const Node* node = pin.node_; node != nullptr && node->parent != nullptr && last_lock;
       node = node->parent) {
    last_lock = node->pins + node->locked_children == 1;
    if (last_lock) pages += static_cast<int>(node->pages.size());
  }
  return pages;
}

const RadixTree::Node* RadixTree::parent(const Node* node) {
  return node->parent->parent == nullptr ? nullptr : node->parent;
}

uint64_t RadixTree::id(const Node* node) { return node->id; }

std::vector<int32_t> RadixTree::path_pages(const Pin& pin) const {
  std::vector<const Node*> path;
  for (const Node* node = pin.node_; node != nullptr; node = node->parent) path.push_back(node);
  std::vector<int32_t> pages;
  for (auto it = path.rbegin(); it != path.rend(); ++it) {
    pages.insert(pages.end(), (*it)->pages.begin(), (*it)->pages.end());
  }
  return pages;
}

RadixTree::Node* RadixTree::root(uint64_t name_space) {
  std::unique_ptr<Node>& root = roots_[name_space];
  if (root == nullptr) {
    root = std::make_unique<Node>();
    root->id = next_id_++;
    root->name_space = name_space;
  }
  return root.get();
}

RadixTree::Node* RadixTree::make_node(Node* parent, std::span<const int32_t> tokens,
                                      std::span<const int32_t> pages) {
  Node* node = new Node;
  node->id = next_id_++;
  node->parent = parent;
  node->tokens.assign(tokens.begin(), tokens.end());
  node->pages.assign(pages.begin(), pages.end());
  attach(node);
  return node;
}

RadixTree::Node* RadixTree::split(Node* node, int pages) {
  const auto upper_pages = static_cast<size_t>(pages);
  const auto upper_tokens = upper_pages * static_cast<size_t>(pool_.page_size());
  detach(node);
  Node* upper = make_node(node->parent, std::span(node->tokens).first(upper_tokens),
                          std::span(node->pages).first(upper_pages));
  upper->uses = node->uses;
  upper->locked_children = node->locked() ? 1 : 0;
  node->tokens.erase(node->tokens.begin(),
                     node->tokens.begin() + static_cast<std::ptrdiff_t>(upper_tokens));
  node->pages.erase(node->pages.begin(),
                    node->pages.begin() + static_cast<std::ptrdiff_t>(upper_pages));
  node->parent = upper;
  attach(node);
  if (node->list_class >= 0) {  // the upper part comes right after the lower one
    List& list = lists_[static_cast<size_t>(node->list_class)];
    upper->list_class = node->list_class;
    upper->older = node;
    upper->newer = node->newer;
    (node->newer != nullptr ? node->newer->older : list.tail) = upper;
    node->newer = upper;
  }
  ++stats_.splits;
  return upper;
}

void RadixTree::attach(Node* node) {
  if (++num_nodes_ > buckets_.size()) rehash(buckets_.size() * 2);
  node->hash = page_hash(node->parent->id,
                         std::span(node->tokens).first(static_cast<size_t>(pool_.page_size())));
  Node*& bucket = buckets_[node->hash & (buckets_.size() - 1)];
  node->chain = bucket;
  bucket = node;
  node->previous_sibling = nullptr;
  node->next_sibling = node->parent->first_child;
  if (node->next_sibling != nullptr) node->next_sibling->previous_sibling = node;
  node->parent->first_child = node;
}

void RadixTree::detach(Node* node) {
  --num_nodes_;
  Node** link = &buckets_[node->hash & (buckets_.size() - 1)];
  while (*link != node) link = &(*link)->chain;
  *link = node->chain;
  if (node->next_sibling != nullptr) node->next_sibling->previous_sibling = node->previous_sibling;
  (node->previous_sibling != nullptr ? node->previous_sibling->next_sibling
                                     : node->parent->first_child) = node->next_sibling;
}

void RadixTree::remove(Node* node) {
  unlist(node);
  detach(node);
  Node* parent = node->parent;
  delete node;
  // Namespaces come from clients; a root without prefixes must not stay behind.
  if (parent->parent == nullptr && parent->first_child == nullptr) {
    roots_.erase(parent->name_space);
  }
}

void RadixTree::rehash(size_t buckets) {
  std::vector<Node*> old = std::exchange(buckets_, std::vector<Node*>(buckets, nullptr));
  for (Node* node : old) {
    while (node != nullptr) {
      Node* next = node->chain;
      Node*& bucket = buckets_[node->hash & (buckets - 1)];
      node->chain = bucket;
      bucket = node;
      node = next;
    }
  }
}

// A node is locked by its own pins and by locked children, so that a pin only climbs to the first
// ancestor that is locked already.
void RadixTree::lock(Node* node) {
  bool was_locked = node->locked();
  ++node->pins;
  while (!was_locked && node->parent != nullptr) {
    unlist(node);
    locked_pages_ += static_cast<int>(node->pages.size());
    node = node->parent;
    was_locked = node->locked();
    ++node->locked_children;
  }
}

void RadixTree::unlock(Node* node) {
  --node->pins;
  while (!node->locked() && node->parent != nullptr) {
    list(node);
    locked_pages_ -= static_cast<int>(node->pages.size());
    node = node->parent;
    --node->locked_children;
  }
}

int RadixTree::class_of(const Node* node) const {
  switch (policy_) {
    case EvictionPolicy::kLru:
      return 0;
    case EvictionPolicy::kSlru:
      return node->uses > 1 ? 1 : 0;
    case EvictionPolicy::kLfu:
      return std::min<int>(std::bit_width(node->uses) - 1, kMaxClasses - 1);
  }
  return 0;
}

void RadixTree::list(Node* node) {
  node->list_class = static_cast<int8_t>(class_of(node));
  List& list = lists_[static_cast<size_t>(node->list_class)];
  node->newer = nullptr;
  node->older = list.tail;
  (list.tail != nullptr ? list.tail->newer : list.head) = node;
  list.tail = node;
}

void RadixTree::unlist(Node* node) {
  if (node->list_class < 0) return;
  List& list = lists_[static_cast<size_t>(node->list_class)];
  (node->older != nullptr ? node->older->newer : list.head) = node->newer;
  (node->newer != nullptr ? node->newer->older : list.tail) = node->older;
  node->list_class = -1;
}

}  // namespace capstan::cache
