#include "app/flags.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <cmath>

namespace capstan::app {
namespace {

std::string fold(std::string_view written) {
  std::string name(written);
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

std::vector<std::string_view> names_of(const Flag& flag) {
  std::vector<std::string_view> names = split_words(flag.aliases);
  names.insert(names.begin(), flag.name);
  return names;
}

const Flag* by_name(std::string_view name) {
  for (const Flag& flag : all_flags()) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

/// Damerau-Levenshtein distance without the transposition across edits.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> previous(b.size() + 1), row(b.size() + 1), before;
  for (size_t j = 0; j <= b.size(); ++j) previous[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min(
          {previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        row[j] = std::min(row[j], before[j - 2] + 1);
      }
    }
    before = previous;
    previous = row;
  }
  return previous[b.size()];
}

std::string suggestion(std::string_view name) {
  std::string_view best;
  size_t best_distance = std::max<size_t>(2, name.size() / 4) + 1;
  for (const Flag& flag : all_flags()) {
    for (std::string_view candidate : names_of(flag)) {
      const size_t d = distance(name, candidate);
      if (d < best_distance) {
        best_distance = d;
        best = candidate;
      }
    }
  }
  return best.empty() ? "" : "; did you mean --" + std::string(best) + "?";
}

/// The flags of at most `priority` that have a name beginning with `prefix`.
std::vector<const Flag*> with_prefix(std::string_view prefix, int priority) {
  std::vector<const Flag*> found;
  for (const Flag& flag : all_flags()) {
    if (flag.priority > priority) continue;
    const auto names = names_of(flag);
    if (std::any_of(names.begin(), names.end(),
                    [&](std::string_view n) { return n.starts_with(prefix); })) {
      found.push_back(&flag);
    }
  }
  return found;
}

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const char* end = text.data() + text.size();
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  const auto [at, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || at != end || text.empty()) return std::nullopt;
  return value;
}

Error bad_value(const Flag& flag, const std::string& value, const std::string& wanted) {
  return invalid_argument("--" + std::string(flag.name) + ": '" + value + "' is not " + wanted,
                          std::string(flag.name));
}

/// Checks one value; the text that is kept.
Result<std::string> checked(const Flag& flag, const std::string& value) {
  switch (flag.type) {
    case FlagType::kBool:
      if (value == "true" || value == "false") return value;
      return bad_value(flag, value, "true or false; it is a switch and takes no value");
    case FlagType::kInt:
      if (!parse_number<int64_t>(value)) return bad_value(flag, value, "an integer");
      break;
    case FlagType::kSize: {
      const Result<int64_t> size = parse_size(value);
      if (!size.ok()) {
        return bad_value(flag, value, "a number of tokens such as 4096, 1.5k or 4Ki");
      }
      return std::to_string(*size);
    }
    case FlagType::kFloat:
    case FlagType::kFloats: {
      const auto number = parse_number<double>(value);
      if (!number || !std::isfinite(*number)) return bad_value(flag, value, "a number");
      break;
    }
    case FlagType::kJson: {
      boost::system::error_code error;
      const boost::json::value json = boost::json::parse(value, error);
      if (error || !json.is_object()) return bad_value(flag, value, "a JSON object");
      break;
    }
    case FlagType::kString:
    case FlagType::kList:
      break;
  }
  if (!flag.choices.empty()) {
    const auto choices = split_words(flag.choices);
    if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
      std::string list;
      for (std::string_view c : choices) list += (list.empty() ? "" : ", ") + std::string(c);
      return invalid_argument("--" + std::string(flag.name) + ": invalid choice '" + value +
                                  "' (choose from " + list + ")",
                              std::string(flag.name));
    }
  }
  return value;
}

bool takes_many(const Flag& flag) {
  return flag.type == FlagType::kList || flag.type == FlagType::kFloats;
}

/// An argument that starts the next flag. Negative numbers are values.
bool is_flag(const std::string& arg) {
  return arg.size() > 1 && arg[0] == '-' && !parse_number<double>(arg);
}

Status assign(FlagValues& values, const Flag& flag, std::vector<std::string> texts) {
  for (std::string& text : texts) {
    CAPSTAN_ASSIGN(text, checked(flag, text));
  }
  values.set(flag.name, std::move(texts));
  return {};
}

Result<std::string> yaml_scalar(const YAML::Node& node, const std::string& key,
                                const std::string& file) {
  if (node.IsScalar()) return node.Scalar();
  return invalid_argument(
      file + ": the value of '" + key + "' must be a string, number, boolean or a list of them",
      "config");
}

Status read_config(FlagValues& values, const std::string& file) {
  YAML::Node root;
  try {
    root = YAML::LoadFile(file);
  } catch (const YAML::BadFile&) {
    return invalid_argument("--config: cannot read '" + file + "'", "config");
  } catch (const YAML::Exception& e) {
    return invalid_argument("--config: " + file + ": " + e.what(), "config");
  }
  if (root.IsNull()) return {};
  if (!root.IsMap()) {
    return invalid_argument("--config: " + file + " must be a mapping of flag names to values",
                            "config");
  }
  for (const auto& entry : root) {
    if (!entry.first.IsScalar()) {
      return invalid_argument("--config: " + file + ": a flag name must be a string", "config");
    }
    const std::string key = entry.first.Scalar();
    const Result<const Flag*> flag = resolve_flag(key);
    if (!flag.ok()) {
      return invalid_argument("--config: " + file + ": " + flag.error().message, "config");
    }
    if ((*flag)->name == "config") {
      return invalid_argument("--config: " + file + " must not name another file", "config");
    }
    std::vector<std::string> texts;
    if (entry.second.IsNull()) continue;  // unset
    if (entry.second.IsSequence()) {
      for (const YAML::Node& item : entry.second) {
        CAPSTAN_ASSIGN(texts.emplace_back(), yaml_scalar(item, key, file));
      }
      if (!takes_many(**flag) && texts.size() != 1) {
        return invalid_argument("--config: " + file + ": '" + key + "' takes one value, not " +
                                    std::to_string(texts.size()),
                                "config");
      }
    } else {
      CAPSTAN_ASSIGN(texts.emplace_back(), yaml_scalar(entry.second, key, file));
    }
    if ((*flag)->type == FlagType::kBool) {
      bool on = false;
      if (!YAML::convert<bool>::decode(YAML::Node(texts[0]), on)) {
        return invalid_argument("--config: " + file + ": '" + key + "' must be true or false",
                                "config");
      }
      texts[0] = on ? "true" : "false";
    }
    if (Status status = assign(values, **flag, std::move(texts)); !status.ok()) {
      return invalid_argument("--config: " + file + ": " + status.error().message, "config");
    }
  }
  return {};
}

/// One pass over the arguments.
Status read_arguments(const std::vector<std::string>& args, FlagValues& values) {
  for (size_t i = 0; i < args.size();) {
    const std::string& arg = args[i++];
    if (arg == "-h" || arg == "--help") {
      values.help = true;
      continue;
    }
    if (arg == "--help-markdown") {
      values.help_markdown = true;
      continue;
    }
    if (arg == "--version") {
      values.version = true;
      continue;
    }
    if (!arg.starts_with("--") || arg.size() == 2) {
      return invalid_argument("unexpected argument '" + arg + "'; flags begin with --");
    }
    const size_t equals = arg.find('=');
    const std::string written = arg.substr(2, equals == std::string::npos ? equals : equals - 2);
    CAPSTAN_ASSIGN(const Flag* flag, resolve_flag(written));
    std::vector<std::string> texts;
    if (equals != std::string::npos) {
      texts.push_back(arg.substr(equals + 1));
    } else if (flag->type == FlagType::kBool) {
      // Newer releases of SGLang let a switch be followed by its value.
      const bool spelled = i < args.size() && (args[i] == "true" || args[i] == "false");
      texts.push_back(spelled ? args[i++] : "true");
    } else {
      while (i < args.size() && !is_flag(args[i]) && (texts.empty() || takes_many(*flag))) {
        texts.push_back(args[i++]);
      }
      if (texts.empty()) {
        return invalid_argument("--" + std::string(flag->name) + " needs a value",
                                std::string(flag->name));
      }
    }
    CAPSTAN_RETURN_IF_ERROR(assign(values, *flag, std::move(texts)));
  }
  return {};
}

}  // namespace

