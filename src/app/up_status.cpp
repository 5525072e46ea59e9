#include "app/up_status.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <charconv>
#include <cmath>
#include <cstdio>

namespace capstan::app {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;

constexpr auto kPatience = std::chrono::milliseconds(1500);

/// One GET: connect, write, read, then `done` once, whichever comes first of the end and the limit.
class Get : public std::enable_shared_from_this<Get> {
 public:
  Get(asio::io_context& io, std::function<void(StatusAnswer)> done)
      : socket_(io), timer_(io), done_(std::move(done)) {}

  void start(int fd, const asio::ip::tcp::endpoint& target, const std::string& path) {
    error_code error;
    socket_.assign(target.protocol(), fd, error);
    if (error) {
      ::close(fd);
      return finish({});
    }
    request_ = {http::verb::get, path, 11};
    request_.set(http::field::host, "localhost");
    request_.set(http::field::connection, "close");
    timer_.expires_after(kPatience);
    timer_.async_wait([self = shared_from_this()](error_code stopped) {
      if (!stopped) self->finish({});
    });
    socket_.async_connect(target, [self = shared_from_this()](error_code failed) {
      if (failed) return self->finish({});
      http::async_write(self->socket_, self->request_, [self](error_code bad, size_t) {
        if (bad) return self->finish({});
        http::async_read(self->socket_, self->buffer_, self->response_,
                         [self](error_code broken, size_t) {
                           if (broken) return self->finish({});
                           self->finish({static_cast<int>(self->response_.result_int()),
                                         std::move(self->response_.body())});
                         });
      });
    });
  }

 private:
  void finish(StatusAnswer answer) {
    if (!done_) return;
    const auto done = std::exchange(done_, nullptr);
    timer_.cancel();
    error_code ignored;
    socket_.close(ignored);
    done(std::move(answer));
  }

  asio::ip::tcp::socket socket_;
  asio::steady_timer timer_;
  boost::beast::flat_buffer buffer_;
  http::request<http::empty_body> request_;
  http::response<http::string_body> response_;
  std::function<void(StatusAnswer)> done_;
};

std::string number(double value, const char* format) {
  std::array<char, 40> text{};
  std::snprintf(text.data(), text.size(), format, value);
  return text.data();
}

}  // namespace

void get_status(asio::io_context& io, int socket, const std::string& address, uint16_t port,
                const std::string& path, std::function<void(StatusAnswer)> done) {
  error_code error;
  const auto ip = asio::ip::make_address(address, error);
  if (socket < 0 || error) {
    if (socket >= 0) ::close(socket);
    return done({});
  }
  std::make_shared<Get>(io, std::move(done))->start(socket, {ip, port}, path);
}

void read_readyz(const StatusAnswer& answer, NodeReport& report) {
  if (answer.status == 200 || answer.status == 503) report.ready = answer.status == 200;
  error_code error;
  const boost::json::value json = boost::json::parse(answer.body, error);
  if (error || !json.is_object()) return;
  const boost::json::object& object = json.get_object();
  if (const auto* phase = object.if_contains("phase"); phase != nullptr && phase->is_string()) {
    report.phase = phase->get_string().c_str();
  }
  error_code bad;
  if (const auto* step = object.if_contains("step"); step != nullptr && step->is_number()) {
    const auto value = step->to_number<uint64_t>(bad);
    if (!bad) report.step = value;
  }
  if (const auto* age = object.if_contains("heartbeat_age_seconds");
      age != nullptr && age->is_number()) {
    report.heartbeat_age = age->to_number<double>(bad);
  }
}

std::optional<double> metric(const std::string& text, const std::string& name) {
  for (size_t at = 0; (at = text.find(name, at)) != std::string::npos; at += name.size()) {
    if (at > 0 && text[at - 1] != '\n') continue;
    size_t value = at + name.size();
    if (value < text.size() && text[value] == '{') value = text.find('}', value) + 1;
    if (value == 0 || value >= text.size() || text[value] != ' ') continue;
    double number = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + value + 1, end, number);
    if (error == std::errc()) return number;
  }
  return std::nullopt;
}

void read_metrics(const StatusAnswer& answer, NodeReport& report) {
  if (answer.status != 200) return;
  if (const auto rate = metric(answer.body, "sglang:gen_throughput")) {
    report.tokens_per_second = rate;
  }
}

std::string cpu_list(const std::vector<int>& cpus) {
  std::vector<int> sorted = cpus;
  std::sort(sorted.begin(), sorted.end());
  std::string text;
  for (size_t i = 0; i < sorted.size();) {
    size_t end = i;
    while (end + 1 < sorted.size() && sorted[end + 1] == sorted[end] + 1) ++end;
    text += (text.empty() ? "" : ",") + std::to_string(sorted[i]);
    if (end > i) text += "-" + std::to_string(sorted[end]);
    i = end + 1;
  }
  return text;
}

std::vector<std::string> status_table(const std::vector<NodeRow>& rows, int width) {
  constexpr size_t kColumns = 11;
  using Line = std::array<std::string, kColumns>;
  std::vector<Line> lines = {{"NODE", "RANKS", "HOST", "STATE", "PHASE", "STEP", "BEAT", "PID",
                              "CPUS", "MEMORY", "TOK/S"}};
  for (const NodeRow& row : rows) {
    const NodeReport& r = row.report;
    std::string ranks = std::to_string(row.first_rank);
    if (row.last_rank != row.first_rank) ranks += "-" + std::to_string(row.last_rank);
    lines.push_back({std::to_string(row.node), ranks, row.host, row.state, r.phase.value_or("-"),
                     r.step ? std::to_string(*r.step) : "-",
                     r.heartbeat_age ? number(*r.heartbeat_age, "%.1f s") : "-",
                     row.pid > 0 ? std::to_string(row.pid) : "-", cpu_list(row.cpus),
                     row.resident_bytes > 0
                         ? number(static_cast<double>(row.resident_bytes) / (1 << 20), "%.0f MiB")
                         : "-",
                     r.tokens_per_second ? number(*r.tokens_per_second, "%.1f") : "-"});
  }
  std::array<size_t, kColumns> widths{};
  for (const Line& line : lines) {
    for (size_t c = 0; c < kColumns; ++c) widths[c] = std::max(widths[c], line[c].size());
  }
  std::vector<std::string> table;
  for (size_t i = 0; i < lines.size(); ++i) {
    std::string text;
    for (size_t c = 0; c < kColumns; ++c) {
      const bool right = c == 5 || c == 6 || c >= 9;
      const std::string pad(widths[c] - lines[i][c].size(), ' ');
      text += (c > 0 ? "  " : "") + (right ? pad + lines[i][c] : lines[i][c] + pad);
    }
    if (i > 0 && !rows[i - 1].report.phase && !rows[i - 1].last_line.empty()) {
      text += "  " + rows[i - 1].last_line;
    }
    if (width > 0 && text.size() > static_cast<size_t>(width)) {
      text.resize(static_cast<size_t>(width));
    }
    while (!text.empty() && text.back() == ' ') text.pop_back();
    table.push_back(text);
  }
  return table;
}

}  // namespace capstan::app
