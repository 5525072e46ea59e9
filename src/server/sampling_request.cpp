#include "server/sampling_request.h"

#include <charconv>
#include <limits>

#include "server/json_text.h"

namespace capstan::server {
namespace {

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();
constexpr int64_t kMaxChoices = 1024;   // n: one call must not fill the server by a slip
constexpr size_t kMaxStopStrings = 64;  // each is compared at every token
constexpr size_t kMaxStopBytes = 4096;

void read_logit_bias(Fields& fields, int64_t vocab_size, engine::SamplingParams* params) {
  const json::object* map = fields.object("logit_bias");
  if (map == nullptr) return;
  params->logit_bias.clear();
  for (const auto& [key, value] : *map) {
    const std::string_view name(key.data(), key.size());
    int64_t id = -1;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), id);
    if (parsed.ec != std::errc() || parsed.ptr != name.data() + name.size()) {
      fields.fail("logit_bias", "key \"" + std::string(name) + "\" is not a token id.");
      return;
    }
    if (id < 0 || id >= vocab_size) {
      fields.fail("logit_bias", "token id " + std::to_string(id) +
                                    " is outside the vocabulary of " + std::to_string(vocab_size) +
                                    " tokens.");
      return;
    }
    const bool number = value.is_number();
    const double bias = number ? value.to_number<double>() : 0;
    if (!number || !(bias >= -100 && bias <= 100)) {
      fields.fail("logit_bias", "the bias of token " + std::to_string(id) +
                                    " must be a number in [-100, 100], got " + describe(value) +
                                    ".");
      return;
    }
    params->logit_bias.emplace_back(static_cast<int32_t>(id), static_cast<float>(bias));
  }
}

void refuse_unsupported(Fields& fields) {
  for (const char* key : {"regex", "ebnf", "json_schema", "structural_tag", "stop_regex"}) {
    const json::value* value = fields.find(key);
    if (value == nullptr) continue;
    if (value->is_array() && value->get_array().empty()) continue;
    fields.fail(key,
                "constrained output and regular expressions are not supported by this build; "
                "leave the field out.");
  }
  if (fields.find("custom_logit_processor") != nullptr) {
    fields.fail("custom_logit_processor",
                "custom logit processors are not supported by this build; SGLang enables them with "
                "--enable-custom-logit-processor.");
  }
  if (const json::value* value = fields.find("return_hidden_states");
      value != nullptr && (!value->is_bool() || value->get_bool())) {
    fields.fail("return_hidden_states",
                "hidden states are not available in this build; SGLang enables them with "
                "--enable-return-hidden-states.");
  }
  if (fields.find("lora_path") != nullptr) {
    fields.fail("lora_path", "no LoRA adapters are loaded; leave the field out.");
  }
}

}  // namespace

