// Every operation against a plain reference, over every way the bytes can go.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <numeric>

#include "comm/fabric.h"
#include "comm/values.h"

namespace capstan::comm {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI32, DType::kI64};

std::vector<std::vector<int>> nodes_of(const Shape& shape) {
  std::vector<std::vector<int>> nodes;
  const int n = shape.way == Way::kLocal || shape.way == Way::kShared ? 1 : shape.nodes;
  for (int node = 0; node < n; ++node) {
    nodes.emplace_back(shape.size() / n);
    std::iota(nodes.back().begin(), nodes.back().end(), node * (shape.size() / n));
  }
  return nodes;
}

class Operations : public testing::TestWithParam<Shape> {
 protected:
  Operations() : ranks(make_ranks(GetParam())), nodes(nodes_of(GetParam())) {}
  int size() const { return static_cast<int>(ranks.size()); }
  /// Counts that meet every path: none, one, odd, around the limits of paths and of buffers.
  std::vector<int64_t> counts() const { return {0, 1, 7, 64, 1001, 8192, 8193, 57344 + 3, 300001}; }

  Ranks ranks;
  std::vector<std::vector<int>> nodes;
};

TEST_P(Operations, AllReduce) {
  for (const DType dtype : kTypes) {
    for (const int64_t count : counts()) {
      const auto expected = sums(dtype, nodes, count);
      on_all(ranks, [&](Communicator& c) {
        auto data = values(dtype, c.rank(), count);
        const Status s = c.all_reduce(data.data(), count, dtype);
        ASSERT_TRUE(s.ok()) << s.error().message;
        EXPECT_TRUE(data == expected) << dtype_info(dtype).name << " x " << count;
      });
    }
  }
}

TEST_P(Operations, SumsDoNotDependOnPositionOrSize) {
  // The elements of a large call, in small calls at other places and alignments.
  const int64_t count = 100003;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    const auto expected = sums(dtype, nodes, count);
    const auto width = static_cast<int64_t>(dtype_bytes(dtype, 1));
    on_all(ranks, [&](Communicator& c) {
      std::vector<std::byte> data(static_cast<size_t>((count + 1) * width));
      const auto own = values(dtype, c.rank(), count);
      std::memcpy(data.data() + width, own.data(), own.size());
      int64_t done = 0;
      for (int64_t n = 1; done < count; n = n * 3 + 1) {
        n = std::min(n, count - done);
        ASSERT_TRUE(c.all_reduce(data.data() + (done + 1) * width, n, dtype).ok());
        done += n;
      }
      EXPECT_TRUE(same(data.data() + width, expected.data(), expected.size()));
    });
  }
}

TEST_P(Operations, ReduceScatter) {
  for (const DType dtype : kTypes) {
    for (const int64_t count :
         {int64_t{0}, int64_t{1}, int64_t{33}, int64_t{2049}, int64_t{40001}}) {
      const auto expected = sums(dtype, nodes, count * size());
      const size_t bytes = dtype_bytes(dtype, count);
      on_all(ranks, [&](Communicator& c) {
        auto send = values(dtype, c.rank(), count * size());
        std::vector<std::byte> recv(bytes);
        const Status s = c.reduce_scatter(send.data(), recv.data(), count, dtype);
        ASSERT_TRUE(s.ok()) << s.error().message;
        EXPECT_TRUE(same(recv.data(), expected.data() + bytes * c.rank(), bytes))
            << dtype_info(dtype).name << " x " << count;
        // The result may replace this rank's own part.
        std::byte* own = send.data() + bytes * c.rank();
        ASSERT_TRUE(c.reduce_scatter(send.data(), own, count, dtype).ok());
        EXPECT_TRUE(same(own, expected.data() + bytes * c.rank(), bytes));
      });
    }
  }
}

TEST_P(Operations, AllGather) {
  for (const int64_t bytes : {0, 1, 63, 4097, 40001, 700001}) {
    on_all(ranks, [&](Communicator& c) {
      const auto send = values(DType::kI64, c.rank(), bytes / 8 + 1);
      std::vector<std::byte> recv(static_cast<size_t>(bytes) * size());
      const Status s = c.all_gather(send.data(), recv.data(), bytes);
      ASSERT_TRUE(s.ok()) << s.error().message;
      std::vector<std::byte> in_place(recv.size());
      std::byte* own = in_place.data() + bytes * c.rank();
      if (bytes > 0) std::memcpy(own, send.data(), static_cast<size_t>(bytes));
      ASSERT_TRUE(c.all_gather(own, in_place.data(), bytes).ok());
      EXPECT_TRUE(recv == in_place);
      for (int r = 0; r < size(); ++r) {
        const auto expected = values(DType::kI64, r, bytes / 8 + 1);
        EXPECT_TRUE(same(recv.data() + bytes * r, expected.data(), static_cast<size_t>(bytes)))
            << bytes << " bytes of rank " << r;
      }
    });
  }
}

