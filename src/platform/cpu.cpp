#include "platform/cpu.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace capstan::platform {
namespace {

#if defined(__x86_64__)
uint64_t xgetbv0() {
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return (static_cast<uint64_t>(hi) << 32) | lo;
}

/// Linux gives a process the tile registers, and room for them in signal frames, when it asks.
bool ask_for_tiles() {
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

IsaSupport probe_isa() {
  IsaSupport isa;
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return isa;
  const bool osxsave = c & (1u << 27);
  const bool fma = c & (1u << 12);
  const bool f16c = c & (1u << 29);
  if (!osxsave) return isa;
  const uint64_t xcr0 = xgetbv0();
  const bool ymm = (xcr0 & 0x6) == 0x6;    // XMM, YMM
  const bool zmm = (xcr0 & 0xe6) == 0xe6;  // and opmask, upper ZMM halves, ZMM16-31
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return isa;
  isa.avx2 = ymm && fma && f16c && (b & (1u << 5));
  const bool f = b & (1u << 16), dq = b & (1u << 17), bw = b & (1u << 30), vl = b & (1u << 31);
  isa.avx512 = isa.avx2 && zmm && f && dq && bw && vl;
  isa.avx512_vnni = isa.avx512 && (c & (1u << 11));
  const bool vbmi = c & (1u << 1);
  const bool tiles = (xcr0 & 0x60000) == 0x60000 && (d & (1u << 24));
  const bool tile_products = (d & (1u << 25)) && (d & (1u << 22));  // int8, BF16
  const bool bf16 = a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
  isa.avx512_bf16 = isa.avx512_vnni && vbmi && bf16;
  isa.amx = isa.avx512_bf16 && tiles && tile_products && ask_for_tiles();
  return isa;
}
#else
IsaSupport probe_isa() { return {}; }
#endif

std::optional<std::string> read_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  if (!in || !std::getline(in, line)) return std::nullopt;
  return line;
}

std::optional<int64_t> read_int(const std::string& path) {
  const auto line = read_line(path);
  if (!line) return std::nullopt;
  std::istringstream in(*line);
  int64_t value;
  if (!(in >> value)) return std::nullopt;  // also "max", and values above 2^63
  return value;
}

/// The value of `key` in a "key value" file such as memory.stat; 0 when absent.
uint64_t read_stat(const std::string& path, const std::string& key) {
  std::ifstream in(path);
  std::string name;
  uint64_t value;
  while (in >> name >> value) {
    if (name == key) return value;
  }
  return 0;
}

template <class T>
void take_min(std::optional<T>& into, T value) {
  if (!into || value < *into) into = value;
}

/// "/a/b" -> {"/a/b", "/a", ""}: a container may see its host path in /proc/self/cgroup although
/// its own mount starts at the leaf, so every ancestor that exists is consulted.
std::vector<std::string> self_and_ancestors(std::string path) {
  std::vector<std::string> out;
  while (!path.empty() && path != "/") {
    out.push_back(path);
    path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
  }
  out.emplace_back();
  return out;
}

void read_cpu_v2(const std::string& dir, CgroupLimits& limits) {
  const auto line = read_line(dir + "/cpu.max");
  if (!line) return;
  std::istringstream in(*line);
  double quota, period;
  if (in >> quota >> period && quota > 0 && period > 0) take_min(limits.cpus, quota / period);
}

void read_cpu_v1(const std::string& dir, CgroupLimits& limits) {
  const auto quota = read_int(dir + "/cpu.cfs_quota_us");
  const auto period = read_int(dir + "/cpu.cfs_period_us");
  if (quota && period && *quota > 0 && *period > 0) {
    take_min(limits.cpus, static_cast<double>(*quota) / static_cast<double>(*period));
  }
}

void read_memory(const std::string& dir, const char* limit_file, const char* usage_file,
                 const char* cache_key, CgroupLimits& limits) {
  const auto limit = read_int(dir + "/" + limit_file);
  if (!limit || *limit <= 0 || *limit > (int64_t{1} << 60)) return;  // v1 writes ~2^63: no limit
  const auto bytes = static_cast<uint64_t>(*limit);
  take_min(limits.memory_bytes, bytes);
  const auto used =
      static_cast<uint64_t>(std::max<int64_t>(read_int(dir + "/" + usage_file).value_or(0), 0));
  const uint64_t cache = std::min(used, read_stat(dir + "/memory.stat", cache_key));
  const uint64_t held = used - cache;
  take_min(limits.memory_available, held >= bytes ? uint64_t{0} : bytes - held);
}

bool has_item(const std::string& comma_list, const std::string& item) {
  std::istringstream in(comma_list);
  for (std::string part; std::getline(in, part, ',');) {
    if (part == item) return true;
  }
  return false;
}

}  // namespace

const IsaSupport& isa_support() {
  static const IsaSupport isa = probe_isa();
  return isa;
}

