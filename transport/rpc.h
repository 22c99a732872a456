#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/deadline.h"
#include "base/status.h"
#include "transport/curve_keys.h"
#include "transport/wire_check.h"

namespace quern {

// Request and reply over ZeroMQ (ROUTER and DEALER). Addresses: "ipc://PATH" and "inproc://NAME" are plain (an ipc
// folder must be mode 700), "tcp://HOST:PORT" always uses CURVE. Frames of a request: id (8 bytes), method, payload; of
// a reply: id, status code (1 byte), error text, payload.

struct SocketLimits {
  int64_t max_message_bytes = int64_t{64} << 20;  // a peer that sends a larger frame is cut off before it is buffered
  int high_water_mark = 1000;                     // messages per peer
};

struct RpcServerOptions {
  SocketLimits limits;
  int threads = 1;  // 1: handlers never run concurrently
  // tcp only.
  std::optional<CurveKeys> keys;
  std::vector<std::string> allowed_clients;  // public keys; anyone else is refused
};

struct RpcServerCounters {
  uint64_t requests = 0;
  uint64_t malformed = 0;      // messages dropped: wrong number of frames, wrong id size
  uint64_t rejected = 0;       // requests whose handler said InvalidArgument: too large, too deep, no such message
  uint64_t undeliverable = 0;  // replies dropped because their client had left
  uint64_t connections = 0;    // accepted so far (ipc and tcp)
  uint64_t handshakes = 0;     // of those, the ones that spoke ZMTP and, on tcp, had a key on the list
};

class RpcServer {
 public:
  using Handler = std::function<Result<std::string>(std::string_view request)>;
  // Several waiting requests of one method at once; returns one result per request, in order.
  using BatchHandler = std::function<std::vector<Result<std::string>>(const std::vector<std::string_view>& requests)>;

  explicit RpcServer(RpcServerOptions options = {});
  RpcServer(const RpcServer&) = delete;
  RpcServer& operator=(const RpcServer&) = delete;
  ~RpcServer();  // stops

  // Before Start. A handler may see the same request twice (a client re-sends after a lost connection): it must be
  // idempotent.
  void Handle(const std::string& method, Handler handler);
  // For handlers that are cheaper per request in groups (one sync for many inserts). With threads > 1 the groups are of
  // one.
  void HandleBatch(const std::string& method, BatchHandler handler);

  // Binds and begins to serve. "tcp://127.0.0.1:*" (or port 0) takes a free port. Address in use: AlreadyExists.
  Status Start(const std::string& address);
  // Waits for running handlers, then closes the socket. Idempotent.
  void Stop();
  // What clients connect to; valid after Start.
  const std::string& address() const { return address_; }
  RpcServerCounters counters() const;

 private:
  struct Request;
  struct Socket;
  struct Workers;
  Status Bind(const std::string& address);
  void Serve();
  void ServeWithWorkers(Workers& workers);
  void CountConnections();
  void Receive(size_t most, std::vector<Request>* requests);
  void Dispatch(std::vector<Request>& requests);
  Result<std::string> RunHandler(Request& request);
  void Reply(Request& request, const Result<std::string>& result);

  RpcServerOptions options_;
  std::map<std::string, Handler> handlers_;
  std::map<std::string, BatchHandler> batch_handlers_;
  std::string address_;
  std::string domain_;  // ZAP domain of a tcp server
  std::unique_ptr<Socket> socket_;
  std::thread thread_;
  std::atomic<uint64_t> requests_{0};
  std::atomic<uint64_t> malformed_{0};
  std::atomic<uint64_t> rejected_{0};
  std::atomic<uint64_t> undeliverable_{0};
  std::atomic<uint64_t> connections_{0};
  std::atomic<uint64_t> handshakes_{0};
};

struct RpcClientOptions {
  SocketLimits limits;
  // tcp only: this client's keys and the server's public key.
  std::optional<CurveKeys> keys;
  std::string server_key;
  // A call ends early when there was no connection for so long; 0: it waits for its deadline.
  std::chrono::milliseconds patience{0};
};

// Thread-safe; calls of one client run one after another, so take one client per thread for calls in parallel.
class RpcClient {
 public:
  // Does not wait for the server: it may start later.
  static Result<std::unique_ptr<RpcClient>> Connect(const std::string& address, RpcClientOptions options = {});
  RpcClient(const RpcClient&) = delete;
  RpcClient& operator=(const RpcClient&) = delete;
  ~RpcClient();

  // Sends the request, again with the same id after every reconnection, until an answer comes or the deadline passes
  // (DeadlineExceeded naming peer, method and the time waited). An error of the handler comes back with its code.
  Result<std::string> Call(const std::string& method, std::string_view request, Deadline deadline);

  // The same for protobuf messages: Call<v1::HelloReply>("coordinator.Hello", request, deadline).
  template <typename Reply, typename Request>
  Result<Reply> Call(const std::string& method, const Request& request, Deadline deadline) {
    Result<std::string> bytes = Call(method, std::string_view(request.SerializeAsString()), deadline);
    if (!bytes.ok()) return bytes.status();
    Reply reply;
    if (!reply.ParseFromString(*bytes)) return DataLoss(method + ": the answer of " + address() + " does not parse");
    return reply;
  }
  const std::string& address() const;

 private:
  struct Impl;
  explicit RpcClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// A handler for protobuf messages, looked at before they are parsed: TypedHandler<v1::HelloRequest,
// v1::HelloReply>([](const auto& r) -> Result<...>
// {...}).
template <typename Request, typename Reply, typename Function>
RpcServer::Handler TypedHandler(Function function) {
  return [function = std::move(function)](std::string_view bytes) -> Result<std::string> {
    QUERN_RETURN_IF_ERROR(CheckWire(bytes, *Request::descriptor()));
    Request request;
    if (!request.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
      return InvalidArgument("the request does not parse as " + std::string(Request::descriptor()->full_name()));
    Result<Reply> reply = function(request);
    if (!reply.ok()) return reply.status();
    return reply->SerializeAsString();
  };
}

}  // namespace quern
