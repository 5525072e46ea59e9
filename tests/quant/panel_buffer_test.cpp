#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "quant/panel.h"

namespace capstan::quant {
namespace {

size_t mappings() {
  std::ifstream in("/proc/self/maps");
  size_t n = 0;
  for (std::string line; std::getline(in, line);) ++n;
  return n;
}

bool zero(const PanelBuffer& b) {
  return std::all_of(b.data(), b.data() + b.bytes(), [](std::byte v) { return v == std::byte{0}; });
}

TEST(PanelBuffer, ZeroedAlignedAndApart) {
  std::vector<PanelBuffer> buffers;
  for (const size_t bytes : {1ul, 64ul, 4096ul, 4097ul, 300'000ul, 3ul << 20, 40ul << 20}) {
    PanelBuffer b(bytes);
    ASSERT_NE(b.data(), nullptr);
    EXPECT_EQ(b.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % (bytes > (32u << 20) ? 2u << 20 : 4096u), 0u);
    EXPECT_TRUE(zero(b));
    std::memset(b.data(), 0xAB, bytes);
    buffers.push_back(std::move(b));
  }
  for (size_t i = 0; i < buffers.size(); ++i) {  // nobody wrote to another's
    EXPECT_EQ(buffers[i].data()[0], std::byte{0xAB});
    EXPECT_EQ(buffers[i].data()[buffers[i].bytes() - 1], std::byte{0xAB});
  }
  EXPECT_EQ(PanelBuffer().data(), nullptr);
  EXPECT_EQ(PanelBuffer(size_t{0}).data(), nullptr);
}

TEST(PanelBuffer, MemoryGivenBackComesAgainAsZeros) {
  for (int round = 0; round < 50; ++round) {
    PanelBuffer b(10 << 20);
    ASSERT_TRUE(zero(b));
    std::memset(b.data(), 1, b.bytes());
  }
  const PanelBuffer keeps_the_block(100);
  for (int round = 0; round < 50; ++round) {
    PanelBuffer b(10 << 20);
    ASSERT_TRUE(zero(b));
    std::memset(b.data(), 1, b.bytes());
  }
}

TEST(PanelBuffer, ManyBuffersAreFewMappings) {
  const size_t before = mappings();
  std::vector<PanelBuffer> buffers;
  for (int i = 0; i < 2000; ++i) buffers.emplace_back(size_t{3} << 20);  // 6 GB, never touched
  for (const PanelBuffer& b : buffers) ASSERT_NE(b.data(), nullptr);
  EXPECT_LT(mappings() - before, 300u);
  buffers.clear();
  // 47 blocks were given back; a sanitizer's allocator keeps a dozen mappings of its own.
  EXPECT_LT(mappings(), before + 24);
}

TEST(PanelBuffer, ImpossibleSizesAreNull) {
  EXPECT_EQ(PanelBuffer(SIZE_MAX).data(), nullptr);
  EXPECT_EQ(PanelBuffer(size_t{1} << 60).data(), nullptr);
}

TEST(PanelBuffer, MovesAndThreads) {
  PanelBuffer a(5000);
  a.data()[4999] = std::byte{7};
  PanelBuffer b(std::move(a));
  EXPECT_EQ(b.data()[4999], std::byte{7});
  PanelBuffer c;
  c = std::move(b);
  EXPECT_EQ(c.bytes(), 5000u);
  EXPECT_EQ(c.data()[4999], std::byte{7});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([] {
      std::vector<PanelBuffer> mine;
      for (int i = 0; i < 100; ++i) {
        mine.emplace_back(size_t{20'000});
        std::memset(mine.back().data(), i, 20'000);
      }
      for (int i = 0; i < 100; ++i) {
        EXPECT_EQ(mine[static_cast<size_t>(i)].data()[19'999], static_cast<std::byte>(i));
      }
    });
  }
  for (std::thread& t : threads) t.join();
}

}  // namespace
}  // namespace capstan::quant
