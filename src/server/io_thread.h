// One IO thread: an io_context, the connections that live on it, and the mailbox through which the
// engine's thread hands over tokens.
//
// A step of the engine yields one event per running request. The first puts a task on the
// io_context, the others only append: one wake-up per step, not per token. After a batch of events
// every connection that got text is written once, so events that were ready together leave in one
// write.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "server/asio_types.h"

namespace capstan::server {

/// Takes events of one engine request, on the IO thread.
class EventReceiver {
 public:
  virtual ~EventReceiver() = default;
  virtual void on_event(engine::OutputEvent&& event) = 0;
};

/// Something with text to write once the present batch of events has been applied.
class Flushable {
 public:
  virtual ~Flushable() = default;
  virtual void flush() = 0;
};

/// Thread-safe; outlives its IO thread if the engine still holds sinks, and drops events then.
class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  explicit Mailbox(asio::io_context& context) : context_(&context) {}
  void push(std::shared_ptr<EventReceiver> receiver, engine::OutputEvent&& event);
  /// From now on events are dropped. The io_context may be destroyed afterwards.
  void close();

  /// IO thread: the object is flushed after the present batch. Call at most once until flushed.
  void mark_dirty(std::shared_ptr<Flushable> object) { dirty_.push_back(std::move(object)); }
  /// IO thread: true while a batch is being applied, so that flushing may wait for its end.
  bool delivering() const { return delivering_; }

 private:
  using Entry = std::pair<std::shared_ptr<EventReceiver>, engine::OutputEvent>;
  void deliver();

  std::mutex mutex_;
  asio::io_context* context_;  // null when closed
  std::vector<Entry> entries_;
  bool scheduled_ = false;
  // IO thread only:
  std::vector<Entry> batch_;
  std::vector<std::shared_ptr<Flushable>> dirty_;
  bool delivering_ = false;
};

class IoThread {
 public:
  IoThread();
  ~IoThread();  // stop()
  void start();
  /// Ends the loop and joins; pending operations are dropped when the object dies.
  void stop();
  asio::io_context& context() { return context_; }
  Executor executor() { return context_.get_executor(); }
  const std::shared_ptr<Mailbox>& mailbox() const { return mailbox_; }

 private:
  asio::io_context context_;
  asio::executor_work_guard<Executor> work_;
  std::shared_ptr<Mailbox> mailbox_;
  std::thread thread_;
};

}  // namespace capstan::server
