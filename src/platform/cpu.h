// What this machine offers to this process: instruction sets, CPUs, memory. Reads CPUID, the
// affinity mask, cgroup v1/v2 limits and /proc; keeps no state except the CPUID result.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace capstan::platform {

/// True only when both the CPU and the operating system (XCR0) support the registers.
struct IsaSupport {
  bool avx2 = false;         // AVX2 + FMA + F16C
  bool avx512 = false;       // AVX-512 F + BW + VL + DQ, and avx2
  bool avx512_vnni = false;  // avx512 and its int8 dot product
  bool avx512_bf16 = false;  // avx512_vnni, the BF16 dot product and byte permutes (VBMI)
  bool amx = false;  // avx512_bf16, and tile products of int8 and BF16 that the kernel allows
};
const IsaSupport& isa_support();

/// "AMD EPYC" or similar; "unknown CPU" when CPUID does not say.
std::string cpu_model_name();

/// CPUs in this thread's affinity mask, one of each physical core first, then the SMT siblings, so
/// that the first n entries are the best places for n threads. Never empty.
std::vector<int> affinity_cpus();

/// Threads that can run at once: the affinity mask's CPUs, at most the whole CPUs of the cgroup's
/// quota (a spinning thread above the quota gets everybody throttled), at least 1.
int usable_cpu_count();

struct MemoryInfo {
  uint64_t total_bytes = 0;      // physical, or the cgroup's limit if lower
  uint64_t available_bytes = 0;  // what can be had without swapping or hitting the limit
};
MemoryInfo memory_info();

/// Limits of the cgroup this process is in and of all its ancestors (the tightest wins).
struct CgroupLimits {
  std::optional<double> cpus;                // quota / period
  std::optional<uint64_t> memory_bytes;      // limit
  std::optional<uint64_t> memory_available;  // limit - usage + reclaimable page cache
};
/// `root` replaces "/" in front of proc/ and sys/ (tests).
CgroupLimits cgroup_limits(const std::string& root = "/");

}  // namespace capstan::platform
