#include "server/io_thread.h"

#include <pthread.h>

#include <boost/asio/post.hpp>
#include <exception>

#include "base/log.h"

namespace capstan::server {

void Mailbox::push(std::shared_ptr<EventReceiver> receiver, engine::OutputEvent&& event) {
  const std::lock_guard lock(mutex_);
  if (context_ == nullptr) return;
  entries_.emplace_back(std::move(receiver), std::move(event));
  if (scheduled_) return;
  scheduled_ = true;
  // Under the lock: close() must not let the context die between the check and the post.
  asio::post(*context_, [self = shared_from_this()] { self->deliver(); });
}

void Mailbox::close() {
  std::vector<Entry> dropped;
  const std::lock_guard lock(mutex_);
  context_ = nullptr;
  dropped.swap(entries_);
}

void Mailbox::deliver() {
  {
    const std::lock_guard lock(mutex_);
    batch_.swap(entries_);
    scheduled_ = false;
  }
  delivering_ = true;
  for (Entry& entry : batch_) {
    try {
      entry.first->on_event(std::move(entry.second));
    } catch (const std::exception& e) {
      LOG_ERROR("http: handling a token failed: {}", e.what());
    }
  }
  delivering_ = false;
  batch_.clear();
  for (size_t i = 0; i < dirty_.size(); ++i) dirty_[i]->flush();
  dirty_.clear();
}

IoThread::IoThread()
    : context_(1),
      work_(asio::make_work_guard(context_)),
      mailbox_(std::make_shared<Mailbox>(context_)) {}

IoThread::~IoThread() { stop(); }

void IoThread::start() {
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "http-io");
    for (;;) {
      try {
        context_.run();
        return;
      } catch (const std::exception& e) {
        LOG_ERROR("http: a handler threw: {}; the connection it served is dropped", e.what());
      }
    }
  });
}

void IoThread::stop() {
  mailbox_->close();
  work_.reset();
  context_.stop();
  if (thread_.joinable()) thread_.join();
}

}  // namespace capstan::server
