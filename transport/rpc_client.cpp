#include <zmq.h>

#include <cerrno>
#include <cstring>
#include <mutex>

#include "base/check.h"
#include "base/strings.h"
#include "transport/address.h"
#include "transport/context.h"
#include "transport/frames.h"
#include "transport/rpc.h"

namespace quern {

struct RpcClient::Impl {
  std::string address;
  RpcClientOptions options;
  std::mutex mutex;  // guards the rest: one call at a time
  void* socket = nullptr;
  void* monitor = nullptr;  // null for inproc, which is always connected
  uint64_t next_id = 1;
  bool connected = false;
  uint64_t connections = 0;  // handshakes completed so far
  uint64_t refusals = 0;     // handshakes that failed

  ~Impl() {
    if (socket != nullptr) {
      if (monitor != nullptr) zmq_socket_monitor(socket, nullptr, 0);
      zmq_close(socket);
    }
    if (monitor != nullptr) zmq_close(monitor);
  }

  Status Open();
  Status ReadEvents();
  Result<std::string> Call(const std::string& method, std::string_view request, Deadline deadline);
  // True when this was the answer to `id`.
  bool Receive(uint64_t id, Result<std::string>* answer);
};

Status RpcClient::Impl::Open() {
  QUERN_ASSIGN_OR_RETURN(const AddressKind kind, ParseAddress(address));
  socket = zmq_socket(ZmqContext(), ZMQ_DEALER);
  if (socket == nullptr) return Internal(StrCat(address, ": ", zmq_strerror(zmq_errno())));
  SetCommonOptions(socket, options.limits);
  const int immediate = 1;  // queue only for a peer that is there; what a lost peer had queued is sent again by Call
  zmq_setsockopt(socket, ZMQ_IMMEDIATE, &immediate, sizeof(immediate));
  if (kind == AddressKind::kTcp) {
    if (!options.keys || options.server_key.empty())
      return FailedPrecondition(address + ": a client on tcp needs its CURVE keys and the server's public key");
    QUERN_RETURN_IF_ERROR(CheckKey(options.server_key, address + ": the server's public"));
    QUERN_RETURN_IF_ERROR(CheckKey(options.keys->public_key, address + ": this client's public"));
    QUERN_RETURN_IF_ERROR(CheckKey(options.keys->secret_key, address + ": this client's secret"));
    const bool set = zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, options.server_key.c_str(), 41) == 0 &&
                     zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, options.keys->public_key.c_str(), 41) == 0 &&
                     zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, options.keys->secret_key.c_str(), 41) == 0;
    if (!set) return Internal(StrCat(address, ": CURVE: ", zmq_strerror(zmq_errno())));
  }
  if (kind == AddressKind::kInproc) {
    connected = true;
    connections = 1;
  } else {
    static std::atomic<uint64_t> next{0};
    const std::string endpoint = StrCat("inproc://quern.monitor.", next++);
    const int events = ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                       ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;
    if (zmq_socket_monitor(socket, endpoint.c_str(), events) != 0)
      return Internal(StrCat(address, ": ", zmq_strerror(zmq_errno())));
    monitor = zmq_socket(ZmqContext(), ZMQ_PAIR);
    if (monitor == nullptr || zmq_connect(monitor, endpoint.c_str()) != 0)
      return Internal(StrCat(address, ": ", zmq_strerror(zmq_errno())));
  }
  if (zmq_connect(socket, address.c_str()) != 0)
    return InvalidArgument(StrCat(address, ": cannot connect: ", zmq_strerror(zmq_errno())));
  return {};
}

Status RpcClient::Impl::ReadEvents() {
  std::vector<Frame> frames;
  while (monitor != nullptr && ReceiveFrames(monitor, ZMQ_DONTWAIT, &frames)) {
    uint16_t event = 0;
    QUERN_CHECK(frames[0].view().size() >= sizeof(event));
    std::memcpy(&event, frames[0].view().data(), sizeof(event));
    switch (event) {
      case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
        connected = true;
        ++connections;
        break;
      case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        connected = false;
        return FailedPrecondition(address +
                                  ": the server refused this client's key: add it to the server's list of clients");
      case ZMQ_EVENT_DISCONNECTED: connected = false; break;
      default: connected = false; ++refusals;
    }
  }
  return {};
}

