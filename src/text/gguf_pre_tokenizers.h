// tokenizer.ggml.pre: which splitting a GGUF file's tokenizer had.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace capstan::text {

/// The parts of a tokenizer.json that depend on `tokenizer.ggml.pre`. GGUF stores only the name.
struct GgufPreTokenizer {
  std::vector<std::string_view> names;
  /// Regular expressions of Split steps (behaviour Isolated), in order.
  std::vector<std::string_view> splits;
  bool single_digits = false;  // a Digits(individual_digits) step after the splits
  bool gpt2_split = false;     // ByteLevel splits by the GPT-2 pattern
  bool nfc = false;            // normalizer NFC
  bool ignore_merges = false;  // a whole piece in the vocabulary is taken as it is
  bool add_bos = false;        // when tokenizer.ggml.add_bos_token is absent
};

/// nullptr if unknown.
const GgufPreTokenizer* find_gguf_pre_tokenizer(std::string_view name);

/// "smollm, llama-bpe, ...", for error messages.
std::string known_gguf_pre_tokenizers();

}  // namespace capstan::text
