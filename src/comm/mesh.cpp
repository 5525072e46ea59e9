#include "comm/mesh.h"

#include <cstring>
#include <utility>

namespace capstan::comm {

void consume(std::vector<iovec>& vectors, size_t bytes) {
  size_t gone = 0;
  for (; gone < vectors.size() && bytes >= vectors[gone].iov_len; ++gone) {
    bytes -= vectors[gone].iov_len;
  }
  vectors.erase(vectors.begin(), vectors.begin() + static_cast<std::ptrdiff_t>(gone));
  if (bytes > 0) {
    vectors[0].iov_base = static_cast<std::byte*>(vectors[0].iov_base) + bytes;
    vectors[0].iov_len -= bytes;
  }
}

size_t total_bytes(const std::vector<iovec>& vectors) {
  size_t sum = 0;
  for (const iovec& v : vectors) sum += v.iov_len;
  return sum;
}

Mesh::Mesh(const std::vector<NodeLink>& links, int ranks_per_node, bool crowded,
           std::shared_ptr<Fate> fate)
    : ranks_per_node_(ranks_per_node), crowded_(crowded), fate_(std::move(fate)) {
  for (const NodeLink& link : links) {
    const auto node = static_cast<size_t>(link.node);
    if (hosts_.size() <= node) hosts_.resize(node + 1);
    hosts_[node] = link.host;
  }
}

std::shared_ptr<Channel> Mesh::channel(uint64_t key, int users) {
  const std::lock_guard lock(channels_mutex_);
  auto found = channels_.find(key);
  if (found == channels_.end()) {
    found = channels_.emplace(key, Pending{make_channel(key), users}).first;
  }
  std::shared_ptr<Channel> channel = found->second.channel;
  if (--found->second.missing == 0) channels_.erase(found);
  return channel;
}

std::string Mesh::name(int node) const {
  return "rank " + std::to_string(node * ranks_per_node_) + " (node " + std::to_string(node) +
         ", host " + hosts_[static_cast<size_t>(node)] + ")";
}

void Mesh::lost(int node, const std::string& how) {
  fate_->fail(unavailable(name(node) + ": its connection " + how));
}

void Mesh::lost(int node, const char* call, int error) {
  lost(node, std::string("broke (") + call + ": " + std::strerror(error) + ")");
}

void Mesh::confused(int node, const std::string& what) {
  fate_->fail(unavailable(name(node) + " sent " + what));
}

void Mesh::wrong_length(int node, uint64_t got, uint64_t due) {
  confused(node, "a frame of " + std::to_string(got) + " bytes where " + std::to_string(due) +
                     " were due: the ranks do not call the same operation");
}

void Mesh::wrong_sequence(int node, uint64_t got, uint64_t due) {
  confused(node,
           "frame " + std::to_string(got) + " where frame " + std::to_string(due) + " was due");
}

void Mesh::unasked(int node, uint64_t bytes) {
  confused(node, "a frame of " + std::to_string(bytes) + " bytes unasked");
}

}  // namespace capstan::comm
