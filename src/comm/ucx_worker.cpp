#include "comm/ucx_worker.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/log.h"
#include "comm/secret.h"
#include "comm/ucx_devices.h"

namespace capstan::comm {
namespace {

constexpr unsigned kMessageId = 1;
// Steps of a decode and credits; the rest gets the largest size.
constexpr size_t kSmallPiece = size_t{16} << 10;
// More are not kept for later.
constexpr size_t kFreePieces = 64;
constexpr int kOpenAgain = 5;
constexpr int kClosingTurns = 1000;

}  // namespace

Result<std::unique_ptr<UcxWorker>> UcxWorker::make(int nodes, const std::string& interface,
                                                   UcxHandler* handler) {
  CAPSTAN_ASSIGN(const UcxLibrary* const ucx, ucx_library());
  std::unique_ptr<UcxWorker> worker(new UcxWorker(ucx, nodes, handler));
  CAPSTAN_RETURN_IF_ERROR(worker->start(interface));
  return worker;
}

UcxWorker::UcxWorker(const UcxLibrary* ucx, int nodes, UcxHandler* handler)
    : ucx_(*ucx), endpoints_(static_cast<size_t>(nodes)), handler_(handler) {
  const Digest random = random_digest();
  std::memcpy(&secret_, random.data(), sizeof(secret_));
}

UcxWorker::~UcxWorker() { close(std::chrono::milliseconds(2000)); }

ucs_status_t UcxWorker::open(const std::string& interface, const char** call) {
  ucp_config_t* config = nullptr;
  *call = "ucp_config_read";
  ucs_status_t status = ucx_.ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return status;
  if (const std::string devices = ucx_devices(interface); !devices.empty()) {
    status = ucx_.ucp_config_modify(config, "NET_DEVICES", devices.c_str());
  }
  // Without an adapter that fetches by itself a rendezvous only adds turns of both sides:
  // all_reduce of 7,168 floats over UCX's TCP 28 to 590 us, without 9 us.
  if (status == UCS_OK && std::getenv("UCX_RNDV_THRESH") == nullptr && !machine_has_rdma()) {
    status = ucx_.ucp_config_modify(config, "RNDV_THRESH", "inf");
  }
  *call = "ucp_init";
  if (status == UCS_OK) {
    ucp_params_t params{};
    params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_ESTIMATED_NUM_EPS;
    params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
    params.estimated_num_eps = endpoints_.size();
    status = ucx_.ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &context_);
    if (status != UCS_OK) context_ = nullptr;
  }
  ucx_.ucp_config_release(config);
  if (status != UCS_OK) return status;
  ucp_worker_params_t params{};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  *call = "ucp_worker_create";
  status = ucx_.ucp_worker_create(context_, &params, &worker_);
  if (status != UCS_OK) {
    worker_ = nullptr;
    ucx_.ucp_cleanup(std::exchange(context_, nullptr));
  }
  return status;
}

Status UcxWorker::start(const std::string& interface) {
  const auto failed = [&](const char* call, ucs_status_t status) {
    return unavailable(std::string("UCX cannot be started (") + call + ": " + text(status) +
                       "); see UCX_TLS and UCX_NET_DEVICES, or use --comm-transport tcp");
  };
  const char* call = nullptr;
  ucs_status_t status = open(interface, &call);
  // Network interfaces come and go where containers do; one that went between the two calls is no
  // reason to give up.
  for (int again = 0; again < kOpenAgain && status == UCS_ERR_NO_DEVICE && context_ == nullptr &&
                      std::string_view(call) == "ucp_worker_create";
       ++again) {
    status = open(interface, &call);
  }
  if (status != UCS_OK) return failed(call, status);
  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                       UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kMessageId;
  handler.flags = UCP_AM_FLAG_WHOLE_MSG;
  handler.cb = &UcxWorker::on_message;
  handler.arg = this;
  status = ucx_.ucp_worker_set_am_recv_handler(worker_, &handler);
  if (status != UCS_OK) return failed("ucp_worker_set_am_recv_handler", status);
  status = ucx_.ucp_worker_get_efd(worker_, &event_fd_);
  if (status != UCS_OK) return failed("ucp_worker_get_efd", status);
  return {};
}

Result<std::string> UcxWorker::address() {
  ucp_address_t* address = nullptr;
  size_t length = 0;
  const ucs_status_t status = ucx_.ucp_worker_get_address(worker_, &address, &length);
  if (status != UCS_OK) return unavailable("UCX has no address of its own: " + text(status));
  std::string out(reinterpret_cast<const char*>(address), length);
  ucx_.ucp_worker_release_address(worker_, address);
  return out;
}