TEST_P(Operations, AllToAll) {
  for (const int64_t bytes : {0, 1, 63, 4097, 40001, 300001}) {
    on_all(ranks, [&](Communicator& c) {
      std::vector<std::byte> send, recv(static_cast<size_t>(bytes) * size());
      for (int r = 0; r < size(); ++r) {
        const auto part = values(DType::kI64, c.rank(), bytes / 8 + 1, 1000000 * r);
        send.insert(send.end(), part.begin(), part.begin() + bytes);
      }
      const Status s = c.all_to_all(send.data(), recv.data(), bytes);
      ASSERT_TRUE(s.ok()) << s.error().message;
      for (int r = 0; r < size(); ++r) {
        const auto expected = values(DType::kI64, r, bytes / 8 + 1, 1000000 * c.rank());
        EXPECT_TRUE(same(recv.data() + bytes * r, expected.data(), static_cast<size_t>(bytes)))
            << bytes << " bytes of rank " << r;
      }
    });
  }
}

TEST_P(Operations, Broadcast) {
  for (int root = 0; root < size(); ++root) {
    for (const int64_t bytes : {0, 1, 4097, 40001, 700001}) {
      const auto expected = values(DType::kI64, root, bytes / 8 + 1, bytes);
      on_all(ranks, [&](Communicator& c) {
        auto data = values(DType::kI64, c.rank(), bytes / 8 + 1, bytes);
        const Status s = c.broadcast(data.data(), bytes, root);
        ASSERT_TRUE(s.ok()) << s.error().message;
        EXPECT_TRUE(same(data.data(), expected.data(), static_cast<size_t>(bytes)))
            << bytes << " bytes of root " << root;
      });
    }
  }
}

TEST_P(Operations, Gather) {
  for (int root = 0; root < size(); ++root) {
    for (const int64_t unit : {0, 1, 1000, 90001}) {
      std::vector<int64_t> bytes;
      std::vector<std::byte> expected;
      for (int r = 0; r < size(); ++r) {
        bytes.push_back(unit * ((r + 1) % 3));
        const auto part = values(DType::kI64, r, bytes[r] / 8 + 1);
        expected.insert(expected.end(), part.begin(), part.begin() + bytes[r]);
      }
      on_all(ranks, [&](Communicator& c) {
        const auto send = values(DType::kI64, c.rank(), bytes[c.rank()] / 8 + 1);
        std::vector<std::byte> recv(c.rank() == root ? expected.size() : 0);
        const Status s = c.gather(send.data(), recv.data(), bytes, root);
        ASSERT_TRUE(s.ok()) << s.error().message;
        if (c.rank() == root) {
          EXPECT_TRUE(recv == expected) << unit << " to root " << root;
        }
      });
    }
  }
}

TEST_P(Operations, Messages) {
  for (const int64_t bytes : {0, 1, 4097, 262144 - 64, 262144 - 63, 900001}) {
    const auto expected = values(DType::kI64, 0, bytes / 8 + 1, bytes);
    on_all(ranks, [&](Communicator& c) {
      for (int repeat = 0; repeat < 3; ++repeat) {
        if (c.rank() == 0) {
          const Status s = c.send_message({expected.data(), static_cast<size_t>(bytes)});
          ASSERT_TRUE(s.ok()) << s.error().message;
        } else {
          const auto got = c.receive_message();
          ASSERT_TRUE(got.ok()) << got.error().message;
          ASSERT_EQ(static_cast<int64_t>(got->size()), bytes);
          EXPECT_TRUE(same(got->data(), expected.data(), static_cast<size_t>(bytes)));
        }
      }
    });
  }
}

