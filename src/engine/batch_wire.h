// Bytes of the step message that both of its sides share; see batch_message.h.
#pragma once

#include <cstdint>

namespace capstan::engine::wire {

inline constexpr uint8_t kMagic = 0xCB;
inline constexpr uint8_t kVersion = 1;
inline constexpr size_t kHeaderBytes = 8;

// Flags of a sequence; set: the field after it is left out.
inline constexpr uint8_t kFollows = 1;     // its mirror is the follower of the one before
inline constexpr uint8_t kFresh = 2;       // the mirror is new, or taken from a forgotten sequence
inline constexpr uint8_t kOneQuery = 4;    // one query
inline constexpr uint8_t kContinues = 8;   // starts where the last message's ended
inline constexpr uint8_t kSamePages = 16;  // the mirror's pages cover it
inline constexpr uint8_t kAppends = 32;    // all of the mirror's pages stay, others follow
inline constexpr uint8_t kLoose = 64;      // has no mirror: the whole table is here
inline constexpr uint8_t kAllFlags = 127;

// Which rows outputs are wanted of: two bits for logits, two for hidden states.
// Bit 4 of the same byte: groups of attention follow the rows.
inline constexpr uint8_t kGrouped = 16;
inline constexpr int kNoRows = 0, kAllRows = 1, kLastRows = 2, kListedRows = 3;

// A sequence that no message has named for so long may lose its mirror to another. Waking up again
// costs it a whole table; a step with drafts sends up to five messages.
inline constexpr uint32_t kForgetAfter = 256;

}  // namespace capstan::engine::wire
