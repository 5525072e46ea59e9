// The message that starts a step on the other ranks: encode, send, decode. Goal: 50 us for 256
// sequences of 4k context on one node.
#include <benchmark/benchmark.h>

#include <numeric>
#include <thread>

#include "comm/communicator.h"
#include "engine/batch_message.h"

namespace capstan::engine {
namespace {

constexpr int kPageSize = 16;

/// Decode steps of sequences of about `context` tokens, one page more every 16 steps each.
class Decoding {
 public:
  Decoding(int sequences, int context) : context_(context) {
    for (int s = 0; s < sequences; ++s) {
      lengths_.push_back(context + s % kPageSize);
      std::vector<int32_t> pages(static_cast<size_t>((context + kGrowth) / kPageSize + 1));
      std::iota(pages.begin(), pages.end(), s * 4096);
      tables_.push_back(std::move(pages));
      ids_.push_back(static_cast<uint64_t>(s) + 1);
      rows_.push_back(s);
    }
    const auto n = lengths_.size();
    tokens_.resize(n);
    positions_.resize(n);
    slots_.resize(n);
    sequences_.resize(n);
  }
  model::ForwardBatch step() {
    for (size_t s = 0; s < lengths_.size(); ++s) {
      int32_t& length = lengths_[s];
      if (++length >= context_ + kGrowth) length = context_;
      const int32_t p = length;
      tokens_[s] = (p * 7919 + static_cast<int32_t>(s)) % 150000;
      positions_[s] = p;
      slots_[s] =
          int64_t{tables_[s][static_cast<size_t>(p / kPageSize)]} * kPageSize + p % kPageSize;
      sequences_[s] = {static_cast<int32_t>(s), 1, p + 1, tables_[s].data()};
    }
    model::ForwardBatch batch{tokens_, positions_, slots_, sequences_, rows_};
    batch.sequence_ids = ids_;
    return batch;
  }

 private:
  static constexpr int32_t kGrowth = 1024;  // tokens, then again from the start
  const int32_t context_;
  std::vector<int32_t> lengths_, tokens_, positions_, rows_;
  std::vector<int64_t> slots_;
  std::vector<kernels::SequenceSlice> sequences_;
  std::vector<uint64_t> ids_;
  std::vector<std::vector<int32_t>> tables_;
};

BatchLimits limits() { return {kPageSize, 1 << 24, 151936}; }

void BM_EncodeDecode(benchmark::State& state) {
  Decoding decoding(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  BatchEncoder encoder(kPageSize);
  BatchDecoder decoder(limits());
  size_t bytes = 0;
  for (auto _ : state) {
    const auto message = encoder.encode(decoding.step(), BatchKind::kForward);
    bytes = message->size();
    if (!decoder.decode(*message).ok()) state.SkipWithError("decode");
  }
  state.counters["bytes"] = static_cast<double>(bytes);
}
BENCHMARK(BM_EncodeDecode)
    ->ArgNames({"sequences", "context"})
    ->Args({1, 4096})
    ->Args({32, 4096})
    ->Args({256, 4096})
    ->Args({256, 32768})
    ->Unit(benchmark::kMicrosecond);

/// One step and its barrier among two ranks of one process: what a step costs beyond the model.
void BM_StepOfTwoRanks(benchmark::State& state) {
  Decoding decoding(static_cast<int>(state.range(0)), static_cast<int>(state.range(1)));
  auto ranks = comm::make_local_group(2);
  std::thread other([&] {
    BatchDecoder decoder(limits());
    for (;;) {
      const auto message = ranks[1]->receive_message();
      if (!message.ok() || !decoder.decode(*message).ok()) return;
      if (decoder.kind() == BatchKind::kStop) return;
      if (!ranks[1]->barrier().ok()) return;
    }
  });
  BatchEncoder encoder(kPageSize);
  for (auto _ : state) {
    const auto message = encoder.encode(decoding.step(), BatchKind::kForward);
    if (!ranks[0]->send_message(*message).ok() || !ranks[0]->barrier().ok()) {
      state.SkipWithError("send");
    }
  }
  (void)ranks[0]->send_message(encoder.encode_stop());
  other.join();
}
BENCHMARK(BM_StepOfTwoRanks)
    ->ArgNames({"sequences", "context"})
    ->Args({1, 4096})
    ->Args({256, 4096})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace capstan::engine

BENCHMARK_MAIN();
