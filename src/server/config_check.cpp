// Checks of the configuration, and the sampling defaults that come with a model.
#include <boost/json/parse.hpp>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "server/json_fields.h"
#include "server/server.h"
#include "text/reasoning_parser.h"

namespace capstan::server {
namespace {

Status check_buckets(const std::vector<double>& edges, const std::string& flag) {
  for (size_t i = 0; i < edges.size(); ++i) {
    if (!std::isfinite(edges[i]) || (i > 0 && edges[i] <= edges[i - 1])) {
      return invalid_argument("--" + flag + ": bucket edges must be finite and ascending, got " +
                                  std::to_string(edges[i]) + " at position " + std::to_string(i),
                              flag);
    }
  }
  return {};
}

Status check_json(const std::string& text, const std::string& flag) {
  if (text.empty()) return {};
  const auto parsed = parse_json_object(text);
  if (parsed.ok()) return {};
  return invalid_argument("--" + flag + " must be a JSON object: " + parsed.error().message, flag);
}

}  // namespace

Status validate_config(const ServerConfig& c) {
  if (c.served_model_name.empty()) {
    return invalid_argument("--served-model-name must not be empty", "served-model-name");
  }
  if (c.served_model_name.find(':') != std::string::npos) {
    return invalid_argument("--served-model-name '" + c.served_model_name +
                                "' must not contain ':', which separates a model from its adapter",
                            "served-model-name");
  }
  CAPSTAN_RETURN_IF_ERROR(
      check_buckets(c.bucket_time_to_first_token, "bucket-time-to-first-token"));
  CAPSTAN_RETURN_IF_ERROR(
      check_buckets(c.bucket_inter_token_latency, "bucket-inter-token-latency"));
  CAPSTAN_RETURN_IF_ERROR(
      check_buckets(c.bucket_e2e_request_latency, "bucket-e2e-request-latency"));
  CAPSTAN_RETURN_IF_ERROR(check_json(c.preferred_sampling_params, "preferred-sampling-params"));
  CAPSTAN_RETURN_IF_ERROR(
      check_json(c.default_chat_template_kwargs, "default-chat-template-kwargs"));
  CAPSTAN_RETURN_IF_ERROR(check_json(c.launch_args, "launch-args"));
  if (!c.reasoning_parser.empty() && c.reasoning_parser != "auto" &&
      text::find_reasoning_format(c.reasoning_parser) == nullptr) {
    return invalid_argument("--reasoning-parser '" + c.reasoning_parser +
                                "' is unknown; known are auto, " + text::known_reasoning_formats(),
                            "reasoning-parser");
  }
  const auto positive = [](auto value, const std::string& flag) -> Status {
    if (value > 0) return {};
    return invalid_argument("--" + flag + " must be positive, got " + std::to_string(value), flag);
  };
  CAPSTAN_RETURN_IF_ERROR(positive(c.stream_interval, "stream-interval"));
  CAPSTAN_RETURN_IF_ERROR(positive(c.io_threads, "io-threads"));
  CAPSTAN_RETURN_IF_ERROR(positive(c.worker_threads, "tokenizer-worker-num"));
  CAPSTAN_RETURN_IF_ERROR(positive(c.keep_alive_timeout, "keep-alive-timeout"));
  CAPSTAN_RETURN_IF_ERROR(positive(c.health_timeout, "health-check-timeout"));
  if (c.log_requests_level < 0 || c.log_requests_level > 3) {
    return invalid_argument(
        "--log-requests-level must be 0, 1, 2 or 3, got " + std::to_string(c.log_requests_level),
        "log-requests-level");
  }
  return {};
}

Result<SamplingDefaults> read_generation_config(const std::string& model_directory) {
  const std::filesystem::path path =
      std::filesystem::path(model_directory) / "generation_config.json";
  SamplingDefaults defaults;
  std::error_code ec;
  if (!std::filesystem::is_regular_file(path, ec)) return defaults;
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  const auto fail = [&](const std::string& why) {
    return data_loss(path.string() + ": " + why +
                     "; correct the file or start with --sampling-defaults openai");
  };
  const auto object = parse_json_object(text.str());
  if (!object.ok()) return fail(object.error().message);
  Fields fields(*object);
  const auto in = [](double low, double high) {
    return [=](double v) { return v >= low && v <= high; };
  };
  defaults.temperature =
      fields.number_in("temperature", "[0, inf)", [](double v) { return v >= 0; });
  defaults.top_p = fields.number_in("top_p", "[0, 1]", in(0, 1));
  if (defaults.top_p == 0.0) defaults.top_p.reset();  // transformers: off
  defaults.min_p = fields.number_in("min_p", "[0, 1]", in(0, 1));
  defaults.repetition_penalty =
      fields.number_in("repetition_penalty", "(0, 2]", [](double v) { return v > 0 && v <= 2; });
  if (const auto top_k = fields.integer_in("top_k", -1, 1 << 30)) {
    defaults.top_k = *top_k <= 0 ? -1 : static_cast<int32_t>(*top_k);
  }
  if (!fields.ok()) return fail(fields.status().error().message);
  if (!fields.boolean("do_sample").value_or(true)) defaults.temperature = 0.0;
  if (!fields.ok()) return fail(fields.status().error().message);
  return defaults;
}

}  // namespace capstan::server