void read_sampling(Fields& fields, Dialect dialect, int64_t vocab_size, SamplingRequest* sampling) {
  engine::SamplingParams& p = sampling->params;
  const bool native = dialect == Dialect::kNative;
  const auto put = [](auto* target, const auto& value) {
    if (value) *target = static_cast<std::decay_t<decltype(*target)>>(*value);
  };
  const auto within = [](double low, double high) {
    return [=](double v) { return v >= low && v <= high; };
  };
  const auto above_zero = [](double high) { return [=](double v) { return v > 0 && v <= high; }; };

  put(&p.min_new_tokens, fields.integer_in(native ? "min_new_tokens" : "min_tokens", 0, kInt32Max));
  put(&p.temperature, fields.number_in("temperature", "[0, inf)", [](double v) { return v >= 0; }));
  put(&p.top_p, fields.number_in("top_p", "(0, 1]", above_zero(1)));
  if (const auto top_k = fields.integer("top_k")) {
    if (*top_k == -1 || (*top_k >= 1 && *top_k <= kInt32Max)) {
      p.top_k = static_cast<int32_t>(*top_k);
    } else {
      fields.fail("top_k",
                  "must be -1 (all tokens) or at least 1, got " + std::to_string(*top_k) + ".");
    }
  }
  put(&p.min_p, fields.number_in("min_p", "[0, 1]", within(0, 1)));
  put(&p.frequency_penalty, fields.number_in("frequency_penalty", "[-2, 2]", within(-2, 2)));
  put(&p.presence_penalty, fields.number_in("presence_penalty", "[-2, 2]", within(-2, 2)));
  put(&p.repetition_penalty, fields.number_in("repetition_penalty", "(0, 2]", above_zero(2)));
  if (auto ids = fields.token_ids("stop_token_ids", vocab_size)) p.stop_token_ids = std::move(*ids);
  put(&p.ignore_eos, fields.boolean("ignore_eos"));
  if (const auto seed = fields.integer(native ? "sampling_seed" : "seed")) p.seed = *seed;
  read_logit_bias(fields, vocab_size, &p);

  if (auto stop = fields.strings("stop")) {
    size_t bytes = 0;
    std::erase(*stop, std::string());  // an empty stop string would match everywhere
    for (const std::string& text : *stop) bytes += text.size();
    if (stop->size() > kMaxStopStrings || bytes > kMaxStopBytes) {
      fields.fail("stop", "at most " + std::to_string(kMaxStopStrings) + " strings of " +
                              std::to_string(kMaxStopBytes) + " bytes together are accepted, got " +
                              std::to_string(stop->size()) + " of " + std::to_string(bytes) +
                              " bytes.");
    }
    sampling->stop = std::move(*stop);
  }
  put(&sampling->no_stop_trim, fields.boolean("no_stop_trim"));
  put(&sampling->skip_special_tokens, fields.boolean("skip_special_tokens"));
  put(&sampling->n, fields.integer_in("n", 1, kMaxChoices));
  put(&sampling->stream_interval, fields.integer_in("stream_interval", 1, kInt32Max));
  refuse_unsupported(fields);

  if (native) {
    const auto limit = fields.integer_in("max_new_tokens", 0, kInt32Max);
    put(&p.max_new_tokens, limit);
    if (limit) sampling->max_tokens_given = true;
  }
}

Result<SamplingRequest> base_sampling(const ServerConfig& config, int64_t vocab_size) {
  SamplingRequest base;
  const SamplingDefaults& model = config.sampling_defaults;
  base.params.temperature = model.temperature.value_or(1.0);
  base.params.top_p = model.top_p.value_or(1.0);
  base.params.top_k = model.top_k.value_or(-1);
  base.params.min_p = model.min_p.value_or(0.0);
  base.params.repetition_penalty = model.repetition_penalty.value_or(1.0);
  if (!config.preferred_sampling_params.empty()) {
    CAPSTAN_ASSIGN(const json::object preferred,
                   parse_json_object(config.preferred_sampling_params));
    Fields fields(preferred, "preferred-sampling-params");
    read_sampling(fields, Dialect::kNative, vocab_size, &base);
    CAPSTAN_RETURN_IF_ERROR(fields.status());
  }
  return base;
}

std::string describe_sampling(const SamplingRequest& s) {
  std::string out;
  const auto add = [&](std::string_view name, double value) {
    if (!out.empty()) out += ' ';
    out += name;
    out += '=';
    append_json_double(out, value);
  };
  add("max_new_tokens", s.params.max_new_tokens);
  add("min_new_tokens", s.params.min_new_tokens);
  add("temperature", s.params.temperature);
  add("top_p", s.params.top_p);
  add("top_k", s.params.top_k);
  add("min_p", s.params.min_p);
  add("frequency_penalty", s.params.frequency_penalty);
  add("presence_penalty", s.params.presence_penalty);
  add("repetition_penalty", s.params.repetition_penalty);
  add("n", s.n);
  if (s.params.seed) out += " seed=" + std::to_string(*s.params.seed);
  if (s.params.ignore_eos) out += " ignore_eos";
  if (!s.stop.empty()) {
    out += " stop=[";
    for (size_t i = 0; i < s.stop.size(); ++i) {
      if (i > 0) out += ',';
      append_json_string(out, s.stop[i]);
    }
    out += ']';
  }
  return out;
}

}  // namespace capstan::server
