#include "comm/shared_segment.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

#include "comm/shared_wait.h"
#include "comm/socket_handshake.h"

namespace capstan::comm {
namespace {

constexpr uint64_t kMagic = 0x31474553'53504143;  // "CAPSSEG1"
constexpr size_t kPage = 4096;
constexpr int kEntries = 512;  // subgroups alive at once, in all

// Buffers of the whole group. Each chunk costs two rounds, a fraction of a microsecond each.
constexpr size_t kBufferBytes = size_t{512} << 10;
// Subgroups get smaller ones, and each rank may be in so many of them at once.
constexpr size_t kSubgroupBufferBytes = size_t{64} << 10;
constexpr size_t kSubgroupsPerRank = 12;

// 21 MB for 8 ranks: a third of what Docker gives a container.
static_assert(8 * 2 * (kBufferBytes + kSubgroupsPerRank * kSubgroupBufferBytes) < 40u << 20);

std::string remedy(size_t bytes) {
  return "; enlarge /dev/shm to " + std::to_string((bytes >> 20) + 1) +
         " MiB or more (docker run --shm-size, an emptyDir of medium Memory at /dev/shm) or use "
         "--comm-transport tcp";
}

/// A descriptor that closes itself.
struct File {
  int fd = -1;
  ~File() {
    if (fd >= 0) close(fd);
  }
};

uint64_t fresh_number() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32 | device()) | 1;
}

}  // namespace

/// A subgroup's place.
struct SharedSegment::Entry {
  uint64_t key;
  uint64_t offset;   // from the segment's start; 0: never used
  uint32_t ranks;    // that it was laid out for
  uint32_t missing;  // members that have not come yet
  uint32_t inside;   // members that have come and not left
};

struct SharedSegment::Head {
  uint64_t magic;
  uint64_t nonce;  // of this run: a segment left by another one has another
  uint64_t bytes;
  std::atomic<uint32_t> locked;
  uint64_t used;  // bytes given away; all below with the lock
  Entry entries[kEntries];
};

static size_t main_region_at(size_t head) { return (head + kPage - 1) / kPage * kPage; }

size_t SharedSegment::bytes_for(int ranks) {
  const size_t subgroup = region_bytes(1, kSubgroupBufferBytes);
  return main_region_at(sizeof(Head)) + region_bytes(ranks, kBufferBytes) +
         static_cast<size_t>(ranks) * kSubgroupsPerRank * subgroup;
}

/// Maps `bytes` of the segment; the descriptor may be closed then.
static Result<void*> map(int fd, size_t bytes) {
  void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
  if (base != MAP_FAILED) return base;
  return resource_exhausted("cannot map " + std::to_string(bytes) +
                            " bytes of shared memory: " + std::strerror(errno));
}

