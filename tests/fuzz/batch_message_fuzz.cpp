// Messages of steps as another rank receives them: every sequence of them must end in batches that
// lie within cache and vocabulary, or in an error.
//
// The input is a list of messages, each behind its length (two bytes) and its kind; the header that
// the decoder demands is put before it, so that the fuzzer need not find it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "engine/batch_message.h"
#include "engine/batch_wire.h"

namespace engine = capstan::engine;

namespace {

constexpr int kPageSize = 4, kPages = 200, kVocabulary = 300;

void demand(bool holds) {
  if (!holds) std::abort();
}

void check(const capstan::model::ForwardBatch& batch) {
  const size_t rows = batch.tokens.size();
  demand(batch.positions.size() == rows && batch.slots.size() == rows);
  for (const int32_t token : batch.tokens) demand(token >= 0 && token < kVocabulary);
  int32_t next = 0;
  for (const auto& s : batch.sequences) {
    demand(s.q_begin == next && s.q_len > 0 && s.kv_len >= s.q_len);
    for (int32_t i = 0; i < (s.kv_len + kPageSize - 1) / kPageSize; ++i) {
      demand(s.pages[i] >= 0 && s.pages[i] < kPages);
    }
    next += s.q_len;
  }
  demand(static_cast<size_t>(next) == rows);
  for (const int64_t slot : batch.slots) demand(slot >= 0 && slot < kPages * kPageSize);
  for (const auto& wanted : {batch.logit_rows, batch.hidden_rows}) {
    int32_t before = -1;
    for (const int32_t row : wanted) {
      demand(row > before && static_cast<size_t>(row) < rows);
      before = row;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  engine::BatchDecoder decoder({kPageSize, kPages, kVocabulary});
  for (uint32_t number = 1; size >= 4; ++number) {
    const size_t length = std::min<size_t>(data[0] | data[1] << 8, size - 4);
    std::vector<std::byte> message;
    for (const int b :
         {int{engine::wire::kMagic}, int{engine::wire::kVersion}, data[2] % 4, data[3] % 16,
          static_cast<int>(number & 0xFF), static_cast<int>(number >> 8 & 0xFF),
          static_cast<int>(number >> 16 & 0xFF), 0}) {
      message.push_back(static_cast<std::byte>(b));
    }
    for (size_t i = 0; i < length; ++i) message.push_back(static_cast<std::byte>(data[4 + i]));
    data += 4 + length;
    size -= 4 + length;
    const capstan::Status status = decoder.decode(message);
    if (!status.ok()) {
      demand(!status.error().message.empty());
      return 0;
    }
    if (decoder.kind() != engine::BatchKind::kStop) check(decoder.batch());
  }
  return 0;
}