bool RpcClient::Impl::Receive(uint64_t id, Result<std::string>* answer) {
  std::vector<Frame> frames;
  while (ReceiveFrames(socket, ZMQ_DONTWAIT, &frames)) {
    if (frames.size() != 4 || frames[0].view() != std::string_view(reinterpret_cast<const char*>(&id), sizeof(id)) ||
        frames[1].view().size() != 1)
      continue;  // the late answer to an earlier call
    const auto code = static_cast<StatusCode>(frames[1].view()[0]);
    if (code == StatusCode::kOk)
      *answer = std::string(frames[3].view());
    else if (code > StatusCode::kOk && code <= StatusCode::kInternal)
      *answer = Status(code, std::string(frames[2].view()));
    else
      *answer = DataLoss(address + ": an answer with an unknown status code");
    return true;
  }
  return false;
}

Result<std::string> RpcClient::Impl::Call(const std::string& method, std::string_view request, Deadline deadline) {
  if (static_cast<int64_t>(request.size()) > options.limits.max_message_bytes)
    return InvalidArgument(StrCat(method, " to ", address, ": a request of ",
                                  HumanBytes(static_cast<double>(request.size())), " is over the limit of ",
                                  HumanBytes(static_cast<double>(options.limits.max_message_bytes)),
                                  ": send less at once"));
  const Clock::time_point begin = Clock::now();
  const uint64_t id = next_id++;
  uint64_t sent_on = 0;  // the connection that carries the request; 0: not sent
  int sends = 0;
  Result<std::string> answer = Internal("unset");
  Clock::time_point seen = begin;  // connected
  while (true) {
    QUERN_RETURN_IF_ERROR(ReadEvents());
    if (Receive(id, &answer)) return answer;
    if (connected) seen = Clock::now();
    if (deadline.Expired() || (options.patience.count() > 0 && Clock::now() - seen > options.patience)) break;
    const bool to_send = connected && sent_on != connections;
    zmq_pollitem_t items[] = {{socket, 0, static_cast<short>(ZMQ_POLLIN | (to_send ? ZMQ_POLLOUT : 0)), 0},
                              {monitor, 0, ZMQ_POLLIN, 0}};
    const long wait_ms = std::min<long>(deadline.Left().count() + 1, 1000);
    if (zmq_poll(items, monitor != nullptr ? 2 : 1, wait_ms) < 0) {
      if (zmq_errno() == EINTR) continue;
      return Internal(StrCat(address, ": ", zmq_strerror(zmq_errno())));
    }
    if (to_send && (items[0].revents & ZMQ_POLLOUT) != 0) {
      const std::string_view id_bytes(reinterpret_cast<const char*>(&id), sizeof(id));
      if (SendFrames(socket, ZMQ_DONTWAIT, {id_bytes, method, request})) {
        sent_on = connections;
        ++sends;
      }
    }
  }
  std::string detail = "the server has not answered";
  if (!connected && refusals > 0)
    detail = StrCat("the handshake failed ", refusals, " times: check the server's key");
  else if (!connected)
    detail = sends > 0 ? StrCat("the connection was lost, the request sent ", sends, " times") : "nobody listens there";
  else if (sends > 1)
    detail = StrCat("the connection was lost and the request sent ", sends, " times");
  return DeadlineExceeded(StrFormat("%s to %s: no answer within %.1f s (%s)", method.c_str(), address.c_str(),
                                    SecondsSince(begin), detail.c_str()));
}

RpcClient::RpcClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RpcClient::~RpcClient() = default;

Result<std::unique_ptr<RpcClient>> RpcClient::Connect(const std::string& address, RpcClientOptions options) {
  auto impl = std::make_unique<Impl>();
  impl->address = address;
  impl->options = std::move(options);
  QUERN_RETURN_IF_ERROR(impl->Open());
  return std::unique_ptr<RpcClient>(new RpcClient(std::move(impl)));
}

Result<std::string> RpcClient::Call(const std::string& method, std::string_view request, Deadline deadline) {
  std::lock_guard lock(impl_->mutex);
  return impl_->Call(method, request, deadline);
}

const std::string& RpcClient::address() const { return impl_->address; }

}  // namespace quern
