// The GPT-2 byte alphabet: every byte as one printable character.
#pragma once

#include <string>
#include <string_view>

namespace capstan::text {

/// The bytes that a token string of a byte-level vocabulary stands for. A string with a character
/// outside the alphabet stands for itself, as in the ByteLevel decoder of Hugging Face tokenizers.
std::string bytes_of_token(std::string_view token);

}  // namespace capstan::text
