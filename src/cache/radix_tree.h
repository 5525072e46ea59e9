// The prefix cache: which page holds the KV of which token prefix.
//
// A node is a run of whole pages: tokens.size() == pages.size() * page_size. The path from a root
// to a node spells a prefix. Children are found by a hash of their first page and verified by
// comparing tokens; equal hashes alone never make a hit. Each cache namespace has a root of its
// own.
//
// Ownership: the tree owns the pages in its nodes. A Pin keeps the path down to its node from being
// evicted; nodes may be split under a pin, which keeps covering the same prefix.
//
// Eviction: all unlocked nodes stand on intrusive lists in the order of their last use. Using a
// node uses its ancestors, and a path is listed from its leaf upwards, so children always stand
// before their parent and the front of the list is always a leaf: eviction is O(1) per node and
// exact LRU, without searching the place of a parent that has just become a leaf. (A list of leaves
// alone would have to guess that place.) A long leaf is trimmed from its end by just the pages
// needed.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"
#include "cache/eviction_policy.h"
#include "cache/page_pool.h"

namespace capstan::cache {

class RadixTree {
 public:
  struct Node;

  /// Holds a prefix in the cache for as long as it lives. Move-only; must not outlive the tree.
  class Pin {
   public:
    Pin() = default;
    Pin(Pin&& other) noexcept { swap(other); }
    Pin& operator=(Pin&& other) noexcept {
      Pin(std::move(other)).swap(*this);
      return *this;
    }
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;
    ~Pin() { reset(); }

    void reset();
    int pages() const { return pages_; }  // length of the prefix held
    const Node* node() const { return node_; }

   private:
    friend class RadixTree;
    Pin(RadixTree* tree, Node* node, int pages) : tree_(tree), node_(node), pages_(pages) {}
    void swap(Pin& other) {
      std::swap(tree_, other.tree_);
      std::swap(node_, other.node_);
      std::swap(pages_, other.pages_);
    }

    RadixTree* tree_ = nullptr;
    Node* node_ = nullptr;
    int pages_ = 0;
  };

  struct Match {
    const Node* node = nullptr;  // where the match ends, maybe inside the node; null: no match
    int pages = 0;
    int unlocked_pages = 0;  // of these, pages that pinning the match would make unevictable
  };

  struct Stats {
    uint64_t inserted_pages = 0;   // taken over from requests
    uint64_t duplicate_pages = 0;  // given back to the pool since the tree had them already
    uint64_t evicted_pages = 0;
    uint64_t splits = 0;
  };

  /// The pool must outlive the tree.
  RadixTree(PagePool& pool, EvictionPolicy policy);
  ~RadixTree();
  RadixTree(const RadixTree&) = delete;
  RadixTree& operator=(const RadixTree&) = delete;

  /// Longest cached prefix of `tokens` in whole pages, at most max_pages. Changes nothing, not even
  /// the order of eviction.
  Match peek(uint64_t name_space, std::span<const int32_t> tokens, int max_pages) const;

  /// As peek, and pins what was found; appends its page numbers to `pages`.
  Pin acquire(uint64_t name_space, std::span<const int32_t> tokens, int max_pages,
              std::vector<int32_t>& pages);

  /// Puts the whole pages of `tokens` into the tree and moves the pin to their end. `tokens` must
  /// begin with the prefix pinned; table[i] is the page of tokens [i*page_size, (i+1)*page_size),
  /// owned by the tree below pin.pages() and by the request from there on. Pages that the tree had
  /// meanwhile got from somebody else go back to the pool and are replaced in `table`.
  void extend(Pin& pin, uint64_t name_space, std::span<const int32_t> tokens,
              std::vector<int32_t>& table);

  /// Frees up to `pages` unlocked pages; returns how many. O(nodes touched + pages freed).
  int evict(int pages);
  /// Drops every unlocked prefix.
  void clear() { evict(evictable_pages()); }

  int cached_pages() const { return cached_pages_; }
  int evictable_pages() const { return cached_pages_ - locked_pages_; }
  /// Pages that would become evictable if this pin alone went.
  int exclusive_pages(const Pin& pin) const;
  /// Grows with every change of what peek() can find.
  uint64_t version() const { return version_; }
  int live_pins() const { return live_pins_; }
  int namespaces() const { return static_cast<int>(roots_.size()); }
  const Stats& stats() const { return stats_; }

  /// Hash by which a child is found, salted with its parent's id. Not an identity.
  static uint64_t page_hash(uint64_t parent_id, std::span<const int32_t> page_tokens);
  static const Node* parent(const Node* node);  // null for a node directly below its root
  static uint64_t id(const Node* node);         // unique, ascending by creation
  /// Page numbers along the path to the pin, in order.
  std::vector<int32_t> path_pages(const Pin& pin) const;

  /// Structure, hash chains, list membership and order, lock counts, token and page counts, page
  /// ownership; the message names the first thing broken.
  Status check() const;

 private:
  static constexpr int kMaxClasses = 16;  // frequency classes: 1, 2-3, 4-7, ... uses
  struct List {
    Node* head = nullptr;  // evicted first
    Node* tail = nullptr;
  };

  Node* find_child(const Node* parent, const int32_t* page_tokens) const;
  int common_pages(const Node* node, std::span<const int32_t> tokens) const;
  Node* root(uint64_t name_space);
  Node* make_node(Node* parent, std::span<const int32_t> tokens, std::span<const int32_t> pages);
  Node* split(Node* node, int pages);  // returns the new upper part
  void attach(Node* node);
  void detach(Node* node);
  void remove(Node* node);
  void rehash(size_t buckets);
  void lock(Node* node);
  void unlock(Node* node);
  void list(Node* node);
  void unlist(Node* node);
  int class_of(const Node* node) const;
  Status check_node(const Node* node, std::vector<uint8_t>& seen, int& pages, int& locked,
                    int& nodes, int& pins) const;
  Status check_lists(int unlocked_nodes) const;

  PagePool& pool_;
  EvictionPolicy policy_;
  std::unordered_map<uint64_t, std::unique_ptr<Node>> roots_;
  std::vector<Node*> buckets_;  // intrusive chains through Node::chain; size is a power of two
  size_t num_nodes_ = 0;
  std::array<List, kMaxClasses> lists_;
  int cached_pages_ = 0;
  int locked_pages_ = 0;
  int live_pins_ = 0;
  uint64_t next_id_ = 1;
  uint64_t version_ = 0;
  Stats stats_;
};

struct RadixTree::Node {
  uint64_t id = 0;
  uint64_t hash = 0;        // of the first page, salted with the parent's id
  uint64_t name_space = 0;  // roots only
  Node* parent = nullptr;   // null: a root
  Node* first_child = nullptr;
  Node* previous_sibling = nullptr;
  Node* next_sibling = nullptr;
  Node* chain = nullptr;
  Node* newer = nullptr;
  Node* older = nullptr;
  std::vector<int32_t> tokens;
  std::vector<int32_t> pages;
  int pins = 0;
  int locked_children = 0;
  uint32_t uses = 1;  // never less than any child's
  int8_t list_class = -1;
  mutable int place = 0;  // scratch of check()

  bool locked() const { return pins > 0 || locked_children > 0; }
};

}  // namespace capstan::cache
