// Groups of ranks for tests: each way the bytes can go, with ranks as threads of the test.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"

namespace capstan::comm {

enum class Way { kLocal };

struct Shape {
  Way way = Way::kLocal;
  int nodes = 1;
  int per_node = 1;

  int size() const { return nodes * per_node; }
  std::string name() const { return "local" + std::to_string(size()); }
};

using Ranks = std::vector<std::unique_ptr<Communicator>>;

inline Ranks make_ranks(const Shape& shape) { return make_local_group(shape.size()); }

/// Runs f(communicator) on one thread per rank.
inline void on_all(Ranks& ranks, const std::function<void(Communicator&)>& f) {
  std::vector<std::thread> threads;
  for (auto& rank : ranks) threads.emplace_back([&f, &rank] { f(*rank); });
  for (auto& thread : threads) thread.join();
}

}  // namespace capstan::comm
