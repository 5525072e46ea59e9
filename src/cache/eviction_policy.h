// Which cached prefix goes first when pages are needed (--radix-eviction-policy).
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace capstan::cache {

enum class EvictionPolicy : uint8_t {
  kLru,   // least recently used
  kSlru,  // prefixes used once go before prefixes used again; LRU within each
  kLfu,   // fewest uses first, by powers of two; LRU within a power
};

/// "lru", "slru", "lfu"; kInvalidArgument otherwise.
Result<EvictionPolicy> parse_eviction_policy(std::string_view name);

}  // namespace capstan::cache
