// One generation request while it runs: its choices (prompts x n), their submission to the engine,
// the wait for their end, and what happens when the client leaves.
//
// Lives in the handler's coroutine frame, on the connection's IO thread.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "server/asio_types.h"
#include "server/choice.h"
#include "server/exchange.h"
#include "server/generation_call.h"

namespace capstan::server {

struct AppState;

struct Usage {
  int64_t prompt_tokens = 0;  // each prompt once, however many choices it has
  int64_t completion_tokens = 0;
  int64_t reasoning_tokens = 0;  // part of completion_tokens
  int64_t cached_tokens = 0;
};

class Call {
 public:
  /// `writer` null: nothing is streamed, results are collected in the choices.
  Call(AppState& app, Exchange& exchange, const GenerationCall& request, ResponseWriter* writer);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// Queues every choice; on an error none of them runs on.
  std::optional<ApiError> submit();
  /// Returns when every choice has ended, one has failed, or the client has left.
  Task<void> wait() { return ended_.wait(); }
  /// The same with a bound; false when `deadline` came first.
  Task<bool> wait_until(Clock::time_point deadline) { return ended_.wait_until(deadline); }

  bool client_left() const { return client_left_; }
  const std::optional<ApiError>& error() const { return error_; }
  const std::vector<std::shared_ptr<Choice>>& choices() const { return choices_; }
  Usage usage() const;

  // For choices:
  AppState& app() { return app_; }
  Exchange& exchange() { return exchange_; }
  ResponseWriter* writer() { return writer_; }
  Clock::time_point created() const { return created_; }
  void choice_done();
  void fail(ApiError error);

 private:
  void detach_all();

  AppState& app_;
  Exchange& exchange_;
  const GenerationCall& request_;
  ResponseWriter* writer_;
  const Clock::time_point created_;
  std::vector<std::shared_ptr<Choice>> choices_;
  Signal ended_;
  size_t open_ = 0;                      // choices that have not ended
  std::vector<std::string> registered_;  // rids
  bool client_left_ = false;
  std::optional<ApiError> error_;
};

}  // namespace capstan::server
