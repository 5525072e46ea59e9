// Text to token ids and back, exactly as Hugging Face `tokenizers` does it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace capstan::text {

/// The tokenizer part of GGUF metadata (keys tokenizer.ggml.*).
struct GgufVocabulary {
  std::string model;                 // "gpt2"
  std::string pre;                   // pre-tokenizer name: smollm, qwen2, llama-bpe, ...
  std::vector<std::string> tokens;   // byte-mapped strings, index = id
  std::vector<int32_t> token_types;  // 1 normal, 3 control, 4 user-defined, 5 unused, 6 byte
  std::vector<std::string> merges;   // "a b"
  int32_t bos_id = -1, eos_id = -1, pad_id = -1;
  std::optional<bool> add_bos, add_eos;
  std::string chat_template;  // empty if none
};

/// Immutable and thread-safe.
class Tokenizer {
 public:
  /// Reads tokenizer.json and, beside it, tokenizer_config.json (else special_tokens_map.json) and
  /// chat_template.jinja. Only byte-level BPE is supported: others are kInvalidArgument; a missing
  /// tokenizer.json is kNotFound, a damaged file kDataLoss.
  static Result<std::shared_ptr<const Tokenizer>> from_directory(const std::string& directory);
  /// Rebuilds the Hugging Face tokenizer from GGUF metadata. An unknown `pre` is
  /// kInvalidArgument and lists the known ones; contradictory metadata is kDataLoss.
  static Result<std::shared_ptr<const Tokenizer>> from_gguf(const GgufVocabulary& vocabulary);
  virtual ~Tokenizer() = default;

  /// `add_special_tokens` adds BOS/EOS as the post-processor says; never for rendered templates.
  /// Text that is not UTF-8 is kInvalidArgument. Takes no lock: threads encode in parallel.
  virtual Result<std::vector<int32_t>> encode(std::string_view utf8,
                                              bool add_special_tokens) const = 0;
  /// Always valid UTF-8: ill-formed bytes become U+FFFD. Ids without text add nothing.
  virtual Result<std::string> decode(std::span<const int32_t> ids,
                                     bool skip_special_tokens) const = 0;
  /// The raw bytes of one token (byte map inverted); empty for ids without text.
  virtual std::string_view token_bytes(int32_t id) const = 0;
  virtual bool is_special(int32_t id) const = 0;
  virtual std::optional<int32_t> id_of(std::string_view token) const = 0;

  virtual int32_t vocab_size() const = 0;  // highest id + 1
  virtual int32_t bos_id() const = 0;      // -1 if none
  virtual int32_t eos_id() const = 0;
  virtual const std::string& bos_token() const = 0;
  virtual const std::string& eos_token() const = 0;
  virtual const std::string& chat_template() const = 0;  // Jinja source, empty if none
  /// The template for requests with tools: the one named "tool_use" if the model has it.
  virtual const std::string& tool_chat_template() const { return chat_template(); }
};

}  // namespace capstan::text
