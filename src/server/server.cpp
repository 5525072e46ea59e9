#include "server/server.h"

#include <sys/socket.h>

#include <boost/asio/basic_socket_acceptor.hpp>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <future>
#include <optional>

#include "base/log.h"
#include "server/handlers.h"
#include "server/http_session.h"

namespace capstan::server {
namespace {

// How long stop() lets aborted requests deliver their last event.
constexpr auto kLastWords = std::chrono::seconds(2);
// Pause after accept() failed for want of file descriptors.
constexpr auto kAcceptPause = std::chrono::milliseconds(50);

bool is_secret(std::string_view key) {
  return key.ends_with("api_key") || key.find("password") != std::string_view::npos ||
         key.find("secret") != std::string_view::npos || key == "hf_token";
}

class ServerImpl final : public Server {
 public:
  explicit ServerImpl(ServerConfig config) : app_(std::move(config)) {}
  ~ServerImpl() override { stop(); }

  Status init(std::shared_ptr<engine::Engine> engine,
              std::shared_ptr<const text::Tokenizer> tokenizer,
              std::shared_ptr<const text::ChatTemplate> chat_template);
  void init_status();
  Status bind() override;
  Status bind(Listener listener) override;
  uint16_t port() const override { return listener_ ? listener_->port() : 0; }
  Status warm_up(std::chrono::seconds timeout) override;
  Status start() override;
  void begin_drain() override;
  bool wait_idle(std::chrono::milliseconds timeout) override {
    return app_.generations.wait_zero(timeout);
  }
  void stop() override;

 private:
  void accept_next();
  void accepted(error_code ec, Socket socket, IoThread& target);

