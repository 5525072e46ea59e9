// A plain blocking HTTP/1.1 client that shows a test the bytes.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace capstan::server::testing {

struct Reply {
  int status = 0;                              // 0: the connection ended instead
  std::map<std::string, std::string> headers;  // lower-case names
  std::string body;                            // chunks joined
  std::vector<std::string> chunks;
  bool complete = false;
  boost::json::value json() const { return boost::json::parse(body); }
};

class Client {
 public:
  explicit Client(uint16_t port) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
    const timeval limit{30, 0};  // only ends a test that has failed already
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  ~Client() { close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  /// Closes with RST instead of FIN.
  void reset() {
    const linger hard{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close();
  }
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  using Headers = std::vector<std::pair<std::string, std::string>>;
  bool request(std::string_view method, std::string_view target, std::string_view body = {},
               const Headers& headers = {}) {
    std::string text = std::string(method) + " " + std::string(target) + " HTTP/1.1\r\nHost: t\r\n";
    bool typed = false;
    for (const auto& [name, value] : headers) {
      text += name + ": " + value + "\r\n";
      typed = typed || name == "Content-Type";
    }
    if (!body.empty() || method == "POST") {
      if (!typed) text += "Content-Type: application/json\r\n";
      text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
    }
    return send(text + "\r\n" + std::string(body));
  }

  /// Reads one line with its CRLF removed; false at the end of the connection.
  bool line(std::string* out) {
    size_t end;
    while ((end = buffer_.find("\r\n")) == std::string::npos) {
      if (!fill()) return false;
    }
    *out = buffer_.substr(0, end);
    buffer_.erase(0, end + 2);
    return true;
  }
  /// Status line and headers.
  Reply head() {
    Reply reply;
    std::string text;
    if (!line(&text) || text.size() < 12) return reply;
    reply.status = std::stoi(text.substr(9, 3));
    while (line(&text) && !text.empty()) {
      const size_t colon = text.find(": ");
      std::string name = text.substr(0, colon);
      for (char& c : name) c = static_cast<char>(std::tolower(c));
      reply.headers[name] = text.substr(colon + 2);
    }
    return reply;
  }
  /// One chunk of a chunked body; empty at its end.
  std::string chunk() {
    std::string size_line;
    if (!line(&size_line)) return {};
    const size_t size = std::stoul(size_line, nullptr, 16);
    while (buffer_.size() < size + 2) {
      if (!fill()) return {};
    }
    std::string out = buffer_.substr(0, size);
    buffer_.erase(0, size + 2);
    return out;
  }
  Reply reply(bool head_only = false) {
    Reply out = head();
    if (out.status == 0) return out;
    if (out.headers.count("transfer-encoding") > 0) {
      for (std::string part = chunk(); !part.empty(); part = chunk()) {
        out.body += part;
        out.chunks.push_back(std::move(part));
      }
      out.complete = true;
    } else if (out.headers.count("content-length") > 0 && !head_only) {
      const size_t size = std::stoul(out.headers["content-length"]);
      while (buffer_.size() < size && fill()) {
      }
      out.complete = buffer_.size() >= size;
      out.body = buffer_.substr(0, size);
      buffer_.erase(0, size);
    }
    return out;
  }
  Reply call(std::string_view method, std::string_view target, std::string_view body = {},
             const Headers& headers = {}) {
    if (!request(method, target, body, headers)) return {};
    return reply(method == "HEAD");
  }
  Reply post(std::string_view target, std::string_view body, const Headers& headers = {}) {
    return call("POST", target, body, headers);
  }
  Reply get(std::string_view target, const Headers& headers = {}) {
    return call("GET", target, {}, headers);
  }
  /// Everything until the peer closes.
  std::string rest() {
    while (fill()) {
    }
    return std::move(buffer_);
  }
  /// True when the peer has closed and nothing is left to read.
  bool ended() { return buffer_.empty() && !fill(); }

 private:
  bool fill() {
    char bytes[65536];
    const ssize_t n = recv(fd_, bytes, sizeof bytes, 0);
    if (n <= 0) return false;
    buffer_.append(bytes, static_cast<size_t>(n));
    return true;
  }
  int fd_ = -1;
  bool connected_ = false;
  std::string buffer_;
};

/// The JSON of every `data:` event; checks the framing on the way. `done` tells whether [DONE] was
/// the last.
struct Events {
  std::vector<boost::json::value> items;
  bool done = false;
  std::string error;  // framing violation
};

inline Events parse_events(std::string_view body) {
  Events events;
  while (!body.empty()) {
    const size_t end = body.find("\n\n");
    if (end == std::string_view::npos || !body.starts_with("data: ")) {
      events.error = "not an event: " + std::string(body.substr(0, 80));
      return events;
    }
    const std::string_view data = body.substr(6, end - 6);
    if (events.done) events.error = "an event after [DONE]";
    if (data.find('\n') != std::string_view::npos) events.error = "newline inside an event";
    if (data == "[DONE]") {
      events.done = true;
    } else {
      events.items.push_back(boost::json::parse(data));
    }
    body.remove_prefix(end + 2);
  }
  return events;
}

}  // namespace capstan::server::testing