Result<int64_t> parse_size(std::string_view text) {
  struct Unit {
    std::string_view suffix;
    int64_t factor;
  };
  constexpr Unit kUnits[] = {
      {"Ki", int64_t{1} << 10},
      {"Mi", int64_t{1} << 20},
      {"Gi", int64_t{1} << 30},
      {"Ti", int64_t{1} << 40},
      {"k", 1000},
      {"M", 1000000},
      {"G", 1000000000},
      {"T", 1000000000000},
  };
  const Error error = invalid_argument("'" + std::string(text) + "' is not a size");
  for (const Unit& unit : kUnits) {
    if (!text.ends_with(unit.suffix)) continue;
    text.remove_suffix(unit.suffix.size());
    const bool binary = unit.suffix.size() == 2;
    const auto whole = parse_number<int64_t>(text);
    if (whole && std::abs(*whole) < INT64_MAX / unit.factor) return *whole * unit.factor;
    const auto decimal = binary ? std::nullopt : parse_number<double>(text);
    if (!decimal || !(std::abs(*decimal) < 9e18 / static_cast<double>(unit.factor))) return error;
    return static_cast<int64_t>(std::llround(*decimal * static_cast<double>(unit.factor)));
  }
  const auto plain = parse_number<int64_t>(text);
  if (!plain) return error;
  return *plain;
}

