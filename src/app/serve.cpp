#include "app/serve.h"

#include <cstdio>

#include "app/default_model.h"
#include "app/model_setup.h"
#include "app/signals.h"
#include "base/log.h"

namespace capstan::app {
namespace {

constexpr int kStartFailed = 1, kWrongUsage = 2;

int usage_error(const Error& error) {
  std::fprintf(stderr, "%scapstan serve: error: %s\n", usage_text().c_str(), error.message.c_str());
  return kWrongUsage;
}

int start_error(const Error& error) {
  std::fprintf(stderr, "capstan serve: error: %s\n", error.message.c_str());
  return kStartFailed;
}

std::string page_address(const std::string& host, uint16_t port) {
  std::string shown = host;
  if (host == "0.0.0.0" || host == "::" || host.empty()) shown = "127.0.0.1";
  if (shown.find(':') != std::string::npos) shown = "[" + shown + "]";
  return "http://" + shown + ":" + std::to_string(port) + "/";
}

void log_arguments(const FlagValues& flags, const ServeOptions& options) {
  std::string given;
  for (const Flag* flag : flags.given_flags()) {
    given += " --" + std::string(flag->name);
    if (flag->type == FlagType::kBool) {
      if (!flags.boolean(flag->name)) given += "=false";
      continue;
    }
    for (const std::string& value : flags.list(flag->name)) {
      given += " " + (flag->secret ? std::string("***") : value);
    }
  }
  LOG_INFO("capstan {}, arguments:{}", CAPSTAN_VERSION, given.empty() ? " none" : given);
  for (const std::string& warning : options.warnings) LOG_WARN("{}", warning);
}

void log_capacity(const engine::EngineConfig& e) {
  LOG_INFO(
      "max_total_num_tokens={}, chunked_prefill_size={}, max_prefill_tokens={}, "
      "max_running_requests={}, context_len={}",
      static_cast<int64_t>(e.scheduler.num_pages) * e.scheduler.page_size,
      e.scheduler.chunked_prefill_size, e.scheduler.max_prefill_tokens,
      e.scheduler.max_running_requests, e.scheduler.context_length);
}

/// Everything between a good command line and the last request.
Status serve(ServeOptions& options, ShutdownSignals& signals) {
  std::string path = options.model_path;
  if (path.empty()) {
    CAPSTAN_ASSIGN(path, find_default_model(process_environment()));
    if (options.server.served_model_name.empty()) {
      options.server.served_model_name = kDefaultModelName;
    }
  }
  if (options.server.served_model_name.empty()) options.server.served_model_name = path;
  options.server.model_path = path;
  CAPSTAN_RETURN_IF_ERROR(server::validate_config(options.server));

  // Reserved now, so that a port in use is an error in the first second; nobody listens yet.
  CAPSTAN_ASSIGN(server::Listener listener,
                 server::Listener::bind(options.server.host, options.server.port));
  CAPSTAN_ASSIGN(LoadedModel loaded,
                 load(options, path, [&signals] { return signals.requested(); }));
  CAPSTAN_ASSIGN(const std::unique_ptr<server::Server> server,
                 server::Server::create(options.server, loaded.engine, loaded.tokenizer,
                                        loaded.chat_template));
  CAPSTAN_RETURN_IF_ERROR(server->bind(std::move(listener)));
  log_capacity(options.engine);
  if (!options.skip_warmup) CAPSTAN_RETURN_IF_ERROR(server->warm_up());
  if (signals.requested()) return Error{ErrorCode::kAborted, "stopped while loading"};
  signals.loading_done();
  CAPSTAN_RETURN_IF_ERROR(server->start());
  LOG_INFO("Chat page and API: {}", page_address(options.server.host, server->port()));
  LOG_INFO("The server is fired up and ready to roll!");

  signals.wait();
  server->begin_drain();
  loaded.engine->begin_drain();
  const auto bound =
      std::chrono::milliseconds(static_cast<int64_t>(options.shutdown_timeout * 1000));
  if (!server->wait_idle(bound)) {
    LOG_WARN("Requests still run after SGLANG_SHUTDOWN_TIMEOUT={} s, they are aborted",
             options.shutdown_timeout);
  }
  server->stop();
  LOG_INFO("Stopped");
  return {};
}

}  // namespace

int run_serve(const std::vector<std::string>& args) {
  const Result<FlagValues> flags = parse_flags(args);
  if (!flags.ok()) return usage_error(flags.error());
  if (flags->help || flags->help_markdown || flags->version) {
    const std::string text = flags->help            ? help_text()
                             : flags->help_markdown ? markdown_table()
                                                    : "capstan " CAPSTAN_VERSION "\n";
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  Result<ServeOptions> options = make_serve_options(*flags, process_environment());
  if (!options.ok()) return start_error(options.error());
  if (Status status = init_logging(options->log_level); !status.ok()) {
    return usage_error(status.error());
  }
  ShutdownSignals signals(options->force_shutdown);
  log_arguments(*flags, *options);
  const Status status = serve(*options, signals);
  if (status.ok()) return 0;
  if (status.error().code == ErrorCode::kAborted && signals.requested()) {
    LOG_INFO("Stopped while loading");
    return 0;
  }
  return start_error(status.error());
}

}  // namespace capstan::app
