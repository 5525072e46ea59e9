#include "comm/hierarchy.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "comm/local_slices.h"

namespace capstan::comm {

HierarchyCommunicator::HierarchyCommunicator(HierarchyPlace place, RegionView region, int local)
    : place_(std::move(place)),
      shared_transport_("shared memory + " + std::string(place_.mesh->transport())),
      keys_(place_.key),
      parts_(std::max(place_.nodes.size(), static_cast<size_t>(region.ranks))),
      local_(std::move(region), local, place_.mesh->shared_fate(), place_.source, place_.key) {}

Status HierarchyCommunicator::finish(bool ok) const {
  if (ok && !fate().failed()) return {};
  return fate().error();
}

size_t HierarchyCommunicator::node_of(int rank) const {
  size_t node = 0;
  while (rank >= place_.nodes[node].first + place_.nodes[node].count) ++node;
  return node;
}

std::vector<Flow> HierarchyCommunicator::flows() const {
  std::vector<Flow> all;
  all.reserve(place_.nodes.size() - 1);
  for (size_t node = 0; node < place_.nodes.size(); ++node) {
    if (node != place_.mine) all.emplace_back().node = place_.nodes[node].node;
  }
  return all;
}

Status HierarchyCommunicator::all_gather(const void* send, void* recv, int64_t bytes) {
  CAPSTAN_RETURN_IF_ERROR(check_count(bytes));
  if (bytes == 0) return finish(true);
  const auto length = static_cast<size_t>(bytes);
  auto* const out = static_cast<std::byte*>(recv);
  return finish(local_.with_offers({send, recv}, [&] {
    if (leads()) {
      std::vector<Flow> all = flows();
      for (size_t node = 0; node < place_.nodes.size(); ++node) {
        if (node == place_.mine) continue;
        const NodeRanks& there = place_.nodes[node];
        Flow& flow = all[flow_index(node)];
        for (int r = 0; r < here().count; ++r) flow.add_send(port().offered(r).send, length);
        flow.add_recv(out + there.first * bytes, static_cast<size_t>(there.count * bytes));
      }
      if (!place_.channel->exchange(all)) return false;
    }
    for (int r = 0; r < here().count; ++r) {
      std::byte* const into = out + (here().first + r) * bytes;
      if (into != port().offered(r).send) std::memmove(into, port().offered(r).send, length);
    }
    if (!port().meet()) return false;
    if (leads()) return true;
    // The parts of the other nodes lie before and behind this node's.
    const auto* const from = static_cast<const std::byte*>(port().offered(0).recv);
    const int64_t before = here().first * bytes;
    const int64_t behind = (here().first + here().count) * bytes;
    std::memcpy(out, from, static_cast<size_t>(before));
    std::memcpy(out + behind, from + behind, static_cast<size_t>(size() * bytes - behind));
    return true;
  }));
}

Status HierarchyCommunicator::all_to_all(const void* send, void* recv, int64_t bytes) {
  CAPSTAN_RETURN_IF_ERROR(check_count(bytes));
  if (bytes == 0) return finish(true);
  return finish(local_.with_offers({send, recv}, [&] {
    const auto sent_by = [&](int r) {
      return static_cast<const std::byte*>(port().offered(r).send);
    };
    if (leads()) {
      // Frames between two nodes: by sender, then by receiver.
      std::vector<Flow> all = flows();
      for (size_t node = 0; node < place_.nodes.size(); ++node) {
        if (node == place_.mine) continue;
        const NodeRanks& there = place_.nodes[node];
        Flow& flow = all[flow_index(node)];
        for (int r = 0; r < here().count; ++r) {
          flow.add_send(sent_by(r) + there.first * bytes, static_cast<size_t>(there.count * bytes));
        }
        for (int s = 0; s < there.count; ++s) {
          for (int r = 0; r < here().count; ++r) {
            flow.add_recv(
                static_cast<std::byte*>(port().offered(r).recv) + (there.first + s) * bytes,
                static_cast<size_t>(bytes));
          }
        }
      }
      if (!place_.channel->exchange(all)) return false;
    }
    for (int r = 0; r < here().count; ++r) {
      std::memcpy(static_cast<std::byte*>(recv) + (here().first + r) * bytes,
                  sent_by(r) + rank() * bytes, static_cast<size_t>(bytes));
    }
    return true;
  }));
}

Status HierarchyCommunicator::broadcast(void* data, int64_t bytes, int root) {
  CAPSTAN_RETURN_IF_ERROR(check_count(bytes));
  CAPSTAN_RETURN_IF_ERROR(check_root(root, size()));
  if (bytes == 0) return finish(true);
  const auto length = static_cast<size_t>(bytes);
  const size_t root_node = node_of(root);
  return finish(local_.with_offers({nullptr, data}, [&] {
    if (root_node == place_.mine) {
      if (rank() == root) {
        std::vector<Flow> all = flows();
        for (Flow& flow : all) flow.add_send(data, length);
        return place_.channel->exchange(all);
      }
      std::memcpy(data, port().offered(root - here().first).recv, length);
      return true;
    }
    if (leads()) {
      std::vector<Flow> one(1);
      one[0].node = place_.nodes[root_node].node;
      one[0].add_recv(data, length);
      if (!place_.channel->exchange(one)) return false;
    }
    if (!port().meet()) return false;
    if (!leads()) std::memcpy(data, port().offered(0).recv, length);
    return true;
  }));
}

Status HierarchyCommunicator::gather(const void* send, void* recv, std::span<const int64_t> bytes,
                                     int root) {
  CAPSTAN_RETURN_IF_ERROR(check_root(root, size()));
  CAPSTAN_RETURN_IF_ERROR(check_parts(bytes, size()));
  const size_t root_node = node_of(root);
  const auto total = [&](const NodeRanks& node) {
    int64_t sum = 0;
    for (int r = 0; r < node.count; ++r) sum += bytes[static_cast<size_t>(node.first + r)];
    return sum;
  };
  return finish(local_.with_offers({send, nullptr}, [&] {
    if (root_node != place_.mine) {
      if (!leads() || total(here()) == 0) return true;
      std::vector<Flow> one(1);
      one[0].node = place_.nodes[root_node].node;
      for (int r = 0; r < here().count; ++r) {
        one[0].add_send(port().offered(r).send,
                        static_cast<size_t>(bytes[static_cast<size_t>(here().first + r)]));
      }
      return place_.channel->exchange(one);
    }
    if (rank() != root) return true;
    std::vector<Flow> all;
    auto* out = static_cast<std::byte*>(recv);
    for (size_t node = 0; node < place_.nodes.size(); ++node) {
      const NodeRanks& there = place_.nodes[node];
      if (node == place_.mine) {
        for (int r = 0; r < there.count; ++r) {
          const auto length = static_cast<size_t>(bytes[static_cast<size_t>(there.first + r)]);
          if (length > 0 && out != port().offered(r).send) {
            std::memmove(out, port().offered(r).send, length);
          }
          out += length;
        }
        continue;
      }
      if (total(there) == 0) continue;
      Flow& flow = all.emplace_back();
      flow.node = there.node;
      flow.add_recv(out, static_cast<size_t>(total(there)));
      out += total(there);
    }
    return place_.channel->exchange(all);
  }));
}

Status HierarchyCommunicator::barrier() {
  if (!port().meet()) return finish(false);
  if (leads()) {
    std::vector<Flow> all = flows();
    for (Flow& flow : all) flow.sends = flow.receives = true;
    if (!place_.channel->exchange(all)) return finish(false);
  }
  return finish(port().meet());
}

Status HierarchyCommunicator::send_message(std::span<const std::byte> message) {
  if (rank() != 0) return only_rank_0("send_message()", rank());
  std::vector<Flow> all = flows();
  for (Flow& flow : all) flow.add_send(message.data(), message.size());
  if (!place_.channel->exchange(all)) return finish(false);
  return local_.send_message(message);
}

Result<std::span<const std::byte>> HierarchyCommunicator::receive_message() {
  if (rank() == 0) return only_rank_0("receive_message()", 0);
  if (place_.mine == 0 || !leads()) return local_.receive_message();
  std::vector<Flow> one(1);
  one[0].node = place_.nodes[0].node;
  one[0].receives = true;
  one[0].any = &message_;
  if (!place_.channel->exchange(one, Patience::kIdle)) return fate().error();
  const std::span<const std::byte> message(message_.data(), one[0].any_bytes);
  CAPSTAN_RETURN_IF_ERROR(local_.send_message(message));
  return message;
}

Result<std::unique_ptr<Communicator>> HierarchyCommunicator::subgroup(std::span<const int> ranks) {
  CAPSTAN_RETURN_IF_ERROR(check_subgroup(ranks, rank(), size()).status());
  if (fate().failed()) return fate().error();
  std::vector<int> world;
  for (const int r : ranks) world.push_back(place_.world[static_cast<size_t>(r)]);
  return make_hierarchy(world, place_.world[static_cast<size_t>(rank())],
                        place_.mesh->ranks_per_node(), place_.mesh, place_.source, port().crowded(),
                        place_.rank_name, keys_.next(ranks));
}

Result<std::unique_ptr<Communicator>> make_hierarchy(std::span<const int> ranks, int rank,
                                                     int ranks_per_node, std::shared_ptr<Mesh> mesh,
                                                     std::shared_ptr<RegionSource> source,
                                                     bool crowded,
                                                     std::function<std::string(int)> rank_name,
                                                     uint64_t key) {
  HierarchyPlace place;
  std::vector<std::string> names;
  int local = 0;
  for (size_t i = 0; i < ranks.size(); ++i) {
    const int node = ranks[i] / ranks_per_node;
    if (place.nodes.empty() || place.nodes.back().node != node) {
      place.nodes.push_back({node, static_cast<int>(i), 0});
    }
    if (node == rank / ranks_per_node) {
      place.mine = place.nodes.size() - 1;
      if (ranks[i] == rank) local = place.nodes.back().count;
      names.push_back(rank_name(ranks[i]));
    }
    ++place.nodes.back().count;
  }
  const int here = place.nodes[place.mine].count;
  CAPSTAN_ASSIGN(RegionView region, source->region(key, here));
  region.crowded = crowded;
  region.names = std::move(names);
  if (place.nodes.size() == 1) {
    return std::unique_ptr<Communicator>(std::make_unique<LocalCommunicator>(
        std::move(region), local, mesh->shared_fate(), std::move(source), key));
  }
  place.world.assign(ranks.begin(), ranks.end());
  place.channel = mesh->channel(key, here);
  place.mesh = std::move(mesh);
  place.source = std::move(source);
  place.rank_name = std::move(rank_name);
  place.key = key;
  return std::unique_ptr<Communicator>(
      std::make_unique<HierarchyCommunicator>(std::move(place), std::move(region), local));
}

}  // namespace capstan::comm
