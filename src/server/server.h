// The HTTP server: OpenAI dialect, health, information, control, metrics, chat page.
//
// Order of use:  create -> bind -> (load done) warm_up -> start -> ... -> begin_drain -> wait_idle
// -> stop. Threads: `io_threads` own the connections, `worker_threads` tokenise; the engine's
// thread only ever appends to a mailbox. All methods may be called from any one thread that is not
// one of those.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "base/result.h"
#include "engine/engine.h"
#include "server/server_config.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace capstan::server {

/// A bound port on which nobody listens yet: connections are refused until Server::start. Take one
/// before loading weights, so that a port in use is an error in the first second.
class Listener {
 public:
  /// kInvalidArgument naming host and port when the address is in use or not local.
  static Result<Listener> bind(const std::string& host, uint16_t port);
  ~Listener();
  Listener(Listener&&) noexcept;
  Listener& operator=(Listener&&) noexcept;
  uint16_t port() const { return port_; }
  int release();  // the file descriptor, no longer owned

 private:
  Listener(int fd, uint16_t port) : fd_(fd), port_(port) {}
  int fd_ = -1;
  uint16_t port_ = 0;
};

class Server {
 public:
  /// `chat_template` may be null: chat requests then get 400. Errors: contradictory configuration,
  /// with param = the flag's name. Check `served_model_name` etc. before loading: validate_config.
  static Result<std::unique_ptr<Server>> create(
      ServerConfig config, std::shared_ptr<engine::Engine> engine,
      std::shared_ptr<const text::Tokenizer> tokenizer,
      std::shared_ptr<const text::ChatTemplate> chat_template);
  /// What the other nodes of a split server show: health, readiness and metrics of the group
  /// (config.group), and 404 for all else. It may start before the group is ready; warm_up() is not
  /// for it.
  static Result<std::unique_ptr<Server>> create_status(ServerConfig config);
  virtual ~Server() = default;  // stop()

  /// Reserves the configured port, or takes one reserved before loading.
  virtual Status bind() = 0;
  virtual Status bind(Listener listener) = 0;
  virtual uint16_t port() const = 0;  // after bind

  /// One short generation through tokenizer and engine, outside metrics, logs and prefix cache.
  virtual Status warm_up(std::chrono::seconds timeout = std::chrono::seconds(600)) = 0;

  /// Listens and serves; returns at once.
  virtual Status start() = 0;

  /// /health turns 503 and new generation requests get 503; running ones go on. Idempotent.
  virtual void begin_drain() = 0;
  /// True when no generation request is left before `timeout` (zero or less: no bound).
  virtual bool wait_idle(std::chrono::milliseconds timeout) = 0;
  /// Ends remaining requests with finish reason "abort", closes connections, joins threads.
  /// Idempotent.
  virtual void stop() = 0;
};

/// What can be checked without a model: name without ':', ascending buckets, JSON texts, ranges.
Status validate_config(const ServerConfig& config);

}  // namespace capstan::server
