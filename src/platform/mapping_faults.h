// Says which file it was when a mapped one can not be read any more.
#pragma once

#include <cstddef>
#include <string>

namespace capstan::platform {

/// From here on a SIGBUS in a MappedFile writes one line to stderr, with the file and the position,
/// before it kills the process as it would anyway: somebody truncated the file, or its disk failed.
/// Other SIGBUSes kill without a word.
void explain_mapping_faults();

// MappedFile's: what is mapped where. Mappings beyond the 512th are not known, and not explained.
void note_mapping(const std::byte* data, size_t size, const std::string& path);
void forget_mapping(const std::byte* data);

}  // namespace capstan::platform
