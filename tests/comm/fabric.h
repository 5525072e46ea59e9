// Groups of ranks for tests: each way the bytes can go, with ranks as threads of the test.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "comm/ucx_support.h"

namespace capstan::comm {

enum class Way {
  kLocal,   // threads of one process
  kShared,  // a shared memory segment
  kUnix,    // socket pairs
  kTcp,     // loopback TCP
  kUcx,     // UCX over loopback TCP
  kUcxAny,  // UCX over all of its ways within a machine
};

inline bool over_ucx(Way way) { return way == Way::kUcx || way == Way::kUcxAny; }

struct Shape {
  Way way = Way::kLocal;
  int nodes = 1;
  int per_node = 1;

  int size() const { return nodes * per_node; }
  std::string name() const {
    const char* ways[] = {"local", "shared", "unix", "tcp", "ucx", "ucxany"};
    return ways[static_cast<int>(way)] + std::to_string(nodes) + "x" + std::to_string(per_node);
  }
};

/// Those of the shapes that this build has.
template <size_t N>
std::vector<Shape> shapes(const Shape (&all)[N]) {
  std::vector<Shape> some;
  for (const Shape& shape : all) {
    if (!over_ucx(shape.way) || ucx_built_in()) some.push_back(shape);
  }
  return some;
}

using Ranks = std::vector<std::unique_ptr<Communicator>>;

/// A name that no other test process uses.
inline std::string segment_name() {
  static std::atomic<int> next{0};
  return "/capstan_test_" + std::to_string(getpid()) + "_" + std::to_string(next++);
}

#ifdef CAPSTAN_TSAN
/// UCX's hooks of memory functions would call ThreadSanitizer's locks in threads that have ended.
inline const bool kNoHooks = setenv("UCX_MEM_EVENTS", "n", 1) == 0;
#endif

/// The topology of one node.
inline Topology topology_of(const Shape& shape, int node, const std::string& segment) {
  Topology topology{shape.nodes, node, shape.per_node, segment};
  topology.ucx = over_ucx(shape.way);
  // What every machine has that tests run on.
  if (topology.ucx) {
    setenv("UCX_TLS", shape.way == Way::kUcx ? "tcp" : "sm,self,tcp", 1);
    // With a rendezvous for large pieces, as RDMA has it, and without.
    setenv("UCX_RNDV_THRESH", shape.way == Way::kUcx ? "auto" : "inf", 1);
  }
  return topology;
}

/// Two connected TCP sockets of this host.
inline void tcp_pair(int fds[2]) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(bind(listener, generic, length), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  ASSERT_EQ(getsockname(listener, generic, &length), 0);
  fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_EQ(connect(fds[0], generic, length), 0);
  fds[1] = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  ASSERT_GE(fds[1], 0);
  close(listener);
}

/// links[i][...]: of node i to all others.
inline std::vector<std::vector<NodeLink>> make_links(Way way, int nodes) {
  std::vector<std::vector<NodeLink>> links(nodes);
  for (int a = 0; a < nodes; ++a) {
    for (int b = a + 1; b < nodes; ++b) {
      int fds[2] = {-1, -1};
      if (way == Way::kTcp || over_ucx(way)) {
        tcp_pair(fds);
      } else {
        EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
      }
      links[a].push_back({b, fds[0], "host" + std::to_string(b)});
      links[b].push_back({a, fds[1], "host" + std::to_string(a)});
    }
  }
  return links;
}

/// All ranks of the group; nodes are played by threads of this process.
inline Ranks make_ranks(const Shape& shape) {
  if (shape.way == Way::kLocal) return make_local_group(shape.size());
  auto links = make_links(shape.way, shape.nodes);
  const std::string segment = shape.way == Way::kShared ? segment_name() : "";
  std::vector<Ranks> of_node(shape.nodes);
  std::vector<Topology> topologies;  // before there are threads: they set the environment
  for (int node = 0; node < shape.nodes; ++node) {
    topologies.push_back(topology_of(shape, node, segment));
  }
  std::vector<std::thread> threads;
  for (int node = 0; node < shape.nodes; ++node) {
    threads.emplace_back([&, node] {
      auto made = make_group(topologies[node], std::move(links[node]));
      ASSERT_TRUE(made.ok()) << made.error().message;
      of_node[node] = std::move(*made);
    });
  }
  for (auto& thread : threads) thread.join();
  Ranks ranks;
  for (Ranks& node : of_node) {
    for (auto& rank : node) ranks.push_back(std::move(rank));
  }
  return ranks;
}

/// Runs f(communicator) on one thread per rank.
inline void on_all(Ranks& ranks, const std::function<void(Communicator&)>& f) {
  std::vector<std::thread> threads;
  for (auto& rank : ranks) threads.emplace_back([&f, &rank] { f(*rank); });
  for (auto& thread : threads) thread.join();
}

}  // namespace capstan::comm
