#include "comm/control_message.h"

namespace capstan::comm {

uint64_t Reader::number(int bytes) {
  if (!ok_ || rest_.size() < static_cast<size_t>(bytes)) {
    ok_ = false;
    return 0;
  }
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) {
    value |= static_cast<uint64_t>(static_cast<uint8_t>(rest_[static_cast<size_t>(i)])) << (8 * i);
  }
  rest_.remove_prefix(static_cast<size_t>(bytes));
  return value;
}

std::string Reader::text() {
  const uint64_t size = number(4);
  if (!ok_ || rest_.size() < size) {
    ok_ = false;
    return {};
  }
  std::string value(rest_.substr(0, size));
  rest_.remove_prefix(size);
  return value;
}

uint32_t Reader::count(size_t item_bytes) {
  const uint64_t count = number(4);
  if (!ok_ || count * item_bytes > rest_.size()) {
    ok_ = false;
    return 0;
  }
  return static_cast<uint32_t>(count);
}

std::string encode(const Join& value) {
  Writer out;
  out.number(static_cast<uint32_t>(value.node), 4).text(value.host).number(value.facts.size(), 4);
  for (const auto& [name, fact] : value.facts) out.text(name).text(fact);
  return out.take();
}

bool decode(std::string_view body, Join& value) {
  Reader in(body);
  value.node = static_cast<int>(static_cast<int32_t>(in.number(4)));
  value.host = in.text();
  value.facts.clear();
  for (uint32_t left = in.count(8); left > 0; --left) {
    std::string name = in.text();
    value.facts.emplace_back(std::move(name), in.text());
  }
  return in.done();
}

std::string encode(const Refusal& value) {
  return Writer()
      .number(static_cast<uint64_t>(value.code), 1)
      .number(value.retry ? 1 : 0, 1)
      .text(value.what)
      .take();
}

bool decode(std::string_view body, Refusal& value) {
  Reader in(body);
  const uint64_t code = in.number(1);
  if (code > static_cast<uint64_t>(ErrorCode::kInternal)) return false;
  value.code = static_cast<ErrorCode>(code);
  value.retry = in.number(1) != 0;
  value.what = in.text();
  return in.done();
}

std::string encode(const Start& value) {
  Writer out;
  out.text(value.session).number(value.hosts.size(), 4);
  for (const std::string& host : value.hosts) out.text(host);
  return out.take();
}

bool decode(std::string_view body, Start& value) {
  Reader in(body);
  value.session = in.text();
  value.hosts.clear();
  for (uint32_t left = in.count(4); left > 0; --left) value.hosts.push_back(in.text());
  return in.done();
}

std::string encode(const std::vector<Beat>& value) {
  Writer out;
  out.number(value.size(), 4);
  for (const Beat& beat : value) {
    out.number(beat.joined ? 1 : 0, 1).number(beat.age_ms).number(beat.step).text(beat.phase);
  }
  return out.take();
}

bool decode(std::string_view body, std::vector<Beat>& value) {
  Reader in(body);
  value.clear();
  for (uint32_t left = in.count(21); left > 0; --left) {
    Beat beat;
    beat.joined = in.number(1) != 0;
    beat.age_ms = in.number();
    beat.step = in.number();
    beat.phase = in.text();
    value.push_back(std::move(beat));
  }
  return in.done();
}

std::string encode(const ExchangePart& value) {
  return Writer().number(value.number).text(value.name).text(value.text).take();
}

bool decode(std::string_view body, ExchangePart& value) {
  Reader in(body);
  value.number = in.number();
  value.name = in.text();
  value.text = in.text();
  return in.done();
}

std::string encode(const ExchangeAnswer& value) {
  Writer out;
  out.number(value.number).text(value.error).number(value.texts.size(), 4);
  for (const std::string& text : value.texts) out.text(text);
  return out.take();
}

bool decode(std::string_view body, ExchangeAnswer& value) {
  Reader in(body);
  value.number = in.number();
  value.error = in.text();
  value.texts.clear();
  for (uint32_t left = in.count(4); left > 0; --left) value.texts.push_back(in.text());
  return in.done();
}

std::string encode(const Failure& value) {
  return Writer()
      .number(static_cast<uint32_t>(value.rank), 4)
      .number(value.symptom ? 1 : 0, 1)
      .text(value.what)
      .take();
}

bool decode(std::string_view body, Failure& value) {
  Reader in(body);
  value.rank = static_cast<int>(static_cast<int32_t>(in.number(4)));
  value.symptom = in.number(1) != 0;
  value.what = in.text();
  return in.done();
}

std::string encode(const GroupEnd& value) {
  return Writer()
      .number(value.orderly ? 1 : 0, 1)
      .number(static_cast<uint32_t>(value.node), 4)
      .number(static_cast<uint32_t>(value.rank), 4)
      .number(value.step)
      .text(value.host)
      .text(value.what)
      .take();
}

bool decode(std::string_view body, GroupEnd& value) {
  Reader in(body);
  value.orderly = in.number(1) != 0;
  value.node = static_cast<int>(static_cast<int32_t>(in.number(4)));
  value.rank = static_cast<int>(static_cast<int32_t>(in.number(4)));
  value.step = in.number();
  value.host = in.text();
  value.what = in.text();
  return in.done();
}

}  // namespace capstan::comm
