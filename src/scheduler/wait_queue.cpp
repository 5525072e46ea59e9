#include "scheduler/wait_queue.h"

#include <algorithm>
#include <map>
#include <string>
#include <unordered_map>

namespace capstan::scheduler {

int usable_pages(const Sequence& sequence, int page_size) {
  if (!sequence.cacheable) return 0;
  int tokens = sequence.length() - 1;
  if (sequence.spec.logprob_start >= 0 && !sequence.prefilled) {
    tokens = std::clamp(sequence.spec.logprob_start - 1, 0, tokens);
  }
  return tokens / page_size;
}

void WaitQueue::insert(Sequence* sequence) {
  by_age_.insert(sequence);
  if (keyed()) by_key_.insert(sequence);
}

void WaitQueue::erase(Sequence* sequence) {
  by_age_.erase(sequence);
  if (keyed()) by_key_.erase(sequence);
}

void WaitQueue::admitted(Sequence* sequence) {
  passed_over_ = sequence == *by_age_.begin() ? 0 : passed_over_ + 1;
  erase(sequence);
}

void WaitQueue::begin_plan(const cache::RadixTree& tree, int page_size) {
  order_.clear();
  order_next_ = 0;
  if (by_age_.empty() || policy_ == Policy::kFcfs) return;
  if (policy_ == Policy::kLpm) order_by_match(tree, page_size);
  if (policy_ == Policy::kDfsWeight) order_by_weight(tree, page_size);
}

Sequence* WaitQueue::next() {
  if (policy_ != Policy::kFcfs && passed_over_ >= patience_ && !by_age_.empty()) {
    return *by_age_.begin();
  }
  if (dynamic()) {
    // Erased ones are skipped here, so that erase() need not search.
    while (order_next_ < order_.size() && !contains(order_[order_next_])) ++order_next_;
    return order_next_ < order_.size() ? order_[order_next_] : nullptr;
  }
  if (by_age_.empty()) return nullptr;
  return keyed() ? *by_key_.begin() : *by_age_.begin();
}

Sequence* WaitQueue::least_urgent() const {
  for (auto it = by_age_.rbegin(); it != by_age_.rend(); ++it) {
    if (!(*it)->admitted && !(*it)->spec.bypass_queue_limit) return *it;
  }
  return nullptr;
}

void WaitQueue::order_by_match(const cache::RadixTree& tree, int page_size) {
  for (Sequence* sequence : by_age_) {
    if (order_.size() == kWindow) break;
    if (sequence->peeked_at != tree.version()) {
      sequence->peeked_pages = tree.peek(sequence->spec.cache_namespace, sequence->tokens,
                                         usable_pages(*sequence, page_size))
                                   .pages;
      sequence->peeked_at = tree.version();
    }
    order_.push_back(sequence);
  }
  std::stable_sort(order_.begin(), order_.end(), [](const Sequence* a, const Sequence* b) {
    return a->peeked_pages > b->peeked_pages;
  });
}

void WaitQueue::order_by_weight(const cache::RadixTree& tree, int page_size) {
  struct Branch {
    int weight = 0;  // requests at or below this node
    std::vector<const cache::RadixTree::Node*> children;
    std::vector<Sequence*> requests;  // whose match ends here
  };
  using Node = cache::RadixTree::Node;
  std::unordered_map<const Node*, Branch> branches;  // null: above all namespaces
  size_t seen = 0;
  for (Sequence* sequence : by_age_) {
    if (seen++ == kWindow) break;
    const Node* node = tree.peek(sequence->spec.cache_namespace, sequence->tokens,
                                 usable_pages(*sequence, page_size))
                           .node;
    branches[node].requests.push_back(sequence);
    while (node != nullptr) {
      const bool is_new = branches[node].weight++ == 0;
      const Node* parent = cache::RadixTree::parent(node);
      if (is_new) branches[parent].children.push_back(node);
      node = parent;
    }
  }
  // Depth first with a stack of our own: prefixes may be thousands of nodes deep.
  std::vector<std::pair<const Node*, bool>> stack{{nullptr, false}};
  while (!stack.empty()) {
    const auto [node, expanded] = stack.back();
    stack.pop_back();
    Branch& branch = branches[node];
    if (expanded) {
      order_.insert(order_.end(), branch.requests.begin(), branch.requests.end());
      continue;
    }
    stack.emplace_back(node, true);  // the node's own requests come after its subtrees'
    std::sort(branch.children.begin(), branch.children.end(), [&](const Node* a, const Node* b) {
      const int wa = branches[a].weight;
      const int wb = branches[b].weight;
      return wa != wb ? wa < wb : cache::RadixTree::id(a) > cache::RadixTree::id(b);
    });
    for (const Node* child : branch.children) stack.emplace_back(child, false);
  }
}

Status WaitQueue::check() const {
  if (keyed() && by_key_.size() != by_age_.size()) {
    return internal_error("waiting queue: " + std::to_string(by_age_.size()) +
                          " requests by age, " + std::to_string(by_key_.size()) + " by policy");
  }
  return {};
}

}  // namespace capstan::scheduler
