// Synthetic loads for the simulator, and what no cache could better.
#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/simulator.h"

namespace capstan::scheduler {

/// The "generated shared prefix" load of serving benchmarks: `groups` system prompts, each asked
/// `per_group` questions, in random order, at `per_second` (Poisson; <= 0: all at once).
struct SharedPrefixLoad {
  int groups = 16;
  int per_group = 16;
  int system_tokens = 512;
  int question_tokens = 64;
  int output_tokens = 64;
  double per_second = 0;
  uint64_t seed = 1;
};
std::vector<Arrival> shared_prefix_trace(const SharedPrefixLoad& load);

/// Conversations: each turn's prompt is all that was said before and a new question. A turn comes
/// `think_seconds` (exponential) after the one before it came.
struct ConversationLoad {
  int conversations = 32;
  int turns = 4;
  int system_tokens = 64;  // the same for all
  int question_tokens = 64;
  int output_tokens = 64;
  double per_second = 1;  // new conversations
  double think_seconds = 30;
  uint64_t seed = 1;
};
std::vector<Arrival> conversation_trace(const ConversationLoad& load);

/// Upper bound of the hit rate of any prefix cache, whatever its size and policy, if requests keep
/// their order: each finds all whole pages of its prompt (without the last token) that an earlier
/// prompt or output contains.
double best_hit_rate(const std::vector<Arrival>& trace, int page_size);

}  // namespace capstan::scheduler
