// UCX's worker of this process: endpoints to the other nodes, and pieces of frames on their way.
//
// What memory UCX may touch: only that of pieces (UcxPiece), which the worker owns from post()
// until UCX has completed the request, and the memory of frames that are being received, likewise
// its own. UCX never sees the memory of a caller. So an operation that is abandoned (abort(), a
// peer lost) returns at once, and its callers may free their tensors, whatever is still on its way.
// The price is one copy on each side, as through a socket.
//
// Should requests remain that UCX does not complete even after their endpoints were closed by
// force, close() leaks the worker with all its pieces deliberately rather than free memory that a
// network adapter may still read or write.
//
// Not thread-safe: whoever calls holds the lock of the mesh. Handlers run inside progress(), post()
// and close(), from the calling thread. UCX must be used after the last fork() only: make a worker
// in the process that uses it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "comm/control_throttle.h"
#include "comm/ucx_library.h"
#include "tensor/tensor.h"

namespace capstan::comm {

/// Before the bytes of every piece. Both ends are little-endian.
struct UcxHeader {
  static constexpr uint32_t kData = 1;
  static constexpr uint32_t kCredit = 2;  // carries `consumed` alone
  static constexpr uint32_t kHello = 3;   // the first of all: the way is open
  uint64_t secret = 0;                    // the receiver's; the worker fills it in and checks it
  uint64_t channel = 0;
  uint64_t number = 0;    // pieces of this channel in this direction before this one
  uint64_t sequence = 0;  // frames of this channel in this direction before this one
  uint64_t length = 0;    // bytes of the frame
  uint64_t offset = 0;    // of this piece within it
  uint64_t consumed = 0;  // see UcxMesh: what this channel has used of what the other side sent
  uint32_t kind = kData;
  int32_t node = 0;  // sender
};

/// Largest piece. all_reduce of 4 Mi floats, see docs/collectives.md.
inline constexpr size_t kUcxPieceBytes = size_t{256} << 10;

struct UcxPiece {
  UcxHeader header;
  AlignedBuffer memory;
  size_t bytes = 0;                 // used of `memory`
  int node = -1;                    // where to
  uint32_t* outstanding = nullptr;  // if set: less by one when UCX has let go of the piece
  class UcxWorker* worker = nullptr;
};

/// Gets what comes.
class UcxHandler {
 public:
  virtual ~UcxHandler() = default;
  /// Before the bytes of each message that knows the secret: whether there is a place for them.
  /// False: it is dropped.
  virtual bool announced(const UcxHeader& header, size_t bytes) = 0;
  /// `data` is valid during the call. Pieces of one sender may overtake each other.
  virtual void arrived(const UcxHeader& header, const std::byte* data, size_t bytes) = 0;
  /// UCX let go of a posted piece of this channel.
  virtual void posted_done(int node, uint64_t channel) = 0;
  /// The endpoint to `node` is of no use any more. Once per node.
  virtual void broken(int node, const std::string& why) = 0;
};

class UcxWorker {
 public:
  /// `nodes`: of the topology. `interface`: of the links, if one was chosen; see ucx_devices().
  static Result<std::unique_ptr<UcxWorker>> make(int nodes, const std::string& interface,
                                                 UcxHandler* handler);
  /// close()s.
  ~UcxWorker();
  UcxWorker(const UcxWorker&) = delete;
  UcxWorker& operator=(const UcxWorker&) = delete;

  /// To be told to the other nodes.
  Result<std::string> address();
  /// Goes with the address, over an authenticated link: who does not know it is not listened to.
  uint64_t secret() const { return secret_; }
  Status connect(int node, const std::string& address, uint64_t secret);

  std::unique_ptr<UcxPiece> take_piece(size_t bytes);
  void give_back(std::unique_ptr<UcxPiece> piece);
  /// Sends it; nothing happens if the endpoint is broken.
  void post(std::unique_ptr<UcxPiece> piece);
  /// True if anything happened.
  bool progress();
  /// True: the descriptor becomes readable when there is something to progress. False: progress
  /// first.
  bool arm();
  int event_fd() const { return event_fd_; }
  /// Asked again until true: everything posted before is with the transports, or an endpoint broke.
  bool flushed();

  /// All endpoints have reached each other. Before, close() leaks those that there are: UCX 1.13
  /// ends the process (an assertion in ucp_worker_destroy) if it still has answers to give while a
  /// connection is being made.
  void set_wired() { wired_ = true; }
  /// Closes the endpoints by force and frees everything, within `limit`; see above. Repeatable. If
  /// strangers came, the worker is leaked: UCX may still owe them answers, see set_wired().
  void close(std::chrono::milliseconds limit);

 private:
  struct Endpoint {
    UcxWorker* worker = nullptr;
    int node = -1;
    ucp_ep_h ep = nullptr;
    uint64_t secret = 0;  // of the worker there
    bool broken = false;
  };

  UcxWorker(const UcxLibrary* ucx, int nodes, UcxHandler* handler);
  Status start(const std::string& interface);
  ucs_status_t open(const std::string& interface, const char** call);
  void leave();
  void refuse_stranger();
  void done(UcxPiece* piece);
  void received(UcxPiece* piece, ucs_status_t status);
  void fail(Endpoint& endpoint, ucs_status_t status);
  std::string text(ucs_status_t status) const { return ucx_.ucs_status_string(status); }

  static ucs_status_t on_message(void* arg, const void* header, size_t header_length, void* data,
                                 size_t length, const ucp_am_recv_param_t* param);
  static void on_sent(void* request, ucs_status_t status, void* user_data);
  static void on_received(void* request, ucs_status_t status, size_t length, void* user_data);
  static void on_error(void* arg, ucp_ep_h ep, ucs_status_t status);

  const UcxLibrary& ucx_;
  uint64_t secret_ = 0;
  std::vector<Endpoint> endpoints_;  // by node
  UcxHandler* const handler_;
  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  int event_fd_ = -1;
  bool wired_ = false;
  void* flush_ = nullptr;  // running request
  size_t in_flight_ = 0;   // pieces with UCX
  bool strangers_came_ = false;
  LogThrottle strangers_{std::chrono::seconds(30)};
  std::vector<std::unique_ptr<UcxPiece>> small_, large_;  // free
};

}  // namespace capstan::comm
