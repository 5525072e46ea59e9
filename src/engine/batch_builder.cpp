#include "engine/batch_builder.h"

#include <algorithm>

namespace capstan::engine {

void BatchBuilder::start(const scheduler::StepPlan& plan, std::span<const PromptRows> prompt_rows) {
  plan_ = &plan;
  prompt_rows_ = prompt_rows;
  pieces_.clear();
  pass_ = 0;
  passes_ = 1;
  int first_pass_rows = 0;
  for (size_t i = 0; i < plan.items.size(); ++i) {
    const scheduler::PlanItem& item = plan.items[i];
    const auto index = static_cast<int32_t>(i);
    const PromptRows wanted = prompt_rows[i];
    const int32_t rows = std::max(0, wanted.end - wanted.begin);
    if (rows == 0 || first_pass_rows + rows <= max_prompt_rows_) {
      first_pass_rows += rows;
      pieces_.push_back({index, item.start, item.count, 0});
      continue;
    }
    // Pieces of one item must run in order; pieces of different items need not share a pass.
    for (int32_t at = item.start, end = item.start + item.count; at < end;) {
      const int32_t first = std::max(at, wanted.begin);  // rows before it cost no logits
      const int32_t stop = first + max_prompt_rows_ >= wanted.end ? end : first + max_prompt_rows_;
      pieces_.push_back({index, at, stop - at, passes_++});
      at = stop;
    }
  }
  std::stable_sort(pieces_.begin(), pieces_.end(),
                   [](const Piece& a, const Piece& b) { return a.pass < b.pass; });
}

bool BatchBuilder::next() {
  tokens_.clear();
  positions_.clear();
  slots_.clear();
  sequences_.clear();
  items_.clear();
  ids_.clear();
  logit_rows_.clear();
  rows_.clear();
  for (; pass_ < passes_ && tokens_.empty(); ++pass_) {
    for (const Piece& piece : pieces_) {
      if (piece.pass == pass_) append(piece);
    }
  }
  if (tokens_.empty()) return false;
  batch_ = {tokens_, positions_, slots_, sequences_, logit_rows_};
  batch_.sequence_ids = ids_;
  return true;
}

void BatchBuilder::append(const Piece& piece) {
  const scheduler::PlanItem& item = plan_->items[static_cast<size_t>(piece.item)];
  const PromptRows wanted = prompt_rows_[static_cast<size_t>(piece.item)];
  const auto begin = static_cast<int32_t>(tokens_.size());
  const int32_t end = piece.start + piece.count;
  items_.push_back(piece.item);
  ids_.push_back(item.id);
  sequences_.push_back({begin, piece.count, end, item.pages.data()});
  for (int32_t p = piece.start; p < end; ++p) {
    tokens_.push_back(item.tokens[static_cast<size_t>(p - item.start)]);
    positions_.push_back(p);
    const int64_t page = item.pages[static_cast<size_t>(p / page_size_)];
    slots_.push_back(page * page_size_ + p % page_size_);
    const bool samples = item.samples && p + 1 >= item.start + item.count - item.drafts;
    if (samples || (p >= wanted.begin && p < wanted.end)) {
      logit_rows_.push_back(begin + (p - piece.start));
      rows_.push_back({piece.item, p, samples});
    }
  }
}

}  // namespace capstan::engine