Status UcxWorker::connect(int node, const std::string& address, uint64_t secret) {
  Endpoint& endpoint = endpoints_[static_cast<size_t>(node)];
  endpoint.worker = this;
  endpoint.node = node;
  endpoint.secret = secret;
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &UcxWorker::on_error;
  params.err_handler.arg = &endpoint;
  const ucs_status_t status = ucx_.ucp_ep_create(worker_, &params, &endpoint.ep);
  if (status == UCS_OK) return {};
  endpoint.ep = nullptr;
  return unavailable(text(status));
}

std::unique_ptr<UcxPiece> UcxWorker::take_piece(size_t bytes) {
  auto& free = bytes <= kSmallPiece ? small_ : large_;
  std::unique_ptr<UcxPiece> piece;
  if (free.empty()) {
    piece = std::make_unique<UcxPiece>();
    const size_t usual = bytes <= kSmallPiece ? kSmallPiece : kUcxPieceBytes;
    piece->memory = AlignedBuffer(std::max(bytes, usual));
    piece->worker = this;
  } else {
    piece = std::move(free.back());
    free.pop_back();
  }
  piece->header = {};
  piece->bytes = 0;
  piece->node = -1;
  piece->outstanding = nullptr;
  return piece;
}

void UcxWorker::give_back(std::unique_ptr<UcxPiece> piece) {
  auto& free = piece->memory.bytes() <= kSmallPiece ? small_ : large_;
  if (free.size() < kFreePieces && piece->memory.bytes() <= kUcxPieceBytes) {
    free.push_back(std::move(piece));
  }
}

void UcxWorker::post(std::unique_ptr<UcxPiece> owned) {
  UcxPiece* const piece = owned.release();
  ++in_flight_;
  if (piece->outstanding != nullptr) ++*piece->outstanding;
  Endpoint& endpoint = endpoints_[static_cast<size_t>(piece->node)];
  if (endpoint.broken || endpoint.ep == nullptr) {
    done(piece);
    return;
  }
  piece->header.secret = endpoint.secret;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = &UcxWorker::on_sent;
  param.user_data = piece;
  void* const request =
      ucx_.ucp_am_send_nbx(endpoint.ep, kMessageId, &piece->header, sizeof(piece->header),
                           piece->memory.data(), piece->bytes, &param);
  if (request == nullptr) {
    done(piece);
  } else if (UCS_PTR_IS_ERR(request)) {
    fail(endpoint, UCS_PTR_STATUS(request));
    done(piece);
  }
}

void UcxWorker::done(UcxPiece* piece) {
  --in_flight_;
  const int node = piece->node;
  const uint64_t channel = piece->header.channel;
  const bool counted = piece->outstanding != nullptr;
  if (counted) --*piece->outstanding;
  give_back(std::unique_ptr<UcxPiece>(piece));
  if (counted) handler_->posted_done(node, channel);
}

void UcxWorker::fail(Endpoint& endpoint, ucs_status_t status) {
  if (std::exchange(endpoint.broken, true)) return;
  handler_->broken(endpoint.node, text(status));
}

bool UcxWorker::progress() { return ucx_.ucp_worker_progress(worker_) != 0; }

bool UcxWorker::arm() { return ucx_.ucp_worker_arm(worker_) == UCS_OK; }

bool UcxWorker::flushed() {
  for (const Endpoint& endpoint : endpoints_) {
    if (endpoint.broken) return true;
  }
  if (flush_ == nullptr) {
    ucp_request_param_t param{};
    void* const request = ucx_.ucp_worker_flush_nbx(worker_, &param);
    if (request == nullptr || UCS_PTR_IS_ERR(request)) return true;
    flush_ = request;
  }
  if (ucx_.ucp_request_check_status(flush_) == UCS_INPROGRESS) return false;
  ucx_.ucp_request_free(std::exchange(flush_, nullptr));
  return true;
}

