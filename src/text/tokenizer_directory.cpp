// Tokenizer::from_directory: the files a Hugging Face checkpoint keeps beside its weights.
#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "text/hf_tokenizer.h"

namespace capstan::text {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

Result<std::string> read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return not_found("cannot open " + path.string());
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) return data_loss("cannot read " + path.string());
  return text;
}

/// The object in a JSON file; an empty one if the file does not exist.
Result<json::object> read_object(const fs::path& path) {
  std::error_code ec;
  if (!fs::exists(path, ec)) return json::object();
  CAPSTAN_ASSIGN(const std::string text, read_file(path));
  boost::system::error_code error;
  json::value value = json::parse(text, error);
  if (error) return data_loss(path.string() + " is not valid JSON: " + error.message());
  if (!value.is_object()) return data_loss(path.string() + " is not a JSON object");
  return std::move(value.as_object());
}

/// A special token is a string, an object with "content", or null.
std::string token_text(const json::object& config, std::string_view key) {
  const json::value* value = config.if_contains(key);
  if (value != nullptr && value->is_object()) value = value->as_object().if_contains("content");
  if (value == nullptr || !value->is_string()) return {};
  return std::string(value->as_string());
}

bool flag(const json::object& config, std::string_view key) {
  const json::value* value = config.if_contains(key);
  return value != nullptr && value->is_bool() && value->as_bool();
}

void take_template(TokenizerSettings& settings, std::string_view name, const json::value& text) {
  if (!text.is_string()) return;
  if (name == "default") settings.chat_template = text.as_string();
  if (name == "tool_use") settings.tool_chat_template = text.as_string();
}

/// A string, or named ones as [{"name", "template"}] or {name: template}.
void read_template(TokenizerSettings& settings, const json::value& value) {
  if (value.is_string()) {
    take_template(settings, "default", value);
  } else if (value.is_object()) {
    for (const auto& entry : value.as_object()) {
      take_template(settings, entry.key(), entry.value());
    }
  } else if (value.is_array()) {
    for (const json::value& entry : value.as_array()) {
      if (!entry.is_object()) continue;
      const json::value* name = entry.as_object().if_contains("name");
      const json::value* text = entry.as_object().if_contains("template");
      if (name != nullptr && name->is_string() && text != nullptr) {
        take_template(settings, name->as_string(), *text);
      }
    }
  }
}

/// Files of their own win over tokenizer_config.json, as in transformers.
Status read_template_files(TokenizerSettings& settings, const fs::path& directory) {
  const std::pair<fs::path, std::string*> files[] = {
      {directory / "chat_template.jinja", &settings.chat_template},
      {directory / "additional_chat_templates" / "tool_use.jinja", &settings.tool_chat_template},
  };
  for (const auto& [path, target] : files) {
    std::error_code ec;
    if (!fs::exists(path, ec)) continue;
    CAPSTAN_ASSIGN(*target, read_file(path));
  }
  return {};
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_directory(const std::string& directory) {
  const fs::path root(directory);
  const fs::path path = root / "tokenizer.json";
  std::error_code ec;
  if (!fs::exists(path, ec)) {
    return not_found("no tokenizer.json in " + directory +
                     ": point to a directory that holds a Hugging Face checkpoint, or to a GGUF "
                     "file, which carries its tokenizer");
  }
  CAPSTAN_ASSIGN(const std::string text, read_file(path));
  CAPSTAN_ASSIGN(const json::object config, read_object(root / "tokenizer_config.json"));
  CAPSTAN_ASSIGN(const json::object map, read_object(root / "special_tokens_map.json"));

  TokenizerSettings settings;
  const auto named = [&](std::string_view key) {
    return config.contains(key) ? token_text(config, key) : token_text(map, key);
  };
  settings.bos_token = named("bos_token");
  settings.eos_token = named("eos_token");
  settings.add_bos = flag(config, "add_bos_token") && !settings.bos_token.empty();
  settings.add_eos = flag(config, "add_eos_token") && !settings.eos_token.empty();
  // The keys ask for tokens that a file's own post-processor (often just ByteLevel) may not add.
  // "false" takes nothing away: transformers keeps what tokenizer.json says.
  settings.replace_post_processor = settings.add_bos || settings.add_eos;
  if (const json::value* value = config.if_contains("chat_template")) {
    read_template(settings, *value);
  }
  CAPSTAN_RETURN_IF_ERROR(read_template_files(settings, root));
  return tokenizer_from_json(text, std::move(settings), path.string());
}

}  // namespace capstan::text
