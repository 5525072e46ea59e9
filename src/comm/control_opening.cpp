#include "comm/control_opening.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "comm/control_message.h"

namespace capstan::comm {
namespace {

constexpr std::string_view kMagic = "CAPSTAN\n";
constexpr size_t kVersionSize = 32;

/// What an HTTP client that takes this for the API's port is told.
constexpr std::string_view kHttpAnswer =
    "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    "This is the port at which the nodes of a Capstan group meet, not its API.\n";

bool looks_like_http(const char* data, size_t size) {
  for (const std::string_view method : {"GET ", "POST", "HEAD", "PUT ", "OPTI", "PRI "}) {
    if (size >= 4 && std::string_view(data, 4) == method) return true;
  }
  return false;
}

}  // namespace

std::string_view own_version() { return CAPSTAN_VERSION; }

HelloBytes encode_hello(const Hello& hello) {
  std::string version = hello.version.substr(0, kVersionSize);
  version.resize(kVersionSize, '\0');
  const std::string text = std::string(kMagic) + Writer().number(hello.protocol, 4).take() +
                           version +
                           Writer().number(static_cast<uint32_t>(hello.purpose), 4).take() +
                           std::string(view(hello.nonce));
  HelloBytes out{};
  std::copy_n(text.begin(), out.size(), out.begin());
  return out;
}

bool decode_hello(const char* data, size_t size, Hello& hello) {
  if (std::memcmp(data, kMagic.data(), std::min(size, kMagic.size())) != 0) return false;
  if (size < kHelloSize) return true;
  Reader in(std::string_view(data + kMagic.size(), 4));
  hello.protocol = static_cast<uint32_t>(in.number(4));
  hello.version = std::string(data + 12, kVersionSize).c_str();
  // It is printed.
  for (char& c : hello.version) {
    if (c < ' ' || c > '~') c = '?';
  }
  Reader purpose(std::string_view(data + 44, 4));
  hello.purpose = static_cast<Purpose>(purpose.number(4));
  std::memcpy(hello.nonce.data(), data + 48, hello.nonce.size());
  return true;
}

Digest server_proof(std::string_view key, const HelloBytes& client, const HelloBytes& server) {
  return hmac(key, "server" + std::string(client.data(), client.size()) +
                       std::string(server.data(), server.size()));
}

Digest client_proof(std::string_view key, const HelloBytes& client, const HelloBytes& server) {
  return hmac(key, "client" + std::string(client.data(), client.size()) +
                       std::string(server.data(), server.size()));
}

std::string protocol_difference(const Hello& other) {
  return "Capstan " + other.version + " with protocol " + std::to_string(other.protocol) +
         ", here it is " + std::string(own_version()) + " with protocol " +
         std::to_string(kProtocol) + "; run the same version on every node";
}

Status open_as_client(int fd, Purpose purpose, std::string_view key, TimePoint deadline,
                      const Stop& stop) {
  const auto named = [](const Error& e, const std::string& when) {
    return Error{e.code, e.code == ErrorCode::kAborted ? e.message : when + ": " + e.message};
  };
  const HelloBytes mine =
      encode_hello({kProtocol, std::string(own_version()), purpose, random_digest()});
  if (const Status s = write_all(fd, mine.data(), mine.size(), deadline, stop); !s.ok()) {
    return named(s.error(), "it took the connection but not the greeting");
  }
  HelloBytes theirs{};
  Digest proof{};
  if (const Status s = read_all(fd, theirs.data(), theirs.size(), deadline, stop); !s.ok()) {
    return named(s.error(), "it took the connection but did not answer as a Capstan node does");
  }
  Hello server;
  if (!decode_hello(theirs.data(), theirs.size(), server)) {
    return unavailable("what listens there is no Capstan node");
  }
  if (const Status s = read_all(fd, proof.data(), proof.size(), deadline, stop); !s.ok()) {
    return named(s.error(), "it broke off the opening");
  }
  if (!equal(proof, server_proof(key, mine, theirs))) {
    return unavailable(purpose == Purpose::kControl
                           ? "the Capstan node there belongs to a group with another secret "
                             "(compare CAPSTAN_GROUP_TOKEN, or --dist-init-addr when that is "
                             "not set)"
                           : "the process there belongs to another incarnation of the group");
  }
  const Digest answer = client_proof(key, mine, theirs);
  if (const Status s = write_all(fd, answer.data(), answer.size(), deadline, stop); !s.ok()) {
    return named(s.error(), "it broke off the opening");
  }
  if (server.protocol != kProtocol) {
    return invalid_argument("the node there is " + protocol_difference(server));
  }
  return {};
}

ServerOpening::ServerOpening(int fd, Purpose purpose, std::string key)
    : fd_(fd), purpose_(purpose), key_(std::move(key)) {}

ServerOpening::State ServerOpening::refuse(std::string why) {
  why_ = std::move(why);
  return state_ = State::kRefused;
}

bool ServerOpening::fill(char* into, size_t size) {
  while (got_ < size) {
    const ssize_t n = recv(fd_, into + got_, size - got_, MSG_DONTWAIT);
    if (n > 0) {
      got_ += static_cast<size_t>(n);
    } else if (n < 0 && errno == EINTR) {
      continue;
    } else {
      closed_ = n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
      return false;
    }
  }
  return true;
}

ServerOpening::State ServerOpening::advance() {
  if (state_ != State::kPending) return state_;
  if (!answered_) {
    const bool whole = fill(client_bytes_.data(), client_bytes_.size());
    if (!decode_hello(client_bytes_.data(), got_, client_)) {
      if (looks_like_http(client_bytes_.data(), got_)) {
        (void)send(fd_, kHttpAnswer.data(), kHttpAnswer.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
        return refuse("it speaks HTTP");
      }
      return refuse("it does not speak Capstan's protocol");
    }
    if (!whole) return closed_ ? refuse("it left in the middle of the opening") : state_;
    if (client_.purpose != purpose_) return refuse("it asked for another kind of connection");
    server_bytes_ =
        encode_hello({kProtocol, std::string(own_version()), purpose_, random_digest()});
    const Digest proof = server_proof(key_, client_bytes_, server_bytes_);
    const std::string reply =
        std::string(server_bytes_.data(), server_bytes_.size()) + std::string(view(proof));
    // The send buffer of a new connection takes these 112 bytes.
    if (send(fd_, reply.data(), reply.size(), MSG_DONTWAIT | MSG_NOSIGNAL) !=
        static_cast<ssize_t>(reply.size())) {
      return refuse("it left in the middle of the opening");
    }
    answered_ = true;
    got_ = 0;
  }
  if (!fill(reinterpret_cast<char*>(proof_.data()), proof_.size())) {
    return closed_ ? refuse(
                         "it left when it saw this group's proof; it may have another secret "
                         "(compare CAPSTAN_GROUP_TOKEN)")
                   : state_;
  }
  if (!equal(proof_, client_proof(key_, client_bytes_, server_bytes_))) {
    return refuse("it does not know the group's secret (CAPSTAN_GROUP_TOKEN)");
  }
  return state_ = State::kOpen;
}

}  // namespace capstan::comm
