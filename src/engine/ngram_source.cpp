#include <algorithm>
#include <array>
#include <unordered_map>

#include "engine/draft_source.h"
#include "engine/ngram_index.h"

namespace capstan::engine {
namespace {

int evidence_of(int match) {
  constexpr std::array<int, Draft::kEvidence - 1> kAbove = {2, 3, 5, 8, 16};
  int evidence = 0;
  for (const int bound : kAbove) evidence += match > bound;
  return evidence;
}

class NgramSource final : public DraftSource {
 public:
  void begin(scheduler::RequestId id, std::span<const int32_t> prompt) override {
    NgramIndex& index = texts_[id];
    for (const int32_t token : prompt) index.append(token);
  }
  void append(scheduler::RequestId id, std::span<const int32_t> tokens) override {
    const auto found = texts_.find(id);
    if (found == texts_.end()) return;
    for (const int32_t token : tokens) found->second.append(token);
  }
  void end(scheduler::RequestId id) override { texts_.erase(id); }
  void propose(std::span<Draft> drafts) override {
    for (Draft& draft : drafts) {
      draft.tokens.clear();
      const auto found = texts_.find(draft.id);
      if (found == texts_.end()) continue;
      draft.evidence = evidence_of(found->second.find(draft.most, draft.tokens));
    }
  }

 private:
  std::unordered_map<scheduler::RequestId, NgramIndex> texts_;
};

}  // namespace

std::unique_ptr<DraftSource> make_ngram_source() { return std::make_unique<NgramSource>(); }

}  // namespace capstan::engine
