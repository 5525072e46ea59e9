// Drafts of the checkpoint's own multi-token prediction layer (docs/speculation.md).
#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "base/log.h"
#include "engine/draft_source.h"
#include "engine/draft_windows.h"
#include "engine/row_math.h"

namespace capstan::engine {
namespace {

/// Arrays of one pass of the draft layer.
struct Pass {
  std::vector<int32_t> tokens, positions, wanted;
  std::vector<int64_t> slots;
  std::vector<kernels::SequenceSlice> sequences;
  std::vector<uint64_t> ids;
  std::vector<float> previous;  // [tokens, hidden]

  void clear() {
    tokens.clear();
    positions.clear();
    wanted.clear();
    slots.clear();
    sequences.clear();
    ids.clear();
    previous.clear();
  }
  void add(int32_t token, int32_t position, std::span<const int32_t> pages, int page_size,
           std::span<const float> hidden) {
    tokens.push_back(token);
    positions.push_back(position);
    slots.push_back(int64_t{pages[static_cast<size_t>(position / page_size)]} * page_size +
                    position % page_size);
    previous.insert(previous.end(), hidden.begin(), hidden.end());
  }
};

class NextnSource final : public DraftSource {
 public:
  explicit NextnSource(const NextnOptions& options)
      : options_(options), windows_(options.page_size) {}

  void begin(scheduler::RequestId id, std::span<const int32_t> prompt) override {
    texts_[id].tokens.assign(prompt.begin(), prompt.end());
  }
  void append(scheduler::RequestId id, std::span<const int32_t> tokens) override {
    const auto found = texts_.find(id);
    if (found == texts_.end()) return;
    found->second.tokens.insert(found->second.tokens.end(), tokens.begin(), tokens.end());
  }
  void end(scheduler::RequestId id) override { texts_.erase(id); }
  void propose(std::span<Draft> drafts) override {
    for (Draft& draft : drafts) {
      draft.tokens.clear();
      draft.evidence = Draft::kOfLayer;
      const auto found = texts_.find(draft.id);
      if (found == texts_.end()) continue;
      draft.tokens.swap(found->second.drafts);
      const auto most = static_cast<size_t>(std::max(draft.most, 0));
      if (draft.tokens.size() > most) draft.tokens.resize(most);
    }
  }
  bool computes() const override { return true; }
  void follow(scheduler::RequestId id, bool on, int32_t context) override {
    const auto found = texts_.find(id);
    if (found == texts_.end()) return;
    Text& text = found->second;
    text.followed = on;
    text.context = context;
    text.window = -1;
    text.drafts.clear();
  }
  void choose_rows(const PassInput& in, std::vector<int32_t>& rows) override;
  Status observe(const PassOutput& out, int depth, model::KvStore& kv) override;

 private:
  struct Text {
    std::vector<int32_t> tokens;  // prompt and output, as of the last append()
    std::vector<int32_t> drafts;
    bool followed = false;
    int32_t context = 0;
    int32_t window = -1;   // see DraftWindows; -1: begins with the next row
    bool checked = false;  // its pages are the ones it wrote, or found in the cache
  };
  /// Of a sequence in a pass: what the layer computes of it.
  struct Share {
    int32_t first = 0;    // position; those up to the last
    int32_t hidden = -1;  // its row among the hidden states; -1: nothing is computed
  };
  /// Somebody who goes on: what the chain of further drafts needs.
  struct Tip {
    uint64_t id;  // of the sequence
    Text* text;
    std::span<const int32_t> pages;  // of the window
    int32_t position;                // in it, of the last row computed
  };

  void place(Text& text, const scheduler::PlanItem& item, int32_t first);
  void add_rows(const PassOutput& out, size_t sequence);
  Status compute(int depth, model::KvStore& kv);
  void lose(const PassOutput& out);
  Status run(model::KvStore& kv);

