// How many tokens each expert of each layer has been given.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace capstan::model {

/// Written by the thread that runs steps, read by any.
class ExpertLoad {
 public:
  /// Layer l counts experts[l] experts, 0 for none.
  explicit ExpertLoad(const std::vector<int>& experts) : sizes_(experts) {
    for (const int n : experts) {
      counts_.push_back(std::make_unique<std::atomic<uint64_t>[]>(static_cast<size_t>(n)));
    }
  }

  void add(int layer, std::span<const int32_t> experts) {
    std::atomic<uint64_t>* counts = counts_[static_cast<size_t>(layer)].get();
    for (const int32_t e : experts) {  // one writer: no read-modify-write is needed
      counts[e].store(counts[e].load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
  }

  std::vector<std::vector<uint64_t>> snapshot() const {
    std::vector<std::vector<uint64_t>> out;
    for (size_t l = 0; l < counts_.size(); ++l) {
      out.emplace_back();
      for (int e = 0; e < sizes_[l]; ++e) {
        out.back().push_back(counts_[l][static_cast<size_t>(e)].load(std::memory_order_relaxed));
      }
    }
    return out;
  }

 private:
  std::vector<int> sizes_;
  std::vector<std::unique_ptr<std::atomic<uint64_t>[]>> counts_;
};

}  // namespace capstan::model
