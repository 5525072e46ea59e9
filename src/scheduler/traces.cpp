#include "scheduler/traces.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <unordered_set>

namespace capstan::scheduler {
namespace {

/// Distributions are written out, since those of the standard library differ between vendors.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  uint64_t below(uint64_t n) { return engine_() % n; }
  double exponential(double mean) {
    const double unit = static_cast<double>(engine_() >> 11) * 0x1.0p-53;
    return -mean * std::log1p(-unit);
  }
  void append_tokens(std::vector<int32_t>& to, int count) {
    for (int i = 0; i < count; ++i) to.push_back(static_cast<int32_t>(below(1u << 20)));
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace

std::vector<Arrival> shared_prefix_trace(const SharedPrefixLoad& load) {
  Random random(load.seed);
  std::vector<Arrival> trace;
  for (int group = 0; group < load.groups; ++group) {
    std::vector<int32_t> system;
    random.append_tokens(system, load.system_tokens);
    for (int i = 0; i < load.per_group; ++i) {
      Arrival& arrival = trace.emplace_back();
      arrival.spec.prompt = system;
      random.append_tokens(arrival.spec.prompt, load.question_tokens);
      arrival.spec.max_new_tokens = load.output_tokens;
      arrival.output_tokens = load.output_tokens;
      arrival.output_stream = trace.size();
    }
  }
  for (size_t i = trace.size(); i > 1; --i) std::swap(trace[i - 1], trace[random.below(i)]);
  double at = 0;
  for (Arrival& arrival : trace) {
    arrival.at = at;
    if (load.per_second > 0) at += random.exponential(1 / load.per_second);
  }
  return trace;
}

std::vector<Arrival> conversation_trace(const ConversationLoad& load) {
  Random random(load.seed);
  std::vector<int32_t> system;
  random.append_tokens(system, load.system_tokens);
  std::vector<Arrival> trace;
  double start = 0;
  for (int conversation = 0; conversation < load.conversations; ++conversation) {
    std::vector<int32_t> said = system;
    double at = start;
    for (int turn = 0; turn < load.turns; ++turn) {
      random.append_tokens(said, load.question_tokens);
      Arrival& arrival = trace.emplace_back();
      arrival.at = at;
      arrival.spec.prompt = said;
      arrival.spec.max_new_tokens = load.output_tokens;
      arrival.output_tokens = load.output_tokens;
      arrival.output_stream = trace.size();
      for (int32_t i = 0; i < load.output_tokens; ++i) {
        said.push_back(simulated_token(arrival.output_stream, i));
      }
      at += random.exponential(load.think_seconds);
    }
    if (load.per_second > 0) start += random.exponential(1 / load.per_second);
  }
  std::stable_sort(trace.begin(), trace.end(),
                   [](const Arrival& a, const Arrival& b) { return a.at < b.at; });
  return trace;
}

double best_hit_rate(const std::vector<Arrival>& trace, int page_size) {
  std::unordered_set<uint64_t> prefixes;  // hashes of all prefixes of whole pages seen
  int64_t hits = 0;
  int64_t asked = 0;
  const auto page = static_cast<size_t>(page_size);
  for (const Arrival& arrival : trace) {
    std::vector<int32_t> tokens = arrival.spec.prompt;
    const size_t prompt = tokens.size();
    asked += static_cast<int64_t>(prompt);
    const int32_t outputs = std::min(arrival.output_tokens, arrival.spec.max_new_tokens);
    // The token written last is not computed, so nobody can find it.
    for (int32_t i = 0; i + 1 < outputs; ++i) {
      tokens.push_back(simulated_token(arrival.output_stream, i));
    }
    uint64_t hash = arrival.spec.cache_namespace + 1;
    bool found = true;
    for (size_t i = 0; i < tokens.size(); ++i) {
      hash = (hash ^ static_cast<uint32_t>(tokens[i])) * 0x9FB21C651E98DF25u;
      hash ^= hash >> 32;
      if ((i + 1) % page != 0) continue;
      found = !prefixes.insert(hash).second && found;
      if (found && i + 1 < prompt) hits += page_size;
    }
  }
  return asked == 0 ? 0 : static_cast<double>(hits) / static_cast<double>(asked);
}

}  // namespace capstan::scheduler