  const NextnOptions options_;
  DraftWindows windows_;
  std::unordered_map<scheduler::RequestId, Text> texts_;
  std::vector<Share> shares_;  // by sequence of the pass
  Pass pass_;
  std::vector<Tip> tips_;
  std::vector<float> logits_, states_;
};

/// Before the row of position `first`.
void NextnSource::place(Text& text, const scheduler::PlanItem& item, int32_t first) {
  const bool admitted = item.first_chunk && first == item.start;
  if (admitted) text.window = -1;
  if (text.window < 0) {
    if (admitted) text.window = windows_.cached(item.pages, first);
    if (text.window < 0) {
      const auto length = static_cast<int32_t>(text.tokens.size());
      text.window = windows_.next_page(std::max(first, length - text.context));
    }
  } else if (!(item.is_decode && text.checked) && text.window < first &&
             !windows_.whole(item.pages, text.window, first)) {
    // While a prompt is computed its pages may be exchanged for another's that are alike.
    text.window = windows_.next_page(first);
  }
  text.checked = item.is_decode;
}

void NextnSource::choose_rows(const PassInput& in, std::vector<int32_t>& rows) {
  shares_.assign(in.batch.sequences.size(), {});
  for (size_t s = 0; s < shares_.size(); ++s) {
    const kernels::SequenceSlice& slice = in.batch.sequences[s];
    const scheduler::PlanItem& item = in.plan.items[static_cast<size_t>(in.items[s])];
    const int32_t first = slice.kv_len - slice.q_len;
    const auto found = texts_.find(item.id);
    if (found == texts_.end() || !found->second.followed) {
      windows_.skipped(item.pages, first, slice.kv_len);
      continue;
    }
    Text& text = found->second;
    place(text, item, first);
    const int32_t begin = std::max(first, text.window);
    windows_.skipped(item.pages, first, std::min(begin, slice.kv_len));
    if (begin >= slice.kv_len) continue;
    windows_.wrote(item.pages, begin, slice.kv_len, text.window);
    shares_[s] = {begin, static_cast<int32_t>(rows.size())};
    for (int32_t p = begin; p < slice.kv_len; ++p) rows.push_back(slice.q_begin + p - first);
  }
}

// Row p takes the hidden state of position p and the token after it: from the item, the sampled
// one, or, where a prompt goes on after this chunk, the text.
void NextnSource::add_rows(const PassOutput& out, size_t sequence) {
  // Windows other than the whole text have ids of their own, for page tables of their own.
  constexpr uint64_t kWindowId = uint64_t{1} << 40;
  const Share share = shares_[sequence];
  if (share.hidden < 0) return;
  const auto index = static_cast<size_t>(out.items[sequence]);
  const scheduler::PlanItem& item = out.plan.items[index];
  const scheduler::SampledToken& sampled = out.sampled[index];
  if (item.samples && sampled.stop == scheduler::FinishKind::kAbort) return;
  Text& text = texts_.find(item.id)->second;
  const auto pages = item.pages.subspan(static_cast<size_t>(text.window / options_.page_size));
  const int32_t known =
      item.start + item.count - item.drafts + (item.samples ? sampled.accepted : 0);
  const int32_t end = std::min(out.batch.sequences[sequence].kv_len, known);
  const auto begin = static_cast<int32_t>(pass_.tokens.size());
  int32_t p = share.first;
  for (; p < end; ++p) {
    int32_t token = -1;
    if (p + 1 < known) {
      token = item.tokens[static_cast<size_t>(p + 1 - item.start)];
    } else if (item.samples) {
      token = sampled.token;
    } else if (static_cast<size_t>(p + 1) < text.tokens.size()) {
      token = text.tokens[static_cast<size_t>(p + 1)];
    }
    if (token < 0) break;
    const int64_t row = share.hidden + p - share.first;
    pass_.add(token, p - text.window, pages, options_.page_size,
              {out.batch.hidden_states.row(row), static_cast<size_t>(options_.hidden_size)});
  }
  if (p == share.first) return;
  pass_.sequences.push_back({begin, p - share.first, p - text.window, pages.data()});
  pass_.ids.push_back(text.window == 0 ? item.id : item.id + kWindowId);
  if (item.samples && p == known && sampled.stop == scheduler::FinishKind::kNone) {
    pass_.wanted.push_back(static_cast<int32_t>(pass_.tokens.size()) - 1);
    tips_.push_back({pass_.ids.back(), &text, pages, p - 1 - text.window});
  }
}

/// Runs the pass; states_ has the wanted rows' states after it, and every tip one draft more.
Status NextnSource::run(model::KvStore& kv) {
  const auto wanted = static_cast<int64_t>(pass_.wanted.size());
  const auto hidden = options_.hidden_size;
  logits_.resize(static_cast<size_t>(wanted * options_.vocab_size));
  states_.resize(static_cast<size_t>(wanted * hidden));
  model::DraftBatch batch;
  batch.tokens = pass_.tokens;
  batch.positions = pass_.positions;
  batch.slots = pass_.slots;
  batch.sequences = pass_.sequences;
  batch.sequence_ids = pass_.ids;
  batch.logit_rows = pass_.wanted;
  batch.hidden_rows = pass_.wanted;
  batch.hidden_states = {states_.data(), wanted, hidden, hidden};
  batch.previous = {pass_.previous.data(), static_cast<int64_t>(pass_.tokens.size()), hidden,
                    hidden};
  CAPSTAN_RETURN_IF_ERROR(options_.model->forward(
      batch, kv, {logits_.data(), wanted, options_.vocab_size, options_.vocab_size}));
  for (size_t i = 0; i < tips_.size(); ++i) {
    const float* row = logits_.data() + static_cast<int64_t>(i) * options_.vocab_size;
    tips_[i].text->drafts.push_back(row_max(row, options_.token_limit).index);
  }
  return {};
}

Status NextnSource::observe(const PassOutput& out, int depth, model::KvStore& kv) {
  pass_.clear();
  tips_.clear();
  for (size_t s = 0; s < shares_.size(); ++s) add_rows(out, s);
  for (const Tip& tip : tips_) tip.text->drafts.clear();
  const Status status = compute(depth, kv);
  if (!status.ok()) lose(out);
  return status;
}

/// What was to be written was not.
void NextnSource::lose(const PassOutput& out) {
  for (size_t s = 0; s < shares_.size(); ++s) {
    if (shares_[s].hidden < 0) continue;
    const scheduler::PlanItem& item = out.plan.items[static_cast<size_t>(out.items[s])];
    windows_.skipped(item.pages, shares_[s].first, out.batch.sequences[s].kv_len);
    Text& text = texts_.find(item.id)->second;
    text.window = -1;
    text.drafts.clear();
  }
}

Status NextnSource::compute(int depth, model::KvStore& kv) {
  if (pass_.tokens.empty()) return {};
  if (depth == 0) {  // the cache rows alone: no logits
    pass_.wanted.clear();
    tips_.clear();
  }
  CAPSTAN_RETURN_IF_ERROR(run(kv));
  for (int level = 1; level < depth; ++level) {
    // A further draft needs a place for its row; rows past the last page have none yet.
    std::vector<float> states = std::move(states_);
    std::vector<Tip> tips = std::move(tips_);
    pass_.clear();
    tips_.clear();
    for (size_t i = 0; i < tips.size(); ++i) {
      Tip tip = tips[i];
      if (++tip.position >= static_cast<int32_t>(tip.pages.size()) * options_.page_size) continue;
      const auto begin = static_cast<int32_t>(pass_.tokens.size());
      pass_.add(tip.text->drafts.back(), tip.position, tip.pages, options_.page_size,
                std::span(states).subspan(i * static_cast<size_t>(options_.hidden_size),
                                          static_cast<size_t>(options_.hidden_size)));
      pass_.sequences.push_back({begin, 1, tip.position + 1, tip.pages.data()});
      pass_.ids.push_back(tip.id);
      pass_.wanted.push_back(begin);
      tips_.push_back(tip);
    }
    if (tips_.empty()) break;
    CAPSTAN_RETURN_IF_ERROR(run(kv));
  }
  return {};
}

}  // namespace

std::unique_ptr<DraftSource> make_nextn_source(const NextnOptions& options) {
  return std::make_unique<NextnSource>(options);
}

}  // namespace capstan::engine
