// --help, and the same as a Markdown table for the documentation.
#include <string>

#include "app/flags.h"

namespace capstan::app {
namespace {

std::string_view placeholder(const Flag& flag) {
  switch (flag.type) {
    case FlagType::kBool:
      return "";
    case FlagType::kInt:
      return "N";
    case FlagType::kSize:
      return "TOKENS";
    case FlagType::kFloat:
      return "X";
    case FlagType::kJson:
      return "JSON";
    case FlagType::kList:
      return "VALUE...";
    case FlagType::kFloats:
      return "X...";
    case FlagType::kString:
      return "VALUE";
  }
  return "";
}

std::string effect_note(const Flag& flag) {
  if (flag.effect == FlagEffect::kNoEffect) return "(no effect) ";
  if (flag.effect == FlagEffect::kRefused) return "(not available yet) ";
  return "";
}

std::string wrapped(const std::string& text, size_t indent, size_t width) {
  std::string out;
  size_t column = indent;
  for (std::string_view word : split_words(text)) {
    if (column > indent && column + word.size() + 1 > width) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
  }
  return out;
}

}  // namespace

std::string usage_text() {
  return "usage: capstan serve [--model-path PATH] [--port PORT] [FLAG...]\n"
         "       capstan serve --help lists all flags\n";
}

std::string help_text() {
  std::string out =
      "usage: capstan serve [FLAG...]\n\nLoads a model and serves it over HTTP.\n\n"
      "Flags may be written --name value or --name=value, abbreviated where unambiguous, with\n"
      "underscores for dashes; the last value wins.\n";
  std::string_view group;
  for (const Flag& flag : documented_flags()) {
    if (flag.group != group) {
      group = flag.group;
      out += "\n" + std::string(group) + "\n";
    }
    std::string head = "  --" + std::string(flag.name);
    for (std::string_view alias : split_words(flag.aliases)) head += ", --" + std::string(alias);
    const std::string_view value = placeholder(flag);
    if (!value.empty()) head += " " + std::string(value);
    std::string body = effect_note(flag) + std::string(flag.help);
    if (!flag.choices.empty() && flag.effect == FlagEffect::kEffective) {
      body += " [" + std::string(flag.choices) + "]";
    }
    if (!flag.fallback.empty()) body += " (default " + std::string(flag.fallback) + ")";
    out += head + "\n      " + wrapped(body, 6, 100) + "\n";
  }
  out +=
      "\nAccepted without effect, because they belong to parts of SGLang that do not exist here\n "
      " ";
  std::string names;
  for (const Flag& flag : all_flags().subspan(documented_flags().size())) {
    names += (names.empty() ? "--" : " --") + std::string(flag.name);
  }
  return out + wrapped(names, 2, 100) + "\n";
}

std::string markdown_table() {
  std::string out, group;
  for (const Flag& flag : documented_flags()) {
    if (flag.group != group) {
      group = flag.group;
      out += "\n### " + group + "\n\n| Flag | Default | Meaning |\n|---|---|---|\n";
    }
    out += "| `--" + std::string(flag.name) + "`";
    for (std::string_view alias : split_words(flag.aliases)) {
      out += ", `--" + std::string(alias) + "`";
    }
    out += " | ";
    out += flag.type == FlagType::kBool ? "off"
           : flag.fallback.empty()      ? ""
                                        : "`" + std::string(flag.fallback) + "`";
    std::string help = std::string(flag.help);
    for (size_t at = 0; (at = help.find('|', at)) != std::string::npos; at += 2) {
      help.insert(at, "\\");
    }
    out += " | " + effect_note(flag) + help;
    if (flag.own) out += " (own flag)";
    out += " |\n";
  }
  return out;
}

}  // namespace capstan::app
