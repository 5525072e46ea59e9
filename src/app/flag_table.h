// Every flag of `capstan serve`: one table that parsing, help, documentation and /server_info
// share.
//
// Names, aliases and defaults are SGLang's, so that a manifest written for its launcher works here;
// a flag of any of its releases that has no meaning here is accepted with a warning.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace capstan::app {

enum class FlagType : uint8_t {
  kBool,  // takes no value (or =true, =false)
  kInt,
  kSize,  // integer with k M G T (powers of 1000) or Ki Mi Gi Ti (of 1024)
  kFloat,
  kString,
  kJson,    // an object
  kList,    // one or more strings
  kFloats,  // one or more numbers
};

enum class FlagEffect : uint8_t {
  kEffective,
  kNoEffect,  // accepted, one warning line
  kRefused,   // not available yet: anything but the default ends the start with a message
};

struct Flag {
  std::string_view name;     // without dashes
  std::string_view aliases;  // separated by spaces
  FlagType type = FlagType::kString;
  std::string_view fallback;  // default as text; empty: unset
  std::string_view choices;   // separated by spaces; empty: anything
  int priority = 1;           // 0 and 1 are abbreviated before 2
  FlagEffect effect = FlagEffect::kEffective;
  std::string_view group;
  std::string_view help;
  bool own = false;     // not one of SGLang's
  bool secret = false;  // not to be shown
};

/// The flags with an entry in the documentation, in its order.
std::span<const Flag> documented_flags();
/// These, then the flags of SGLang's releases that have no meaning here.
std::span<const Flag> all_flags();

std::vector<std::string_view> split_words(std::string_view words);

}  // namespace capstan::app
