// The opening of every connection: both sides show the protocol they speak and prove that they know
// the group's secret. Its form stays the same in all versions, so that two versions can tell each
// other apart with authenticated words.
//
//   client  hello (80 bytes): magic, protocol, version, purpose, nonce
//   server  hello (80 bytes), HMAC-SHA256(key, "server" hello hello)
//   client  HMAC-SHA256(key, "client" hello hello)
//
// Both nonces are fresh, so an earlier conversation cannot be replayed, and the two labels keep one
// side's proof from serving as the other's. What follows is neither encrypted nor signed: the
// network between the nodes is trusted not to alter packets.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "comm/control_socket.h"
#include "comm/secret.h"

namespace capstan::comm {

inline constexpr uint32_t kProtocol = 1;

/// Which connection it is; a control connection cannot pass for a tensor link.
enum class Purpose : uint32_t { kControl = 1, kLink = 2 };

inline constexpr size_t kHelloSize = 80;
using HelloBytes = std::array<char, kHelloSize>;

struct Hello {
  uint32_t protocol = kProtocol;
  std::string version;  // up to 32 bytes
  Purpose purpose = Purpose::kControl;
  Digest nonce{};
};

/// This program's version.
std::string_view own_version();
HelloBytes encode_hello(const Hello& hello);
/// False when the first `size` bytes cannot be a hello's. Fills `hello` when size is kHelloSize.
bool decode_hello(const char* data, size_t size, Hello& hello);

Digest server_proof(std::string_view key, const HelloBytes& client, const HelloBytes& server);
Digest client_proof(std::string_view key, const HelloBytes& client, const HelloBytes& server);

/// "Capstan 0.2.0 with protocol 2, here it is 0.1.0 with protocol 1; ..."
std::string protocol_difference(const Hello& other);

/// The client's side. kUnavailable: try again later; kInvalidArgument: an authenticated server
/// speaks another protocol.
Status open_as_client(int fd, Purpose purpose, std::string_view key, TimePoint deadline,
                      const Stop& stop);

/// The server's side, a step at a time: a stranger that talks slowly, or not at all, holds up
/// nobody.
class ServerOpening {
 public:
  enum class State { kPending, kOpen, kRefused };

  ServerOpening(int fd, Purpose purpose, std::string key);
  /// Goes on with what has arrived. Never reads beyond the opening.
  State advance();
  /// Why it was refused.
  const std::string& why() const { return why_; }
  /// kOpen, but the protocols differ: what to tell.
  bool other_protocol() const { return client_.protocol != kProtocol; }
  const Hello& client() const { return client_; }

 private:
  State refuse(std::string why);
  bool fill(char* into, size_t size);

  int fd_;
  Purpose purpose_;
  std::string key_;
  Hello client_;
  HelloBytes client_bytes_{}, server_bytes_{};
  Digest proof_{};
  size_t got_ = 0;
  bool answered_ = false, closed_ = false;
  State state_ = State::kPending;
  std::string why_;
};

}  // namespace capstan::comm
