#include "platform/cpu.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

namespace capstan::platform {
namespace {

namespace fs = std::filesystem;

/// A directory that stands for "/" with the given files.
class FakeRoot {
 public:
  FakeRoot() {
    std::string pattern = (fs::temp_directory_path() / "capstan-cpu-XXXXXX").string();
    root_ = mkdtemp(pattern.data());
  }
  ~FakeRoot() { fs::remove_all(root_); }
  void put(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  CgroupLimits limits() const { return cgroup_limits(root_.string()); }

 private:
  fs::path root_;
};

TEST(CgroupLimits, NoneWithoutCgroups) {
  FakeRoot root;
  const CgroupLimits limits = root.limits();
  EXPECT_FALSE(limits.cpus || limits.memory_bytes || limits.memory_available);
}

TEST(CgroupLimits, V2TakesTheTightestAncestor) {
  FakeRoot root;
  root.put("proc/self/cgroup", "0::/kubepods/pod1\n");
  root.put("sys/fs/cgroup/kubepods/cpu.max", "150000 100000\n");
  root.put("sys/fs/cgroup/kubepods/pod1/cpu.max", "max 100000\n");
  root.put("sys/fs/cgroup/kubepods/pod1/memory.max", "1000000\n");
  root.put("sys/fs/cgroup/kubepods/pod1/memory.current", "600000\n");
  root.put("sys/fs/cgroup/kubepods/pod1/memory.stat", "anon 300000\ninactive_file 250000\n");
  root.put("sys/fs/cgroup/kubepods/memory.max", "max\n");
  const CgroupLimits limits = root.limits();
  EXPECT_EQ(limits.cpus, 1.5);
  EXPECT_EQ(limits.memory_bytes, 1000000u);
  EXPECT_EQ(limits.memory_available, 650000u);
}

TEST(CgroupLimits, V2InsideAContainerNamespace) {
  FakeRoot root;
  root.put("proc/self/cgroup", "0::/\n");
  root.put("sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(root.limits().cpus, 0.5);
}

TEST(CgroupLimits, V1WithHostPathInContainer) {
  FakeRoot root;
  root.put("proc/self/cgroup", "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n");
  root.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n");
  root.put("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  root.put("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n");
  root.put("sys/fs/cgroup/memory/memory.usage_in_bytes", "2500000\n");
  root.put("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 100000\n");
  const CgroupLimits limits = root.limits();
  EXPECT_EQ(limits.cpus, 4.0);
  EXPECT_EQ(limits.memory_bytes, 2000000u);
  EXPECT_EQ(limits.memory_available, 0u);
}

TEST(CgroupLimits, V1UnlimitedValuesAreNoLimit) {
  FakeRoot root;
  root.put("proc/self/cgroup", "5:cpu:/\n4:memory:/\n");
  root.put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  root.put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  root.put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  const CgroupLimits limits = root.limits();
  EXPECT_FALSE(limits.cpus || limits.memory_bytes || limits.memory_available);
}

TEST(Cpu, AffinityListsEachCpuOnce) {
  const std::vector<int> cpus = affinity_cpus();
  EXPECT_GE(cpus.size(), 1u);
  EXPECT_EQ(std::set<int>(cpus.begin(), cpus.end()).size(), cpus.size());
  EXPECT_GE(usable_cpu_count(), 1);
  EXPECT_LE(usable_cpu_count(), static_cast<int>(cpus.size()));
}

TEST(Cpu, IsaAgreesWithTheCompilersProbe) {
  __builtin_cpu_init();
  EXPECT_EQ(isa_support().avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                    __builtin_cpu_supports("f16c"));
  EXPECT_EQ(isa_support().avx512,
            __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"));
  EXPECT_EQ(isa_support().avx512_vnni,
            isa_support().avx512 && __builtin_cpu_supports("avx512vnni"));
  EXPECT_EQ(isa_support().avx512_bf16, isa_support().avx512_vnni &&
                                           __builtin_cpu_supports("avx512vbmi") &&
                                           __builtin_cpu_supports("avx512bf16"));
  EXPECT_TRUE(isa_support().avx512_bf16 || !isa_support().amx);
  EXPECT_FALSE(cpu_model_name().empty());
}

TEST(Cpu, MemoryIsPlausible) {
  const MemoryInfo info = memory_info();
  EXPECT_GT(info.total_bytes, uint64_t{64} << 20);
  EXPECT_GT(info.available_bytes, 0u);
  EXPECT_LE(info.available_bytes, info.total_bytes);
}

}  // namespace
}  // namespace capstan::platform
