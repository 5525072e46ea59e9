#include "app/serve.h"

#include <cstdio>

#include "app/default_model.h"
#include "app/group_end.h"
#include "app/model_setup.h"
#include "app/signals.h"
#include "base/log.h"
#include "platform/mapping_faults.h"

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
  for (const std::string& note : options.notes) LOG_INFO("{}", note);
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

/// What a process serves under, decided from its options.
Result<std::string> decide_model(ServeOptions& options) {
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
  return path;
}

std::chrono::milliseconds drain_bound(const ServeOptions& options) {
  return std::chrono::milliseconds(static_cast<int64_t>(options.shutdown_timeout * 1000));
}

/// The exit code of an end that nobody here asked for; 0: it was in order.
int code_of_end(const RankGroup* group) {
  const auto end = group == nullptr ? std::nullopt : group->end();
  return end && !end->orderly ? kGroupEnded : 0;
}

/// Node 0, or the only one: everything between a good command line and the last request.
Result<int> serve_api(ServeOptions& options, ShutdownSignals& signals) {
  CAPSTAN_ASSIGN(const std::string path, decide_model(options));
  // Reserved now, so that a port in use is an error in the first second; nobody listens yet.
  CAPSTAN_ASSIGN(server::Listener listener,
                 server::Listener::bind(options.server.host, options.server.port));
  GroupEndWatch watch(signals);
  LoadedModel loaded;
  CAPSTAN_RETURN_IF_ERROR(load(
      options, path, [&signals] { return signals.requested(); },
      [&watch](RankGroup& group) { watch.watch(group); }, loaded));
  RankGroup* group = loaded.group.get();
  watch.set_engine(loaded.engine);
  if (group != nullptr) options.server.group = [group] { return group->view(); };
  CAPSTAN_ASSIGN(std::unique_ptr<server::Server> server,
                 server::Server::create(options.server, loaded.engine, loaded.tokenizer,
                                        loaded.chat_template));
  CAPSTAN_RETURN_IF_ERROR(server->bind(std::move(listener)));
  log_capacity(options.engine);
  if (!options.skip_warmup) CAPSTAN_RETURN_IF_ERROR(server->warm_up());
  if (signals.requested()) return Error{ErrorCode::kAborted, "stopped while loading"};
  if (group != nullptr) {
    group->set_phase(server::kPhaseReady);
    CAPSTAN_RETURN_IF_ERROR(group->wait_ready([&signals] { return signals.requested(); }));
  }
  signals.loading_done();
  CAPSTAN_RETURN_IF_ERROR(server->start());
  LOG_INFO("Chat page and API: {}", page_address(options.server.host, server->port()));
  LOG_INFO("The server is fired up and ready to roll!");

  if (group == nullptr) {
    signals.wait();
  } else {
    // Asked as often as heartbeats come.
    signals.wait([group] { return group->ended() || group->drain_requested(); },
                 std::chrono::milliseconds(500));
    if (!signals.requested() && !group->ended())
      LOG_INFO("Another node was told to stop: draining");
    group->set_phase(server::kPhaseDraining);
  }
  server->begin_drain();
  if (!server->wait_idle(drain_bound(options))) {
    LOG_WARN("Requests still run after SGLANG_SHUTDOWN_TIMEOUT={} s, they are aborted",
             options.shutdown_timeout);
  }
  server->stop();
  const int code = code_of_end(group);
  watch.done();
  if (group != nullptr && code == 0) {
    server.reset();  // it holds the engine, too
    loaded.engine.reset();
    group->release();
  }
  LOG_INFO("Stopped");
  return code;
}

/// Another node: computes until node 0 releases it.
Result<int> serve_ranks(ServeOptions& options, ShutdownSignals& signals) {
  CAPSTAN_ASSIGN(const std::string path, decide_model(options));
  CAPSTAN_ASSIGN(server::Listener listener,
                 server::Listener::bind(options.server.host, options.server.port));
  GroupEndWatch watch(signals);
  LoadedModel loaded;
  std::unique_ptr<server::Server> status;  // asks the group, so it goes before it
  Status started;
  const auto joined = [&](RankGroup& group) {
    watch.watch(group);
    options.server.group = [&group] { return group.view(); };
    started = [&]() -> Status {
      CAPSTAN_ASSIGN(status, server::Server::create_status(options.server));
      CAPSTAN_RETURN_IF_ERROR(status->bind(std::move(listener)));
      return status->start();
    }();
    if (!started.ok()) group.fail(options.parallel.first_rank(), started.error());
  };
  const Status done = load(
      options, path, [&signals] { return signals.requested(); }, joined, loaded);
  CAPSTAN_RETURN_IF_ERROR(started);
  CAPSTAN_RETURN_IF_ERROR(done);
  RankGroup& group = *loaded.group;
  group.set_phase(server::kPhaseReady);
  signals.loading_done();
  LOG_INFO("Health and metrics of this node: {}",
           page_address(options.server.host, status->port()));
  LOG_INFO("Node {} computes for node 0", options.parallel.node);

  signals.wait([&group] { return group.ended(); });
  if (!group.ended()) {
    // All nodes of a group are told to stop together; the streams of node 0 still need this one.
    LOG_INFO("Going on until node 0 releases this node");
    group.set_phase(server::kPhaseDraining);
    status->begin_drain();
    const bool bounded = options.shutdown_timeout > 0;
    const auto patience = bounded ? drain_bound(options) + std::chrono::seconds(5)
                                  : std::chrono::milliseconds(std::chrono::hours(24 * 365));
    if (!group.wait_end(patience)) {
      LOG_WARN("Node 0 did not release this node within SGLANG_SHUTDOWN_TIMEOUT={} s and 5 more",
               options.shutdown_timeout);
      group.fail(options.parallel.first_rank(),
                 internal_error("node 0 did not release it in time"));
      group.wait_end(std::chrono::seconds(3));
    }
  }
  const int code = code_of_end(&group);
  watch.done();
  status->stop();
  LOG_INFO("Stopped");
  return code;
}

Result<int> serve(ServeOptions& options, ShutdownSignals& signals) {
  if (options.parallel.leader()) return serve_api(options, signals);
  return serve_ranks(options, signals);
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
  platform::explain_mapping_faults();
  ShutdownSignals signals(options->force_shutdown);
  if (options->parallel.split()) set_process_rank(options->parallel.first_rank());
  log_arguments(*flags, *options);
  const Result<int> status = serve(*options, signals);
  if (status.ok()) return *status;
  if (status.error().code == ErrorCode::kAborted && signals.requested()) {
    LOG_INFO("Stopped while loading");
    return 0;
  }
  return start_error(status.error());
}

}  // namespace capstan::app
