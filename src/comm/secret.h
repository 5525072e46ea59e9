// The group's secret: how a connection proves that it belongs to the group.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace capstan::comm {

using Digest = std::array<uint8_t, 32>;

/// 32 bytes from the kernel's generator.
Digest random_digest();
/// HMAC-SHA256. Throws std::runtime_error when the library refuses (out of memory).
Digest hmac(std::string_view key, std::string_view message);
/// In a time that does not depend on where they differ.
bool equal(const Digest& a, const Digest& b);
std::string_view view(const Digest& digest);
std::string hex(std::string_view bytes);

/// The key of the control connections: from the token, or, when that is empty, from the group's
/// address, which keeps out strays only.
std::string control_key(std::string_view token, std::string_view dist_init_addr);
/// The key of the tensor links of one incarnation of the group; processes of an earlier one do not
/// know its session.
std::string link_key(std::string_view control_key, std::string_view session);

}  // namespace capstan::comm
