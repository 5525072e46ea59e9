// Reads a command line against the flag table, the way SGLang's launcher does: unambiguous
// prefixes, underscores for dashes, the last value wins, a YAML file beneath the command line.
//
// Written by hand rather than with a library, because the order in which abbreviations are resolved
// is part of the contract (existing manifests depend on it) and no library offers it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "app/flag_table.h"
#include "base/result.h"

namespace capstan::app {

/// Values by flag name; every value has been checked against its flag's type and choices.
class FlagValues {
 public:
  bool given(std::string_view name) const { return values_.contains(std::string(name)); }

  bool boolean(std::string_view name) const { return text(name) == "true"; }
  std::string text(std::string_view name) const;  // given, else the table's default, else ""
  std::optional<int64_t> integer(std::string_view name) const;
  std::optional<double> number(std::string_view name) const;
  std::vector<std::string> list(std::string_view name) const;
  std::vector<double> numbers(std::string_view name) const;

  /// The flags given, in order of the table.
  std::vector<const Flag*> given_flags() const;
  /// {"model_path": …} of all documented flags and of the others given; secrets as "***".
  std::string to_json() const;

  void set(std::string_view name, std::vector<std::string> values) {
    values_[std::string(name)] = std::move(values);
  }

  bool help = false;           // -h, --help
  bool help_markdown = false;  // --help-markdown: the table for the documentation
  bool version = false;        // --version

 private:
  std::map<std::string, std::vector<std::string>, std::less<>> values_;
};

/// Exact name, then alias, then prefix among the flags of priority 0 and 1, then among all.
/// `written` is without dashes; underscores count as dashes.
Result<const Flag*> resolve_flag(std::string_view written);

/// `args`: what follows the sub-command. Errors are kInvalidArgument: the process exits with 2.
Result<FlagValues> parse_flags(const std::vector<std::string>& args);

/// 1500, 1.5k (powers of 1000: k M G T), 4Ki (powers of 1024: Ki Mi Gi Ti, no decimals).
Result<int64_t> parse_size(std::string_view text);

std::string usage_text();
std::string help_text();
std::string markdown_table();

}  // namespace capstan::app
