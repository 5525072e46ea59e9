#include "comm/communicator.h"

#include <unistd.h>

#include <algorithm>
#include <new>
#include <numeric>
#include <utility>

#include "comm/hierarchy.h"
#include "comm/local_communicator.h"
#include "comm/shared_segment.h"
#include "comm/socket_handshake.h"
#include "comm/socket_mesh.h"
#ifdef CAPSTAN_UCX_BUILT
#include "comm/ucx_mesh.h"
#endif
#include "platform/cpu.h"

namespace capstan::comm {
namespace {

/// FNV-1a over whole numbers.
uint64_t mix(uint64_t hash, uint64_t value) { return (hash ^ value) * 0x100000001b3; }

}  // namespace

uint64_t SubgroupKeys::next(std::span<const int> ranks) {
  const uint64_t nth = seen_[std::vector<int>(ranks.begin(), ranks.end())]++;
  uint64_t key = mix(mix(0xcbf29ce484222325, own_), nth);
  for (const int r : ranks) key = mix(key, static_cast<uint64_t>(r) + 1);
  return key ^ (key >> 29);
}

Result<int> check_subgroup(std::span<const int> ranks, int rank, int size) {
  std::string list;
  bool fine = true;
  int place = -1;
  for (size_t i = 0; i < ranks.size(); ++i) {
    list += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
    fine = fine && ranks[i] >= 0 && ranks[i] < size && (i == 0 || ranks[i] > ranks[i - 1]);
    if (ranks[i] == rank) place = static_cast<int>(i);
  }
  if (fine && place >= 0) return place;
  return invalid_argument(
      "rank " + std::to_string(rank) + " of " + std::to_string(size) + " asked for the subgroup {" +
      list + "}: " +
      (fine ? "it must be a member itself"
            : "ranks must ascend and lie between 0 and " + std::to_string(size - 1)));
}

Result<RegionView> PrivateRegionSource::region(uint64_t key, int ranks) {
  const std::lock_guard lock(mutex_);
  auto found = pending_.find(key);
  if (found == pending_.end()) {
    RegionView view = make_private_region(ranks, kPrivateBufferBytes);
    if (view.memory == nullptr) {
      return resource_exhausted("no memory for the exchange buffers of " + std::to_string(ranks) +
                                " ranks");
    }
    found = pending_.emplace(key, Pending{std::move(view), ranks}).first;
  }
  RegionView view = found->second.view;
  if (--found->second.missing == 0) pending_.erase(found);
  return view;
}

std::vector<std::unique_ptr<Communicator>> make_local_group(int ranks) {
  RegionView region = make_private_region(ranks, kPrivateBufferBytes);
  if (region.memory == nullptr) throw std::bad_alloc();
  region.crowded = ranks > platform::usable_cpu_count();
  for (int r = 0; r < ranks; ++r) region.names.push_back("rank " + std::to_string(r));
  const auto fate = std::make_shared<Fate>();
  const auto source = std::make_shared<PrivateRegionSource>();
  std::vector<std::unique_ptr<Communicator>> group;
  for (int r = 0; r < ranks; ++r) {
    group.push_back(std::make_unique<LocalCommunicator>(region, r, fate, source, 0));
  }
  return group;
}

Result<std::vector<std::unique_ptr<Communicator>>> make_group(const Topology& topology,
                                                              std::vector<NodeLink> links) {
  const auto refuse = [&](const Error& why) {
    for (const NodeLink& link : links) {
      if (link.fd >= 0) close(link.fd);
    }
    return why;
  };
  if (const Status s = check_links(topology, links); !s.ok()) return refuse(s.error());
#ifndef CAPSTAN_UCX_BUILT
  if (topology.ucx) {
    return refuse(invalid_argument("this program was built without UCX; use --comm-transport tcp"));
  }
#endif
  if (topology.nodes == 1) return make_local_group(topology.ranks_per_node);
  const Result<int> nodes_here = greet(topology, links);
  if (!nodes_here.ok()) return refuse(nodes_here.error());
  const bool crowded = *nodes_here * topology.ranks_per_node > platform::usable_cpu_count();

  std::vector<std::string> hosts(static_cast<size_t>(topology.nodes));
  for (const NodeLink& link : links) hosts[static_cast<size_t>(link.node)] = ", host " + link.host;
  const auto rank_name = [hosts, per_node = topology.ranks_per_node](int rank) {
    const int node = rank / per_node;
    return "rank " + std::to_string(rank) + " (node " + std::to_string(node) +
           hosts[static_cast<size_t>(node)] + ")";
  };
  std::vector<int> all(static_cast<size_t>(topology.nodes * topology.ranks_per_node));
  std::iota(all.begin(), all.end(), 0);
  const int first = topology.node * topology.ranks_per_node;
  const auto fate = std::make_shared<Fate>();
  std::vector<std::unique_ptr<Communicator>> group;
  if (!topology.shared_memory.empty()) {
    CAPSTAN_ASSIGN(const auto segment, SharedSegment::make(topology, std::move(links), fate));
    RegionView region = segment->region();
    region.crowded = crowded;
    for (const int rank : all) region.names.push_back(rank_name(rank));
    for (int r = 0; r < topology.ranks_per_node; ++r) {
      group.push_back(std::make_unique<LocalCommunicator>(region, first + r, fate, segment, 0));
    }
    return group;
  }
  std::shared_ptr<Mesh> mesh;
  if (topology.ucx) {
#ifdef CAPSTAN_UCX_BUILT
    CAPSTAN_ASSIGN(mesh, UcxMesh::make(topology, std::move(links), crowded, fate));
#endif
  } else {
    mesh = std::make_shared<SocketMesh>(std::move(links), topology.ranks_per_node, crowded, fate);
  }
  const auto source = std::make_shared<PrivateRegionSource>();
  for (int r = 0; r < topology.ranks_per_node; ++r) {
    CAPSTAN_ASSIGN(auto rank, make_hierarchy(all, first + r, topology.ranks_per_node, mesh, source,
                                             crowded, rank_name, 0));
    group.push_back(std::move(rank));
  }
  return group;
}

}  // namespace capstan::comm
