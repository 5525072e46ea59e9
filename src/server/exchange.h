// What a handler may do with the request it serves and the connection it came on. Everything here
// runs on the connection's IO thread.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "server/asio_types.h"
#include "server/http_message.h"
#include "server/io_thread.h"

namespace capstan::server {

class Exchange {
 public:
  virtual ~Exchange() = default;

  virtual HttpRequest& request() = 0;
  virtual Executor executor() = 0;
  virtual const std::shared_ptr<Mailbox>& mailbox() = 0;

  /// True once the client closed or reset the connection.
  virtual bool disconnected() const = 0;
  /// Called once when that happens; pass nullptr before what it refers to dies.
  virtual void on_disconnect(std::function<void()> callback) = 0;

  /// Until its response has been written this request counts for Server::wait_idle.
  virtual void hold_drain() = 0;

  /// Sends status 200 and the headers of an event stream; from here on errors are events.
  virtual void begin_event_stream() = 0;
  virtual bool streaming() const = 0;
  /// The buffer to append `data: ...\n\n` events to; what is in it leaves with the next flush.
  virtual std::string& stream_buffer() = 0;
  /// Sends the buffer at the end of the present batch of events, or now when none is applied.
  virtual void stream_flush() = 0;
};

using Handler = std::function<Task<HttpResponse>(Exchange&)>;

}  // namespace capstan::server
