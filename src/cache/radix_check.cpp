// RadixTree::check(): every invariant of the tree, in the order in which a break is best explained.
#include <string>

#include "cache/radix_tree.h"

namespace capstan::cache {
namespace {

Error broken(const std::string& what) { return internal_error("radix tree: " + what); }

std::string label(uint64_t id) { return "node " + std::to_string(id); }

}  // namespace

Status RadixTree::check_node(const Node* node, std::vector<uint8_t>& seen, int& pages, int& locked,
                             int& nodes, int& pins) const {
  const std::string who = label(node->id);
  int locked_children = 0;
  const Node* previous = nullptr;
  for (const Node* child = node->first_child; child != nullptr; child = child->next_sibling) {
    if (child->parent != node) return broken(label(child->id) + " does not know its parent");
    if (child->previous_sibling != previous) return broken(who + " has a torn list of children");
    if (child->uses > node->uses && node->parent != nullptr) {
      return broken(who + " was used less often than its child");
    }
    if (child->locked()) ++locked_children;
    CAPSTAN_RETURN_IF_ERROR(check_node(child, seen, pages, locked, nodes, pins));
    previous = child;
  }
  if (locked_children != node->locked_children) {
    return broken(who + " counts " + std::to_string(node->locked_children) +
                  " locked children of " + std::to_string(locked_children));
  }
  if (node->parent == nullptr) {
    if (node->pins != 0) return broken("a root is pinned");
    if (node->first_child == nullptr) return broken("an empty namespace was kept");
    return {};
  }
  ++nodes;
  pins += node->pins;
  pages += static_cast<int>(node->pages.size());
  if (node->pages.empty()) return broken(who + " is empty");
  if (node->tokens.size() != node->pages.size() * static_cast<size_t>(pool_.page_size())) {
    return broken(who + " has " + std::to_string(node->tokens.size()) + " tokens in " +
                  std::to_string(node->pages.size()) + " pages");
  }
  if (find_child(node->parent, node->tokens.data()) != node) {
    return broken(who + " is not found by its first page");
  }
  for (const int32_t page : node->pages) {
    if (pool_.owner(page) != PageOwner::kTree) {
      return broken(who + " holds page " + std::to_string(page) + " that the pool calls not its");
    }
    if (seen[static_cast<size_t>(page)]++ != 0) {
      return broken("page " + std::to_string(page) + " is in two places of the tree");
    }
  }
  if (node->pins < 0) return broken(who + " has a negative pin count");
  if (node->locked()) locked += static_cast<int>(node->pages.size());
  if (node->locked() == (node->list_class >= 0)) {
    return broken(who + (node->locked() ? " is locked and evictable" : " is unlocked, not listed"));
  }
  return {};
}

Status RadixTree::check_lists(int unlocked_nodes) const {
  int listed = 0;
  for (size_t c = 0; c < lists_.size(); ++c) {
    const Node* older = nullptr;
    for (const Node* node = lists_[c].head; node != nullptr; node = node->newer) {
      if (node->older != older) return broken("torn eviction list");
      if (node->list_class != static_cast<int>(c)) return broken("node on a list not its own");
      node->place = listed++;
      older = node;
    }
    if (lists_[c].tail != older) return broken("the eviction list's tail is not its end");
  }
  if (listed != unlocked_nodes) {
    return broken(std::to_string(listed) + " nodes are listed, " + std::to_string(unlocked_nodes) +
                  " are unlocked");
  }
  for (const List& list : lists_) {
    for (const Node* node = list.head; node != nullptr; node = node->newer) {
      if (node->parent->list_class >= 0 && node->parent->place < node->place) {
        return broken(label(node->id) + " would be evicted after its parent");
      }
    }
  }
  return {};
}

Status RadixTree::check() const {
  std::vector<uint8_t> seen(static_cast<size_t>(pool_.num_pages()), 0);
  int pages = 0;
  int locked = 0;
  int nodes = 0;
  int pins = 0;
  for (const auto& [name_space, root] : roots_) {
    if (root->name_space != name_space) return broken("a root is filed under a foreign namespace");
    CAPSTAN_RETURN_IF_ERROR(check_node(root.get(), seen, pages, locked, nodes, pins));
  }
  if (static_cast<size_t>(nodes) != num_nodes_) return broken("nodes in the hash table are lost");
  if (pages != cached_pages_ || pages != pool_.tree_pages()) {
    return broken("nodes hold " + std::to_string(pages) + " pages, counted " +
                  std::to_string(cached_pages_) + ", the pool says " +
                  std::to_string(pool_.tree_pages()));
  }
  if (locked != locked_pages_) {
    return broken(std::to_string(locked) + " pages are locked, counted " +
                  std::to_string(locked_pages_));
  }
  if (pins != live_pins_) {
    return broken("nodes count " + std::to_string(pins) + " pins of " + std::to_string(live_pins_));
  }
  int unlocked_nodes = nodes;
  for (const Node* node : buckets_) {
    for (; node != nullptr; node = node->chain) unlocked_nodes -= node->locked();
  }
  return check_lists(unlocked_nodes);
}

}  // namespace capstan::cache