static Result<void*> create(const std::string& name, size_t bytes) {
  shm_unlink(name.c_str());  // left by a run that was killed in between; others keep their mapping
  const File file{shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
  if (file.fd < 0) {
    return resource_exhausted("cannot make the shared memory segment " + name + ": " +
                              std::strerror(errno) + remedy(bytes));
  }
  // Reserves every page now: a full /dev/shm must not become a SIGBUS in the middle of a step.
  if (const int error = posix_fallocate(file.fd, 0, static_cast<off_t>(bytes)); error != 0) {
    shm_unlink(name.c_str());
    return resource_exhausted("cannot reserve " + std::to_string(bytes >> 20) +
                              " MiB for the shared memory segment " + name + ": " +
                              std::strerror(error) + remedy(bytes));
  }
  return map(file.fd, bytes);
}

static Result<void*> open_existing(const std::string& name, size_t bytes) {
  const File file{shm_open(name.c_str(), O_RDWR | O_CLOEXEC, 0)};
  if (file.fd < 0) {
    return not_found("cannot open the shared memory segment " + name +
                     " that node 0 made: " + std::strerror(errno) +
                     "; the processes must see the same /dev/shm, or use --comm-transport tcp");
  }
  struct stat info {};
  if (fstat(file.fd, &info) != 0 || static_cast<size_t>(info.st_size) != bytes) {
    return not_found("the shared memory segment " + name + " has " + std::to_string(info.st_size) +
                     " bytes instead of " + std::to_string(bytes) +
                     ": it is not node 0's; the processes must see the same /dev/shm");
  }
  return map(file.fd, bytes);
}

Result<std::shared_ptr<SharedSegment>> SharedSegment::make(const Topology& topology,
                                                           std::vector<NodeLink> links,
                                                           std::shared_ptr<Fate> fate) {
  const size_t bytes = bytes_for(topology.nodes * topology.ranks_per_node);
  const std::string& name = topology.shared_memory;
  // Two words each: an empty text for success or what went wrong, and node 0's for all.
  if (topology.node == 0) {
    Result<void*> base = create(name, bytes);
    std::string trouble;
    uint64_t nonce = 0;
    if (base.ok()) {
      auto* head = static_cast<Head*>(*base);
      head->magic = kMagic;
      head->nonce = nonce = fresh_number();
      head->bytes = bytes;
      head->used = main_region_at(sizeof(Head)) +
                   region_bytes(topology.nodes * topology.ranks_per_node, kBufferBytes);
    } else {
      trouble = "node 0: " + base.error().message;
    }
    Status status;
    for (const NodeLink& link : links) {
      if (status.ok()) status = send_text(link, std::to_string(nonce) + " " + trouble);
    }
    for (const NodeLink& link : links) {
      if (!status.ok() || nonce == 0) break;
      Result<std::string> answer = receive_text(link);
      if (!answer.ok()) {
        status = answer.error();
      } else if (trouble.empty() && !answer->empty()) {
        trouble = node_name(link) + ": " + *answer;
      }
    }
    if (base.ok()) shm_unlink(name.c_str());
    for (const NodeLink& link : links) {
      if (status.ok() && nonce != 0) status = send_text(link, trouble);
    }
    if (status.ok() && !trouble.empty()) status = resource_exhausted(trouble);
    if (!status.ok()) {
      if (base.ok()) munmap(*base, bytes);
      for (const NodeLink& link : links) close(link.fd);
      return status.error();
    }
    return std::make_shared<SharedSegment>(*base, bytes, topology, std::move(links),
                                           std::move(fate));
  }

  const NodeLink& first = *std::find_if(links.begin(), links.end(),
                                        [](const NodeLink& link) { return link.node == 0; });
  const auto attach = [&]() -> Result<void*> {
    CAPSTAN_ASSIGN(const std::string word, receive_text(first));
    const size_t space = word.find(' ');
    const uint64_t nonce = std::strtoull(word.c_str(), nullptr, 10);
    if (nonce == 0) return resource_exhausted(word.substr(std::min(space, word.size() - 1) + 1));
    Result<void*> base = open_existing(name, bytes);
    if (base.ok() &&
        (static_cast<Head*>(*base)->magic != kMagic || static_cast<Head*>(*base)->nonce != nonce)) {
      munmap(*base, bytes);
      base = not_found("the shared memory segment " + name +
                       " is another group's: the processes must see the same /dev/shm");
    }
    CAPSTAN_RETURN_IF_ERROR(send_text(first, base.ok() ? "" : base.error().message));
    const Result<std::string> verdict = receive_text(first);
    if (verdict.ok() && verdict->empty() && base.ok()) return base;
    if (base.ok()) munmap(*base, bytes);
    if (!verdict.ok()) return verdict.error();
    return resource_exhausted(*verdict);
  };
  Result<void*> base = attach();
  if (!base.ok()) {
    for (const NodeLink& link : links) close(link.fd);
    return base.error();
  }
  return std::make_shared<SharedSegment>(*base, bytes, topology, std::move(links), std::move(fate));
}

SharedSegment::SharedSegment(void* base, size_t bytes, const Topology& topology,
                             std::vector<NodeLink> links, std::shared_ptr<Fate> fate)
    : base_(base),
      bytes_(bytes),
      topology_(topology),
      links_(std::move(links)),
      fate_(std::move(fate)) {
  stop_fd_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  // Signals are the program's main thread's business.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  watcher_ = std::thread([this] { watch(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

SharedSegment::~SharedSegment() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(stop_fd_, &one, sizeof(one));
  watcher_.join();
  if (stop_fd_ >= 0) close(stop_fd_);
  for (const NodeLink& link : links_) close(link.fd);
  munmap(base_, bytes_);
}

RegionView SharedSegment::main_region() const {
  return region_at(static_cast<std::byte*>(base_) + main_region_at(sizeof(Head)),
                   topology_.nodes * topology_.ranks_per_node, kBufferBytes);
}

RegionView SharedSegment::region() {
  RegionView view = main_region();
  view.memory = shared_from_this();
  view.one_process = false;
  return view;
}

bool SharedSegment::lock() {
  Waiter waiter(true, Patience::kStep);
  while (head()->locked.exchange(1) != 0) {
    if (fate_->failed()) return false;  // its holder may be dead
    waiter.relax();
  }
  return true;
}

void SharedSegment::unlock() { head()->locked.store(0); }

Result<RegionView> SharedSegment::region(uint64_t key, int ranks) {
  if (!lock()) return fate_->error();
  const auto n = static_cast<uint32_t>(ranks);
  Entry* mine = nullptr;
  Entry* vacant = nullptr;
  Entry* unused = nullptr;
  for (Entry& entry : head()->entries) {
    if (entry.missing > 0 && entry.key == key) mine = &entry;
    if (entry.offset != 0 && entry.missing == 0 && entry.inside == 0 && entry.ranks == n) {
      vacant = &entry;
    }
    if (entry.offset == 0 && unused == nullptr) unused = &entry;
  }
  const size_t bytes = region_bytes(ranks, kSubgroupBufferBytes);
  if (mine == nullptr) {
    if (vacant == nullptr) {
      if (unused == nullptr || head()->used + bytes > head()->bytes) {
        unlock();
        return resource_exhausted("no shared memory for another subgroup of " +
                                  std::to_string(ranks) + " ranks: each rank may be in " +
                                  std::to_string(kSubgroupsPerRank) + " at once");
      }
      vacant = unused;
      vacant->offset = head()->used;
      vacant->ranks = n;
      head()->used += bytes;
    }
    mine = vacant;
    mine->key = key;
    mine->missing = n;
    // Rounds start anew; what the buffers hold does not matter.
    std::memset(static_cast<std::byte*>(base_) + mine->offset, 0,
                bytes - static_cast<size_t>(ranks) * 2 * kSubgroupBufferBytes);
  }
  --mine->missing;
  ++mine->inside;
  unlock();
  RegionView view =
      region_at(static_cast<std::byte*>(base_) + mine->offset, ranks, kSubgroupBufferBytes);
  view.one_process = false;
  view.memory = std::shared_ptr<void>(
      mine, [self = shared_from_this()](void* entry) { self->leave(*static_cast<Entry*>(entry)); });
  return view;
}

void SharedSegment::leave(Entry& entry) {
  if (!lock()) return;
  --entry.inside;
  unlock();
}

void SharedSegment::watch() {
  std::vector<pollfd> fds = {{stop_fd_, POLLIN, 0}};
  for (const NodeLink& link : links_) fds.push_back({link.fd, POLLIN, 0});
  for (;;) {
    if (poll(fds.data(), fds.size(), -1) < 0) continue;
    if (fds[0].revents != 0) return;
    for (size_t i = 1; i < fds.size(); ++i) {
      if (fds[i].revents == 0) continue;
      const NodeLink& link = links_[i - 1];
      char byte;
      const ssize_t n = recv(link.fd, &byte, 1, MSG_DONTWAIT);
      const int error = errno;
      if (n < 0 && (error == EAGAIN || error == EINTR)) continue;
      fds[i].fd = -1;  // nothing more to learn from it
      const int rank = link.node * topology_.ranks_per_node;
      const RegionView whole = main_region();
      bool left = true;  // its ranks took their leave: who still needs them will see it
      for (int r = rank; r < rank + topology_.ranks_per_node; ++r) {
        left = left && whole.lines[r].left.load() != 0;
      }
      if (left) continue;
      const std::string how = n > 0    ? "carried bytes that were not asked for"
                              : n == 0 ? "was closed: its process has ended"
                                       : std::string("broke (recv: ") + std::strerror(error) + ")";
      fate_->fail(unavailable("rank " + std::to_string(rank) + " (node " +
                              std::to_string(link.node) + ", host " + link.host +
                              "): its connection " + how));
    }
  }
}

}  // namespace capstan::comm
