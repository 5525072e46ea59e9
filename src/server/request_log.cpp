#include "server/request_log.h"

#include "base/log.h"
#include "server/app_state.h"
#include "server/json_text.h"

namespace capstan::server {
namespace {

constexpr size_t kTruncated = 2048;  // bytes of text shown at level 2

// key=value pairs or the members of a JSON object.
class Line {
 public:
  explicit Line(bool as_json) : json_(as_json) {
    if (json_) out_ = "{";
  }
  void text(std::string_view key, std::string_view value) {
    begin(key);
    append_json_string(out_, value);  // quoted in both: a log line stays one line
  }
  void number(std::string_view key, double value) {
    begin(key);
    append_json_double(out_, value);
  }
  std::string take() { return json_ ? out_ + "}" : out_; }

 private:
  void begin(std::string_view key) {
    if (!first_) out_ += json_ ? "," : ", ";
    first_ = false;
    if (json_) {
      append_json_string(out_, key);
      out_ += ':';
    } else {
      out_ += key;
      out_ += '=';
    }
  }
  bool json_;
  bool first_ = true;
  std::string out_;
};

std::string shown(const ServerConfig& config, const std::string& text) {
  if (config.log_requests_level >= 3 || text.size() <= kTruncated) return text;
  return utf8_lossy(std::string_view(text).substr(0, kTruncated)) + "... (" +
         std::to_string(text.size()) + " bytes)";
}

}  // namespace

std::string received_line(const ServerConfig& config, const HttpRequest& http,
                          const GenerationCall& request) {
  Line line(config.log_requests_json);
  if (config.log_requests_json) line.text("event", "request.received");
  line.text("rid", request.rid);
  line.text("request_id", http.request_id);
  line.text("endpoint", http.route);
  line.text("model", request.model);
  line.text("stream", request.stream ? "true" : "false");
  line.number("prompts", static_cast<double>(request.prompts.size()));
  line.number("prompt_tokens", static_cast<double>(request.prompts[0].ids.size()));
  if (config.log_requests_level >= 1) {
    line.text("sampling", describe_sampling(request.prompts[0].sampling));
  }
  if (config.log_requests_level >= 2) line.text("text", shown(config, request.prompts[0].text));
  return line.take();
}

std::string finished_line(const ServerConfig& config, const GenerationCall& request,
                          const Call& call) {
  Line line(config.log_requests_json);
  if (config.log_requests_json) line.text("event", "request.finished");
  const Usage usage = call.usage();
  const Choice& first = *call.choices()[0];
  line.text("rid", request.rid);
  std::string_view reason = first.finish_reason_json();
  line.text("finish_reason", call.client_left() ? "client disconnected"
                             : call.error()     ? call.error()->message
                             : reason == "null" ? "none"
                                                : reason.substr(1, reason.size() - 2));
  line.number("prompt_tokens", static_cast<double>(usage.prompt_tokens));
  line.number("cached_tokens", static_cast<double>(usage.cached_tokens));
  line.number("completion_tokens", static_cast<double>(usage.completion_tokens));
  if (usage.reasoning_tokens > 0) {
    line.number("reasoning_tokens", static_cast<double>(usage.reasoning_tokens));
  }
  line.number("seconds", first.seconds());
  // A stream's text has been sent and is not kept.
  if (config.log_requests_level >= 2 && !request.stream) {
    if (!first.reasoning().empty()) line.text("reasoning", shown(config, first.reasoning()));
    line.text("text", shown(config, first.text()));
  }
  return line.take();
}

void log_received(const AppState& app, const HttpRequest& http, const GenerationCall& request) {
  if (!app.config.log_requests) return;
  const std::string line = received_line(app.config, http, request);
  if (app.config.log_requests_json) {
    LOG_INFO("{}", line);
  } else {
    LOG_INFO("Receive: {}", line);
  }
}

void log_finished(const AppState& app, const GenerationCall& request, const Call& call) {
  if (!app.config.log_requests) return;
  const std::string line = finished_line(app.config, request, call);
  if (app.config.log_requests_json) {
    LOG_INFO("{}", line);
  } else {
    LOG_INFO("Finish: {}", line);
  }
}

}  // namespace capstan::server
