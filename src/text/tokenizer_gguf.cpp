// Tokenizer::from_gguf: tokenizer.json rebuilt from tokenizer.ggml.* metadata.
#include <string>
#include <unordered_set>

#include "text/gguf_pre_tokenizers.h"
#include "text/hf_tokenizer.h"
#include "text/utf8.h"

namespace capstan::text {
namespace {

// Values of tokenizer.ggml.token_type.
constexpr int32_t kControl = 3;
constexpr int32_t kUserDefined = 4;
constexpr int32_t kUnused = 5;  // what converters put where the model has rows but no token

void append_json_string(std::string& out, std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

Status check(const GgufVocabulary& v) {
  if (v.model != "gpt2") {
    return invalid_argument("tokenizer.ggml.model is \"" + v.model +
                            "\"; only \"gpt2\" (byte-level BPE) is supported");
  }
  if (v.tokens.empty()) return data_loss("tokenizer.ggml.tokens is empty or missing");
  if (!v.token_types.empty() && v.token_types.size() != v.tokens.size()) {
    return data_loss("tokenizer.ggml.token_type has " + std::to_string(v.token_types.size()) +
                     " entries for " + std::to_string(v.tokens.size()) + " tokens");
  }
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    if (first_invalid_utf8(v.tokens[id])) {
      return data_loss("tokenizer.ggml.tokens[" + std::to_string(id) + "] is not valid UTF-8");
    }
  }
  for (size_t i = 0; i < v.merges.size(); ++i) {
    if (first_invalid_utf8(v.merges[i])) {
      return data_loss("tokenizer.ggml.merges[" + std::to_string(i) + "] is not valid UTF-8");
    }
  }
  return {};
}

Result<std::string> token_named(const GgufVocabulary& v, int32_t id, const char* key) {
  if (id < 0) return std::string();
  if (static_cast<size_t>(id) >= v.tokens.size()) {
    return data_loss("tokenizer.ggml." + std::string(key) + " is " + std::to_string(id) +
                     ", but there are only " + std::to_string(v.tokens.size()) + " tokens");
  }
  return v.tokens[static_cast<size_t>(id)];
}

int32_t type_of(const GgufVocabulary& v, size_t id) {
  return v.token_types.empty() ? 1 : v.token_types[id];
}

Result<const GgufPreTokenizer*> pre_tokenizer(const GgufVocabulary& v) {
  const GgufPreTokenizer* pre = find_gguf_pre_tokenizer(v.pre);
  if (pre == nullptr) {
    return invalid_argument("tokenizer.ggml.pre \"" + v.pre +
                            "\" is not supported; known: " + known_gguf_pre_tokenizers() +
                            ". Use the model's Hugging Face directory with tokenizer.json");
  }
  return pre;
}

void append_pre_tokenizer(std::string& out, const GgufPreTokenizer& pre) {
  std::vector<std::string> steps;
  for (const std::string_view pattern : pre.splits) {
    std::string step = R"({"type":"Split","pattern":{"Regex":)";
    append_json_string(step, pattern);
    steps.push_back(step + R"(},"behavior":"Isolated","invert":false})");
  }
  if (pre.single_digits) steps.emplace_back(R"({"type":"Digits","individual_digits":true})");
  steps.push_back(R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,)"
                  R"("use_regex":)" +
                  std::string(pre.gpt2_split ? "true}" : "false}"));
  out += R"("pre_tokenizer":)";
  if (steps.size() == 1) {
    out += steps.front();
  } else {
    out += R"({"type":"Sequence","pretokenizers":[)";
    for (size_t i = 0; i < steps.size(); ++i) out += (i == 0 ? "" : ",") + steps[i];
    out += "]}";
  }
}

void append_added_tokens(std::string& out, const GgufVocabulary& v) {
  out += R"("added_tokens":[)";
  bool first = true;
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    const int32_t type = type_of(v, id);
    if (type != kControl && type != kUserDefined) continue;
    if (!first) out += ',';
    first = false;
    out += R"({"id":)" + std::to_string(id) + R"(,"content":)";
    append_json_string(out, v.tokens[id]);
    out += R"(,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":)";
    out += type == kControl ? "true}" : "false}";
  }
  out += ']';
}

void append_model(std::string& out, const GgufVocabulary& v, const GgufPreTokenizer& pre) {
  out += R"("model":{"type":"BPE","dropout":null,"unk_token":null,)"
         R"("continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,)"
         R"("byte_fallback":false,"ignore_merges":)";
  out += pre.ignore_merges ? "true" : "false";
  out += R"(,"vocab":{)";
  // Added tokens are in the vocabulary too: the crate then gives them exactly these ids. The first
  // of two equal strings wins; the other id has no text of its own.
  std::unordered_set<std::string_view> seen;
  seen.reserve(v.tokens.size());
  bool first = true;
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    if (type_of(v, id) == kUnused || !seen.insert(v.tokens[id]).second) continue;
    if (!first) out += ',';
    first = false;
    append_json_string(out, v.tokens[id]);
    out += ':' + std::to_string(id);
  }
  out += R"(},"merges":[)";
  for (size_t i = 0; i < v.merges.size(); ++i) {
    if (i > 0) out += ',';
    append_json_string(out, v.merges[i]);
  }
  out += "]}";
}

}  // namespace

Result<std::string> tokenizer_json_from_gguf(const GgufVocabulary& v) {
  CAPSTAN_RETURN_IF_ERROR(check(v));
  CAPSTAN_ASSIGN(const GgufPreTokenizer* pre, pre_tokenizer(v));
  std::string out;
  out.reserve(v.tokens.size() * 40 + v.merges.size() * 20);
  out += R"({"version":"1.0","truncation":null,"padding":null,)";
  append_added_tokens(out, v);
  out += pre->nfc ? R"(,"normalizer":{"type":"NFC"},)" : R"(,"normalizer":null,)";
  append_pre_tokenizer(out, *pre);
  out += R"(,"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,)"
         R"("trim_offsets":true,"use_regex":true},)";
  append_model(out, v, *pre);
  out += '}';
  return out;
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_gguf(const GgufVocabulary& v) {
  CAPSTAN_ASSIGN(const std::string json, tokenizer_json_from_gguf(v));
  TokenizerSettings settings;
  CAPSTAN_ASSIGN(settings.bos_token, token_named(v, v.bos_id, "bos_token_id"));
  CAPSTAN_ASSIGN(settings.eos_token, token_named(v, v.eos_id, "eos_token_id"));
  settings.replace_post_processor = true;
  settings.add_bos = v.add_bos.value_or(find_gguf_pre_tokenizer(v.pre)->add_bos);
  settings.add_eos = v.add_eos.value_or(false);
  settings.chat_template = v.chat_template;
  return tokenizer_from_json(json, std::move(settings), "the GGUF file's tokenizer");
}

}  // namespace capstan::text