std::string cpu_model_name() {
#if defined(__x86_64__)
  uint32_t regs[12];
  uint32_t a, b, c, d;
  if (__get_cpuid(0x80000000u, &a, &b, &c, &d) && a >= 0x80000004u) {
    for (uint32_t leaf = 0; leaf < 3; ++leaf) {
      __get_cpuid(0x80000002u + leaf, &regs[4 * leaf], &regs[4 * leaf + 1], &regs[4 * leaf + 2],
                  &regs[4 * leaf + 3]);
    }
    char text[sizeof(regs) + 1] = {};
    std::memcpy(text, regs, sizeof(regs));
    std::string name(text);
    name.erase(0, name.find_first_not_of(' ') == std::string::npos ? name.size()
                                                                   : name.find_first_not_of(' '));
    name.erase(name.find_last_not_of(' ') + 1);
    if (!name.empty()) return name;
  }
#endif
  return "unknown CPU";
}

std::vector<int> affinity_cpus() {
  // The kernel may know more CPUs than a cpu_set_t holds (1024); grow until the call accepts.
  std::vector<int> cpus;
  for (int count = CPU_SETSIZE; count <= 1 << 16; count *= 2) {
    cpu_set_t* set = CPU_ALLOC(count);
    if (set == nullptr) break;
    const size_t size = CPU_ALLOC_SIZE(count);
    CPU_ZERO_S(size, set);
    const bool ok = sched_getaffinity(0, size, set) == 0;
    for (int cpu = 0; ok && cpu < count; ++cpu) {
      if (CPU_ISSET_S(cpu, size, set)) cpus.push_back(cpu);
    }
    CPU_FREE(set);
    if (ok) break;
  }
  if (cpus.empty()) return {0};

  // thread_siblings_list starts with the core's lowest CPU: rank a CPU by how many of its siblings
  // in the mask come before it.
  std::vector<std::pair<std::string, int>> seen;
  std::vector<std::pair<int, int>> ranked;
  for (int cpu : cpus) {
    const auto core = read_line("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                                "/topology/thread_siblings_list");
    int rank = 0;
    if (core) {
      auto it = std::find_if(seen.begin(), seen.end(), [&](auto& s) { return s.first == *core; });
      if (it == seen.end()) {
        seen.emplace_back(*core, 1);
      } else {
        rank = it->second++;
      }
    }
    ranked.emplace_back(rank, cpu);
  }
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& x, const auto& y) { return x.first < y.first; });
  std::transform(ranked.begin(), ranked.end(), cpus.begin(),
                 [](const auto& r) { return r.second; });
  return cpus;
}

int usable_cpu_count() {
  int count = static_cast<int>(affinity_cpus().size());
  if (const auto quota = cgroup_limits().cpus) count = std::min(count, static_cast<int>(*quota));
  return std::max(count, 1);
}

CgroupLimits cgroup_limits(const std::string& root) {
  const std::string base = root.empty() || root.back() != '/' ? root + "/" : root;
  const std::string fs = base + "sys/fs/cgroup";
  CgroupLimits limits;
  std::ifstream in(base + "proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first == std::string::npos ? first : first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    for (const std::string& path : self_and_ancestors(line.substr(second + 1))) {
      if (controllers.empty()) {  // v2: one hierarchy ("unified" beside v1 ones on hybrid systems)
        for (const std::string& mount : {fs, fs + "/unified"}) {
          read_cpu_v2(mount + path, limits);
          read_memory(mount + path, "memory.max", "memory.current", "inactive_file", limits);
        }
      } else if (has_item(controllers, "cpu")) {
        for (const std::string& mount : {fs + "/cpu", fs + "/" + controllers}) {
          read_cpu_v1(mount + path, limits);
        }
      } else if (has_item(controllers, "memory")) {
        read_memory(fs + "/memory" + path, "memory.limit_in_bytes", "memory.usage_in_bytes",
                    "total_inactive_file", limits);
      }
    }
  }
  return limits;
}

MemoryInfo memory_info() {
  MemoryInfo info;
  std::ifstream in("/proc/meminfo");
  std::string key, rest;
  for (uint64_t kib; in >> key >> kib; std::getline(in, rest)) {
    if (key == "MemTotal:") info.total_bytes = kib * 1024;
    if (key == "MemAvailable:") info.available_bytes = kib * 1024;
  }
  if (info.total_bytes == 0) {
    const long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGE_SIZE);
    if (pages > 0 && size > 0) {
      info.total_bytes = static_cast<uint64_t>(pages) * static_cast<uint64_t>(size);
      info.available_bytes = info.total_bytes;
    }
  }
  const CgroupLimits limits = cgroup_limits();
  if (limits.memory_bytes) info.total_bytes = std::min(info.total_bytes, *limits.memory_bytes);
  if (limits.memory_available) {
    info.available_bytes = std::min(info.available_bytes, *limits.memory_available);
  }
  return info;
}

}  // namespace capstan::platform
