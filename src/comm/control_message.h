// What the control connections say: frames of a type and a body, little-endian throughout.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "comm/group.h"

namespace capstan::comm {

enum class MessageType : uint8_t {
  kJoin = 1,   // member: Join
  kWelcome,    // leader: joined, wait for the others
  kRefuse,     // leader: Refusal
  kStart,      // leader: all are here: session and hosts
  kHeartbeat,  // both ways: Beat of the sender; the leader's has one for every node
  kExchange,   // member: ExchangePart
  kExchanged,  // leader: ExchangeAnswer
  kFail,       // member: Failure
  kEnd,        // both ways: GroupEnd
  kEndSeen,    // member: nothing more will come
  kLink,       // opener of a tensor link: its node
  kLinkOpen,   // the other side's consent
};

struct Frame {
  MessageType type = MessageType::kHeartbeat;
  std::string body;
};

class Writer {
 public:
  Writer& number(uint64_t value, int bytes = 8) {
    for (int i = 0; i < bytes; ++i) out_ += static_cast<char>(value >> (8 * i));
    return *this;
  }
  Writer& text(std::string_view value) {
    number(value.size(), 4);
    out_ += value;
    return *this;
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

/// Reads what Writer wrote; a short or over-long body makes done() false, never a bad access.
class Reader {
 public:
  explicit Reader(std::string_view body) : rest_(body) {}
  uint64_t number(int bytes = 8);
  std::string text();
  /// A count of items of at least `item_bytes` each that follow; 0 when there cannot be so many.
  uint32_t count(size_t item_bytes);
  bool ok() const { return ok_; }
  bool done() const { return ok_ && rest_.empty(); }

 private:
  std::string_view rest_;
  bool ok_ = true;
};

using Facts = std::vector<std::pair<std::string, std::string>>;

struct Join {
  int node = -1;
  std::string host;
  Facts facts;
};

struct Refusal {
  ErrorCode code = ErrorCode::kUnavailable;
  bool retry = false;  // a later attempt may succeed
  std::string what;
};

struct Start {
  std::string session;
  std::vector<std::string> hosts;  // by node
};

struct Beat {
  bool joined = true;
  uint64_t age_ms = 0;  // since the leader heard of it
  uint64_t step = 0;
  std::string phase;
};

struct ExchangePart {
  uint64_t number = 0;  // of the exchange, counted from 1 on every node
  std::string name;
  std::string text;
};

struct ExchangeAnswer {
  uint64_t number = 0;
  std::string error;  // empty: it worked
  std::vector<std::string> texts;
};

struct Failure {
  int rank = -1;
  bool symptom = false;  // a connection broke: somebody else may be the cause
  std::string what;
};

std::string encode(const Join& value);
std::string encode(const Refusal& value);
std::string encode(const Start& value);
std::string encode(const std::vector<Beat>& value);
std::string encode(const ExchangePart& value);
std::string encode(const ExchangeAnswer& value);
std::string encode(const Failure& value);
std::string encode(const GroupEnd& value);

// False: the body is not what its type says.
bool decode(std::string_view body, Join& value);
bool decode(std::string_view body, Refusal& value);
bool decode(std::string_view body, Start& value);
bool decode(std::string_view body, std::vector<Beat>& value);
bool decode(std::string_view body, ExchangePart& value);
bool decode(std::string_view body, ExchangeAnswer& value);
bool decode(std::string_view body, Failure& value);
bool decode(std::string_view body, GroupEnd& value);

}  // namespace capstan::comm