  AppState app_;
  std::optional<Listener> listener_;
  // After app_, so that connections, which refer to it, go first.
  std::vector<std::unique_ptr<IoThread>> io_;
  std::optional<Acceptor> acceptor_;
  std::optional<Timer> accept_pause_;
  size_t next_io_ = 0;
  bool started_ = false;
  bool stopped_ = false;
};

Status ServerImpl::init(std::shared_ptr<engine::Engine> engine,
                        std::shared_ptr<const text::Tokenizer> tokenizer,
                        std::shared_ptr<const text::ChatTemplate> chat_template) {
  const ServerConfig& config = app_.config;
  app_.engine = std::move(engine);
  app_.tokenizer = std::move(tokenizer);
  app_.chat_template = std::move(chat_template);
  app_.created = std::time(nullptr);
  // Ids the model can be fed; the embedding may have padding rows beyond the tokenizer's ids.
  app_.vocab_size = app_.engine->model_config().vocab_size;
  app_.context_length = config.context_length > 0 ? config.context_length
                                                  : app_.engine->config().scheduler.context_length;
  if (app_.context_length <= 1) {
    return invalid_argument(
        "the context length must be at least 2, got " + std::to_string(app_.context_length),
        "context-length");
  }
  CAPSTAN_ASSIGN(app_.base_sampling, base_sampling(config, app_.vocab_size));
  if (!config.default_chat_template_kwargs.empty()) {
    CAPSTAN_ASSIGN(app_.default_template_kwargs,
                   parse_json_object(config.default_chat_template_kwargs));
  }
  app_.reasoning = text::find_reasoning_format(config.reasoning_parser);
  if (config.reasoning_parser == "auto") {
    const text::ReasoningFormat* r1 = text::find_reasoning_format("deepseek-r1");
    if (app_.tokenizer->id_of(r1->close)) app_.reasoning = r1;
  }
  CAPSTAN_ASSIGN(app_.launch_args, parse_json_object(config.launch_args));
  for (auto& [key, value] : app_.launch_args) {
    if (is_secret({key.data(), key.size()}) && !value.is_null()) value = "***";
  }
  app_.metrics = std::make_unique<Metrics>(config, app_.engine);
  add_openai_routes(app_);
  add_native_routes(app_);
  add_health_routes(app_);
  add_info_routes(app_);
  add_control_routes(app_);
  add_tokenizer_routes(app_);
  add_reasoning_routes(app_);
  add_page_routes(app_);
  return {};
}

void ServerImpl::init_status() {
  app_.created = std::time(nullptr);
  app_.metrics = std::make_unique<Metrics>(app_.config, nullptr);
  add_status_routes(app_);
}

Status ServerImpl::bind() {
  CAPSTAN_ASSIGN(Listener listener, Listener::bind(app_.config.host, app_.config.port));
  return bind(std::move(listener));
}

Status ServerImpl::bind(Listener listener) {
  listener_ = std::move(listener);
  return {};
}

Status ServerImpl::warm_up(std::chrono::seconds timeout) {
  CAPSTAN_ASSIGN(std::vector<int32_t> prompt,
                 app_.tokenizer->encode("The capital city of France is", true));
  if (prompt.empty()) return internal_error("warm-up: the tokenizer gave no tokens");
  const auto room = static_cast<size_t>(std::max(1, app_.context_length - 8));
  if (prompt.size() > room) prompt.resize(room);
  engine::EngineRequest request;
  request.prompt = std::move(prompt);
  request.sampling.max_new_tokens = 8;
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.probe = true;
  auto ended = std::make_shared<std::promise<Status>>();
  std::future<Status> result = ended->get_future();
  CAPSTAN_ASSIGN(const scheduler::RequestId id,
                 app_.engine->submit(std::move(request), [ended](engine::OutputEvent&& event) {
                   if (!event.finished) return;
                   ended->set_value(event.finish == engine::FinishKind::kAbort
                                        ? Status(Error{event.abort_code, event.message})
                                        : Status());
                 }));
  if (result.wait_for(timeout) != std::future_status::ready) {
    app_.engine->cancel(id);
    return unavailable("the warm-up request did not finish within " +
                       std::to_string(timeout.count()) + " s");
  }
  const Status status = result.get();
  if (status.ok()) return {};
  return Error{status.error().code, "the warm-up request failed: " + status.error().message};
}

Status ServerImpl::start() {
  if (!listener_) return internal_error("Server::start before bind");
  if (started_) return internal_error("Server::start called twice");
  for (int i = 0; i < app_.config.io_threads; ++i) io_.push_back(std::make_unique<IoThread>());
  const int fd = listener_->release();
  if (::listen(fd, app_.config.backlog) != 0) {
    const int error = errno;
    close(fd);
    return invalid_argument("cannot listen on " + app_.config.host + ":" +
                                std::to_string(listener_->port()) + ": " + std::strerror(error),
                            "port");
  }
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  acceptor_.emplace(io_[0]->executor());
  accept_pause_.emplace(io_[0]->executor());
  error_code ec;
  acceptor_->assign(address.ss_family == AF_INET6 ? asio::ip::tcp::v6() : asio::ip::tcp::v4(), fd,
                    ec);
  if (ec) return internal_error("cannot use the listening socket: " + ec.message());
  app_.ready = true;
  started_ = true;
  accept_next();
  for (const auto& io : io_) io->start();
  return {};
}

void ServerImpl::accept_next() {
  IoThread& target = *io_[next_io_++ % io_.size()];
  acceptor_->async_accept(target.executor(), [this, &target](error_code ec, Socket socket) {
    accepted(ec, std::move(socket), target);
  });
}

void ServerImpl::accepted(error_code ec, Socket socket, IoThread& target) {
  if (ec == asio::error::operation_aborted) return;
  if (!ec) {
    if (app_.connections.load(std::memory_order_relaxed) < app_.config.max_connections) {
      std::make_shared<HttpSession>(app_, target, std::move(socket))->start();
    } else {
      LOG_WARN("http: {} connections are open; a new one is closed", app_.config.max_connections);
    }
    accept_next();
    return;
  }
  const bool exhausted = ec == boost::system::errc::too_many_files_open ||
                         ec == boost::system::errc::too_many_files_open_in_system;
  if (!exhausted) {
    accept_next();
    return;
  }
  LOG_WARN("http: accept failed: {}; raise the limit of open files (ulimit -n)", ec.message());
  accept_pause_->expires_after(kAcceptPause);
  accept_pause_->async_wait([this](error_code stopped) {
    if (!stopped) accept_next();
  });
}

void ServerImpl::begin_drain() {
  if (app_.draining.exchange(true)) return;
  if (app_.engine != nullptr) app_.engine->begin_drain();
}

void ServerImpl::stop() {
  if (stopped_) return;
  stopped_ = true;
  if (started_) {
    begin_drain();
    if (app_.engine != nullptr) app_.engine->cancel_all("the server is shutting down");
    app_.generations.wait_zero(kLastWords);
  }
  for (const auto& io : io_) io->stop();
  app_.workers.stop();
  accept_pause_.reset();
  acceptor_.reset();
  io_.clear();  // connections and what waits on them
}

}  // namespace

Result<std::unique_ptr<Server>> Server::create(
    ServerConfig config, std::shared_ptr<engine::Engine> engine,
    std::shared_ptr<const text::Tokenizer> tokenizer,
    std::shared_ptr<const text::ChatTemplate> chat_template) {
  CAPSTAN_RETURN_IF_ERROR(validate_config(config));
  if (engine == nullptr || tokenizer == nullptr) {
    return internal_error("Server::create needs an engine and a tokenizer");
  }
  auto server = std::make_unique<ServerImpl>(std::move(config));
  CAPSTAN_RETURN_IF_ERROR(
      server->init(std::move(engine), std::move(tokenizer), std::move(chat_template)));
  return std::unique_ptr<Server>(std::move(server));
}

Result<std::unique_ptr<Server>> Server::create_status(ServerConfig config) {
  CAPSTAN_RETURN_IF_ERROR(validate_config(config));
  if (!config.group) return internal_error("Server::create_status needs a group");
  auto server = std::make_unique<ServerImpl>(std::move(config));
  server->init_status();
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace capstan::server