TEST_P(Operations, BarrierWaitsForAll) {
  std::atomic<int> arrived{0};
  on_all(ranks, [&](Communicator& c) {
    for (int round = 1; round <= 20; ++round) {
      if (c.rank() == round % size()) {
        std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
      arrived.fetch_add(1);
      ASSERT_TRUE(c.barrier().ok());
      EXPECT_GE(arrived.load(), round * size());
    }
  });
}

TEST_P(Operations, AnyOrderOfOperationsWithDelays) {
  on_all(ranks, [&](Communicator& c) {
    for (uint64_t step = 0; step < 120; ++step) {
      // The same choices on all ranks, other delays.
      const uint64_t h = scramble(step);
      const uint64_t delay = scramble(h + static_cast<uint64_t>(c.rank()));
      if (delay % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(delay % 500));
      const auto count = static_cast<int64_t>(scramble(h + 77) % (h % 5 == 0 ? 60000 : 700));
      const int root = static_cast<int>((h >> 8) % static_cast<uint64_t>(size()));
      const auto mine = values(DType::kF32, c.rank(), count, static_cast<int64_t>(step));
      switch (h % 6) {
        case 0: {
          auto data = mine;
          ASSERT_TRUE(c.all_reduce(data.data(), count, DType::kF32).ok());
          ASSERT_TRUE(data == sums(DType::kF32, nodes, count, static_cast<int64_t>(step)));
          break;
        }
        case 1: {
          std::vector<std::byte> all(mine.size() * size());
          ASSERT_TRUE(
              c.all_gather(mine.data(), all.data(), static_cast<int64_t>(mine.size())).ok());
          const auto theirs = values(DType::kF32, root, count, static_cast<int64_t>(step));
          ASSERT_TRUE(same(all.data() + root * mine.size(), theirs.data(), mine.size()));
          break;
        }
        case 2: {
          auto data = mine;
          ASSERT_TRUE(c.broadcast(data.data(), static_cast<int64_t>(data.size()), root).ok());
          ASSERT_TRUE(data == values(DType::kF32, root, count, static_cast<int64_t>(step)));
          break;
        }
        case 3: {
          const auto expected = values(DType::kF32, 0, count, static_cast<int64_t>(step));
          if (c.rank() == 0) {
            ASSERT_TRUE(c.send_message(mine).ok());
          } else {
            const auto got = c.receive_message();
            ASSERT_TRUE(got.ok());
            ASSERT_TRUE(std::equal(got->begin(), got->end(), expected.begin(), expected.end()));
          }
          break;
        }
        case 4: {
          const std::vector<int64_t> bytes(size(), static_cast<int64_t>(mine.size()));
          std::vector<std::byte> all(c.rank() == root ? mine.size() * size() : 0);
          ASSERT_TRUE(c.gather(mine.data(), all.data(), bytes, root).ok());
          for (int r = 0; c.rank() == root && r < size(); ++r) {
            const auto theirs = values(DType::kF32, r, count, static_cast<int64_t>(step));
            ASSERT_TRUE(same(all.data() + r * mine.size(), theirs.data(), mine.size()));
          }
          break;
        }
        default:
          ASSERT_TRUE(c.barrier().ok());
      }
    }
  });
}

TEST_P(Operations, Subgroups) {
  // Even and odd ranks, then halves, then one pair, all at work at the same time as their parents.
  on_all(ranks, [&](Communicator& c) {
    for (int round = 0; round < 2; ++round) {
      std::vector<int> members;
      for (int r = c.rank() % 2; r < size(); r += 2) members.push_back(r);
      auto sub = c.subgroup(members);
      ASSERT_TRUE(sub.ok()) << sub.error().message;
      ASSERT_EQ((*sub)->size(), static_cast<int>(members.size()));
      ASSERT_EQ((*sub)->rank(), c.rank() / 2);
      std::vector<std::vector<int>> member_nodes;
      for (const auto& node : nodes) {
        std::vector<int> here;
        for (const int r : node) {
          if (r % 2 == c.rank() % 2) here.push_back(r);
        }
        if (!here.empty()) member_nodes.push_back(here);
      }
      for (const int64_t count : {int64_t{5}, int64_t{3000}, int64_t{70000}}) {
        auto data = values(DType::kBF16, c.rank(), count);
        ASSERT_TRUE((*sub)->all_reduce(data.data(), count, DType::kBF16).ok());
        EXPECT_TRUE(data == sums(DType::kBF16, member_nodes, count));
        std::vector<std::byte> all(data.size() * members.size());
        const auto own = values(DType::kBF16, c.rank(), count, 9);
        ASSERT_TRUE(
            (*sub)->all_gather(own.data(), all.data(), static_cast<int64_t>(own.size())).ok());
        for (size_t i = 0; i < members.size(); ++i) {
          const auto theirs = values(DType::kBF16, members[i], count, 9);
          EXPECT_TRUE(same(all.data() + i * own.size(), theirs.data(), own.size()));
        }
      }
      ASSERT_TRUE(c.barrier().ok());
      auto alone = c.subgroup(std::vector<int>{c.rank()});
      ASSERT_TRUE(alone.ok());
      float x = 3;
      ASSERT_TRUE((*alone)->all_reduce(&x, 1, DType::kF32).ok());
      EXPECT_EQ(x, 3);
    }
  });
}

TEST_P(Operations, WrongArgumentsAreErrorsAndHarmNothing) {
  on_all(ranks, [&](Communicator& c) {
    float x[4] = {};
    EXPECT_EQ(c.all_reduce(x, 4, DType::kQ8_0).error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(c.all_reduce(x, -1, DType::kF32).error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(c.broadcast(x, 4, c.size()).error().code, ErrorCode::kInvalidArgument);
    EXPECT_EQ(c.gather(x, x, std::vector<int64_t>(size() + 1), 0).error().code,
              ErrorCode::kInvalidArgument);
    EXPECT_EQ(c.subgroup(std::vector<int>{c.rank(), c.size()}).error().code,
              ErrorCode::kInvalidArgument);
    EXPECT_EQ(c.subgroup(std::vector<int>{}).error().code, ErrorCode::kInvalidArgument);
    if (c.rank() == 0) {
      EXPECT_EQ(c.receive_message().error().code, ErrorCode::kInvalidArgument);
    } else {
      EXPECT_EQ(c.send_message({}).error().code, ErrorCode::kInvalidArgument);
    }
    ASSERT_TRUE(c.barrier().ok());
  });
}

class Large : public testing::TestWithParam<Shape> {};

TEST_P(Large, SixteenMillionElements) {
  const int64_t count = 16 << 20;
  Ranks ranks = make_ranks(GetParam());
  const int size = static_cast<int>(ranks.size());
  on_all(ranks, [&](Communicator& c) {
    // Whole numbers below 2^24: exact in any order, so the sum is known without adding.
    std::vector<float> data(count);
    for (int64_t i = 0; i < count; ++i) {
      data[i] = static_cast<float>((i % 1021) * (c.rank() + 1));
    }
    ASSERT_TRUE(c.all_reduce(data.data(), count, DType::kF32).ok());
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i) {
      wrong += data[i] != static_cast<float>((i % 1021) * (size * (size + 1) / 2));
    }
    EXPECT_EQ(wrong, 0);
    std::vector<float> part(count / size);
    ASSERT_TRUE(c.reduce_scatter(data.data(), part.data(), count / size, DType::kF32).ok());
    ASSERT_TRUE(c.all_gather(part.data(), data.data(), count / size * 4).ok());
    for (int64_t i = 0; i < count / size * size; ++i) {
      wrong += data[i] != static_cast<float>((i % 1021) * (size * (size + 1) / 2) * size);
    }
    EXPECT_EQ(wrong, 0);
  });
}

INSTANTIATE_TEST_SUITE_P(All, Large,
                         testing::ValuesIn(shapes({{Way::kLocal, 1, 2},
                                                   {Way::kShared, 2, 1},
                                                   {Way::kTcp, 2, 1},
                                                   {Way::kTcp, 3, 1},
                                                   {Way::kUcx, 2, 1},
                                                   {Way::kUcx, 3, 1}})),
                         [](const auto& info) { return info.param.name(); });

INSTANTIATE_TEST_SUITE_P(All, Operations,
                         testing::ValuesIn(shapes({{Way::kLocal, 1, 1},
                                                   {Way::kLocal, 1, 2},
                                                   {Way::kLocal, 1, 3},
                                                   {Way::kLocal, 1, 8},
                                                   {Way::kShared, 2, 1},
                                                   {Way::kShared, 3, 1},
                                                   {Way::kShared, 2, 2},
                                                   {Way::kShared, 8, 1},
                                                   {Way::kUnix, 2, 1},
                                                   {Way::kTcp, 2, 1},
                                                   {Way::kTcp, 3, 1},
                                                   {Way::kTcp, 2, 2},
                                                   {Way::kUnix, 4, 2},
                                                   {Way::kUcx, 2, 1},
                                                   {Way::kUcx, 3, 1},
                                                   {Way::kUcx, 2, 2},
                                                   {Way::kUcx, 4, 2},
                                                   {Way::kUcxAny, 2, 1},
                                                   {Way::kUcxAny, 2, 2}})),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace capstan::comm