Result<const Flag*> resolve_flag(std::string_view written) {
  const std::string name = fold(written);
  if (const Flag* exact = by_name(name)) return exact;
  for (const Flag& flag : all_flags()) {
    const auto aliases = split_words(flag.aliases);
    if (std::find(aliases.begin(), aliases.end(), name) != aliases.end()) return &flag;
  }
  for (const int priority : {1, 2}) {
    if (name.empty()) break;
    const std::vector<const Flag*> found = with_prefix(name, priority);
    if (found.size() == 1) return found[0];
    if (found.size() > 1) {
      std::string list;
      for (const Flag* flag : found) {
        list += (list.empty() ? "--" : ", --") + std::string(flag->name);
      }
      return invalid_argument("--" + name + " is ambiguous, it could be " + list);
    }
  }
  return invalid_argument("unknown flag --" + std::string(written) + suggestion(name));
}

Result<FlagValues> parse_flags(const std::vector<std::string>& args) {
  FlagValues command_line;
  CAPSTAN_RETURN_IF_ERROR(read_arguments(args, command_line));
  if (command_line.text("config").empty()) return command_line;
  // The file first, then the command line over it: its flags win.
  FlagValues values;
  CAPSTAN_RETURN_IF_ERROR(read_config(values, command_line.text("config")));
  CAPSTAN_RETURN_IF_ERROR(read_arguments(args, values));
  return values;
}

std::string FlagValues::text(std::string_view name) const {
  const auto it = values_.find(name);
  if (it != values_.end()) return it->second.empty() ? "" : it->second.back();
  const Flag* flag = by_name(name);
  return flag == nullptr ? "" : std::string(flag->fallback);
}

std::optional<int64_t> FlagValues::integer(std::string_view name) const {
  return parse_number<int64_t>(text(name));
}

std::optional<double> FlagValues::number(std::string_view name) const {
  return parse_number<double>(text(name));
}

std::vector<std::string> FlagValues::list(std::string_view name) const {
  const auto it = values_.find(name);
  return it == values_.end() ? std::vector<std::string>{} : it->second;
}

std::vector<double> FlagValues::numbers(std::string_view name) const {
  std::vector<double> out;
  for (const std::string& text : list(name)) out.push_back(*parse_number<double>(text));
  return out;
}

std::vector<const Flag*> FlagValues::given_flags() const {
  std::vector<const Flag*> out;
  for (const Flag& flag : all_flags()) {
    if (given(flag.name)) out.push_back(&flag);
  }
  return out;
}

std::string FlagValues::to_json() const {
  boost::json::object out;
  const size_t documented = documented_flags().size();
  size_t index = 0;
  for (const Flag& flag : all_flags()) {
    if (index++ >= documented && !given(flag.name)) continue;
    std::string key(flag.name);
    std::replace(key.begin(), key.end(), '-', '_');
    boost::json::value value = nullptr;
    if (flag.secret) {
      if (given(flag.name)) value = "***";
    } else if (flag.type == FlagType::kBool) {
      value = boolean(flag.name);
    } else if (takes_many(flag)) {
      if (given(flag.name)) {
        boost::json::array array;
        if (flag.type == FlagType::kFloats) {
          for (double d : numbers(flag.name)) array.emplace_back(d);
        } else {
          for (const std::string& s : list(flag.name)) array.emplace_back(s);
        }
        value = std::move(array);
      }
    } else if (flag.type == FlagType::kInt || flag.type == FlagType::kSize) {
      if (const auto n = integer(flag.name)) value = *n;
    } else if (flag.type == FlagType::kFloat) {
      if (const auto n = number(flag.name)) value = *n;
    } else if (const std::string s = text(flag.name); !s.empty()) {
      value = s;
    }
    out[key] = std::move(value);
  }
  return boost::json::serialize(out);
}

}  // namespace capstan::app
