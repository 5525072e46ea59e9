#include "app/memory_plan.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <string>

namespace capstan::app {
namespace {

std::string gigabytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GB", bytes / 1e9);
  return text;
}

}  // namespace

Result<MemoryPlan> plan_memory(const MemoryPlanInput& in) {
  const auto per_token = static_cast<double>(in.bytes_per_token);
  const auto now = static_cast<double>(in.available_now_bytes);
  double tokens = 0;
  if (in.max_total_tokens) {
    tokens = static_cast<double>(*in.max_total_tokens);
    if (tokens * per_token > now) {
      return Error{ErrorCode::kInvalidArgument,
                   "--max-total-tokens " + std::to_string(*in.max_total_tokens) + " needs " +
                       gigabytes(tokens * per_token) + " of KV cache, but only " + gigabytes(now) +
                       " of memory are available after loading the weights; at most " +
                       std::to_string(static_cast<int64_t>(now / per_token)) + " tokens fit",
                   "max-total-tokens"};
    }
  } else if (in.mem_fraction_static) {
    const double budget = *in.mem_fraction_static * static_cast<double>(in.available_bytes) -
                          static_cast<double>(in.weight_bytes);
    tokens = std::min(budget, now) / per_token;
    if (tokens < in.page_size) {
      return Error{ErrorCode::kInvalidArgument,
                   "--mem-fraction-static " + std::to_string(*in.mem_fraction_static) + " of " +
                       gigabytes(static_cast<double>(in.available_bytes)) +
                       " leaves no room for a KV cache beside " +
                       gigabytes(static_cast<double>(in.weight_bytes)) +
                       " of weights; raise the fraction",
                   "mem-fraction-static"};
    }
  } else {
    tokens =
        std::min(static_cast<double>(kDefaultContexts) * static_cast<double>(in.context_length),
                 kDefaultShare * now / per_token);
  }
  // Slots are numbered by 32-bit page numbers.
  const double max_pages = std::numeric_limits<int32_t>::max();
  const double pages = std::min(std::max(0.0, tokens) / in.page_size, max_pages);
  MemoryPlan plan;
  plan.num_pages = static_cast<int>(pages);
  if (plan.num_pages < 1) {
    return Error{ErrorCode::kResourceExhausted,
                 "not even one page of " + std::to_string(in.page_size) +
                     " tokens of KV cache fits: a token takes " +
                     std::to_string(in.bytes_per_token) + " bytes, and " + gigabytes(now) +
                     " of memory are available" +
                     (in.max_total_tokens ? "; raise --max-total-tokens" : ""),
                 "max-total-tokens"};
  }
  const int64_t pool = static_cast<int64_t>(plan.num_pages) * in.page_size;
  plan.kv_bytes = static_cast<uint64_t>(pool) * in.bytes_per_token;
  if (pool < in.context_length) {
    plan.warning = "the KV cache holds " + std::to_string(pool) +
                   " tokens, less than the context length of " + std::to_string(in.context_length) +
                   ": requests longer than that are refused. Free memory, lower "
                   "--context-length, or use --kv-cache-dtype f16";
  }
  return plan;
}

}  // namespace capstan::app