void UcxWorker::close(std::chrono::milliseconds limit) {
  if (context_ == nullptr) return;
  const auto until = std::chrono::steady_clock::now() + limit;
  const bool idle = std::all_of(endpoints_.begin(), endpoints_.end(),
                                [](const Endpoint& endpoint) { return endpoint.ep == nullptr; });
  if (!wired_ && !idle) {
    leave();
    return;
  }
  std::vector<void*> closing;
  if (flush_ != nullptr) closing.push_back(std::exchange(flush_, nullptr));
  for (Endpoint& endpoint : endpoints_) {
    if (endpoint.ep == nullptr) continue;
    endpoint.broken = true;  // no more posts, no more reports
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = UCP_EP_CLOSE_FLAG_FORCE;
    void* const request = ucx_.ucp_ep_close_nbx(std::exchange(endpoint.ep, nullptr), &param);
    if (request != nullptr && !UCS_PTR_IS_ERR(request)) closing.push_back(request);
  }
  const auto pending = [&] {
    std::erase_if(closing, [&](void* request) {
      if (ucx_.ucp_request_check_status(request) == UCS_INPROGRESS) return false;
      ucx_.ucp_request_free(request);
      return true;
    });
    return !closing.empty() || in_flight_ > 0;
  };
  // Also some turns: the process may have been stopped meanwhile.
  for (int turn = 0; worker_ != nullptr && pending() &&
                     (turn < kClosingTurns || std::chrono::steady_clock::now() < until);
       ++turn) {
    progress();
  }
  if (worker_ != nullptr && pending()) {
    LOG_WARN("UCX did not let go of {} buffers within {} ms; their memory stays reserved",
             in_flight_, limit.count());
    leave();
    return;
  }
  if (strangers_came_) {
    leave();
    return;
  }
  if (worker_ != nullptr) ucx_.ucp_worker_destroy(worker_);
  ucx_.ucp_cleanup(context_);
  worker_ = nullptr;
  context_ = nullptr;
}

/// Nobody calls UCX with them any more; kept where a search for lost memory finds them.
void UcxWorker::leave() {
  static std::mutex mutex;
  static auto* const left = new std::vector<std::pair<ucp_context_h, ucp_worker_h>>();
  const std::lock_guard lock(mutex);
  left->emplace_back(std::exchange(context_, nullptr), std::exchange(worker_, nullptr));
}

void UcxWorker::refuse_stranger() {
  strangers_came_ = true;
  if (!strangers_.due(std::chrono::steady_clock::now())) return;
  const int more = strangers_.suppressed();
  LOG_WARN("refused a message that came through UCX without this node's secret{}",
           more > 0 ? " (and " + std::to_string(more) + " others since the last such line)" : "");
}

ucs_status_t UcxWorker::on_message(void* arg, const void* header, size_t header_length, void* data,
                                   size_t length, const ucp_am_recv_param_t* param) {
  auto& self = *static_cast<UcxWorker*>(arg);
  UcxHeader head;
  if (header_length == sizeof(head)) std::memcpy(&head, header, sizeof(head));
  // UCX takes connections of anybody who finds its ports.
  if (header_length != sizeof(head) || head.secret != self.secret_) {
    self.refuse_stranger();
    return UCS_OK;
  }
  if (head.node < 0 || static_cast<size_t>(head.node) >= self.endpoints_.size() ||
      length > kUcxPieceBytes || self.endpoints_[static_cast<size_t>(head.node)].ep == nullptr ||
      !self.handler_->announced(head, length)) {
    return UCS_OK;
  }
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0) {
    self.handler_->arrived(head, static_cast<const std::byte*>(data), length);
    return UCS_OK;
  }
  // The sender waits to be told where to; our own memory, whoever the bytes are for.
  UcxPiece* const piece = self.take_piece(length).release();
  piece->header = head;
  piece->bytes = length;
  ++self.in_flight_;
  ucp_request_param_t receive{};
  receive.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  receive.cb.recv_am = &UcxWorker::on_received;
  receive.user_data = piece;
  void* const request =
      self.ucx_.ucp_am_recv_data_nbx(self.worker_, data, piece->memory.data(), length, &receive);
  if (request == nullptr || UCS_PTR_IS_ERR(request)) {
    self.received(piece, UCS_PTR_RAW_STATUS(request));
  }
  return UCS_INPROGRESS;
}

void UcxWorker::received(UcxPiece* piece, ucs_status_t status) {
  if (status == UCS_OK) {
    handler_->arrived(piece->header, piece->memory.data(), piece->bytes);
  } else {
    fail(endpoints_[static_cast<size_t>(piece->header.node)], status);
  }
  --in_flight_;
  give_back(std::unique_ptr<UcxPiece>(piece));
}

void UcxWorker::on_received(void* request, ucs_status_t status, size_t, void* user_data) {
  auto* const piece = static_cast<UcxPiece*>(user_data);
  UcxWorker& self = *piece->worker;
  self.received(piece, status);
  self.ucx_.ucp_request_free(request);
}

void UcxWorker::on_sent(void* request, ucs_status_t status, void* user_data) {
  auto* const piece = static_cast<UcxPiece*>(user_data);
  UcxWorker& self = *piece->worker;
  if (status != UCS_OK) self.fail(self.endpoints_[static_cast<size_t>(piece->node)], status);
  self.done(piece);
  self.ucx_.ucp_request_free(request);
}

void UcxWorker::on_error(void* arg, ucp_ep_h, ucs_status_t status) {
  auto& endpoint = *static_cast<Endpoint*>(arg);
  endpoint.worker->fail(endpoint, status);
}

}  // namespace capstan::comm
