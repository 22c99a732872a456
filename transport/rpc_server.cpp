#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <unistd.h>
#include <zmq.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>

#include "base/check.h"
#include "base/log.h"
#include "base/strings.h"
#include "transport/address.h"
#include "transport/connection_monitor.h"
#include "transport/context.h"
#include "transport/frames.h"
#include "transport/rpc.h"

namespace quern {

namespace {

constexpr size_t kGroupRequests = 256;
constexpr size_t kGroupBytes = size_t{16} << 20;

// Waits until the listener's descriptor (and an ipc socket's file) is gone: libzmq closes it on its own thread, and
// would otherwise remove the file of a server that binds the same path next.
void CloseListener(void* socket, const std::string& address) {
  static std::atomic<uint64_t> next{0};
  const std::string endpoint = StrCat("inproc://quern.closing.", next++);
  void* monitor = nullptr;
  if (zmq_socket_monitor(socket, endpoint.c_str(), ZMQ_EVENT_CLOSED | ZMQ_EVENT_CLOSE_FAILED) == 0) {
    monitor = zmq_socket(ZmqContext(), ZMQ_PAIR);
    if (monitor != nullptr) zmq_connect(monitor, endpoint.c_str());
  }
  if (zmq_unbind(socket, address.c_str()) == 0 && monitor != nullptr) {
    zmq_pollitem_t item{monitor, 0, ZMQ_POLLIN, 0};
    zmq_poll(&item, 1, 1000);
  }
  zmq_socket_monitor(socket, nullptr, 0);
  if (monitor != nullptr) zmq_close(monitor);
}

}  // namespace

void SetCommonOptions(void* socket, const SocketLimits& limits) {
  const auto set = [socket](int option, int value) {
    QUERN_CHECK(zmq_setsockopt(socket, option, &value, sizeof(value)) == 0, zmq_strerror(zmq_errno()));
  };
  const int64_t largest = limits.max_message_bytes;
  QUERN_CHECK(zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &largest, sizeof(largest)) == 0, zmq_strerror(zmq_errno()));
  set(ZMQ_RCVHWM, limits.high_water_mark);
  set(ZMQ_SNDHWM, limits.high_water_mark);
  set(ZMQ_HANDSHAKE_IVL, 5000);
  set(ZMQ_HEARTBEAT_IVL, 2000);
  set(ZMQ_HEARTBEAT_TIMEOUT, 6000);
  set(ZMQ_RECONNECT_IVL, 20);
  set(ZMQ_RECONNECT_IVL_MAX, 200);
  set(ZMQ_LINGER, 0);
}

struct RpcServer::Request {
  Frame client;
  Frame id;
  std::string method;
  Frame payload;
};

struct RpcServer::Socket {
  void* zmq = nullptr;
  ConnectionMonitor monitor;  // of nothing on inproc
  int wake = -1;              // eventfd: stop, or replies are ready
  int lock = -1;              // flock of an ipc address: libzmq would silently take over a live server's path
  std::atomic<bool> stop{false};

  void Wake() const {
    const uint64_t one = 1;
    QUERN_CHECK(write(wake, &one, sizeof(one)) == sizeof(one));
  }
  void ClearWake() const {
    uint64_t count;
    if (read(wake, &count, sizeof(count)) < 0) QUERN_CHECK(errno == EAGAIN);
  }
  ~Socket() {
    monitor.Close();
    if (zmq != nullptr) zmq_close(zmq);
    if (wake >= 0) close(wake);
    if (lock >= 0) close(lock);
  }
};

// Requests go in and replies come out through queues; only the socket's thread touches the socket.
struct RpcServer::Workers {
  struct Done {
    Request request;
    Result<std::string> result;
  };
  std::mutex mutex;
  std::condition_variable ready;
  std::deque<Request> waiting;
  std::vector<Done> done;
  bool stop = false;
  std::vector<std::thread> threads;
};

RpcServer::RpcServer(RpcServerOptions options) : options_(std::move(options)) { QUERN_CHECK(options_.threads >= 1); }
RpcServer::~RpcServer() { Stop(); }

void RpcServer::Handle(const std::string& method, Handler handler) {
  QUERN_CHECK(socket_ == nullptr && !method.empty());
  handlers_[method] = std::move(handler);
}

void RpcServer::HandleBatch(const std::string& method, BatchHandler handler) {
  QUERN_CHECK(socket_ == nullptr && !method.empty());
  batch_handlers_[method] = std::move(handler);
}

Status RpcServer::Bind(const std::string& address) {
  QUERN_ASSIGN_OR_RETURN(const AddressKind kind, ParseAddress(address));
  auto socket = std::make_unique<Socket>();
  socket->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (socket->wake < 0) return FromErrno(errno, address);
  socket->zmq = zmq_socket(ZmqContext(), ZMQ_ROUTER);
  if (socket->zmq == nullptr) return Internal(StrCat(address, ": ", zmq_strerror(zmq_errno())));
  SetCommonOptions(socket->zmq, options_.limits);
  const int on = 1;
  zmq_setsockopt(socket->zmq, ZMQ_ROUTER_MANDATORY, &on, sizeof(on));
  const int linger_ms = 1000;  // the last replies still leave after Stop
  zmq_setsockopt(socket->zmq, ZMQ_LINGER, &linger_ms, sizeof(linger_ms));

  if (kind == AddressKind::kTcp) {
    if (!options_.keys)
      return FailedPrecondition(address + ": a server on tcp needs CURVE keys; without keys use ipc:// on one machine");
    QUERN_RETURN_IF_ERROR(CheckKey(options_.keys->secret_key, address + ": the server's secret"));
    for (const std::string& key : options_.allowed_clients)
      QUERN_RETURN_IF_ERROR(CheckKey(key, address + ": an allowed client's public"));
    static std::atomic<uint64_t> next{0};
    domain_ = StrCat("quern.", next++);
    AllowCurveClients(domain_, options_.allowed_clients);
    zmq_setsockopt(socket->zmq, ZMQ_ZAP_DOMAIN, domain_.data(), domain_.size());
    zmq_setsockopt(socket->zmq, ZMQ_CURVE_SERVER, &on, sizeof(on));
    if (zmq_setsockopt(socket->zmq, ZMQ_CURVE_SECRETKEY, options_.keys->secret_key.c_str(), 41) != 0)
      return Internal(StrCat(address, ": CURVE: ", zmq_strerror(zmq_errno())));
  }
  if (kind == AddressKind::kIpc) {
    QUERN_RETURN_IF_ERROR(PrepareIpcFolder(address));
    const std::string lock_path = address.substr(6) + ".lock";
    socket->lock = open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (socket->lock < 0) return FromErrno(errno, lock_path);
    if (flock(socket->lock, LOCK_EX | LOCK_NB) != 0)
      return AlreadyExists(address + ": in use by another server: stop it, or take another address");
  }
  if (kind != AddressKind::kInproc) QUERN_RETURN_IF_ERROR(socket->monitor.Watch(socket->zmq, address));
  std::string where = address;
  if (kind == AddressKind::kTcp && where.ends_with(":0")) where.replace(where.size() - 1, 1, "*");
  // A server of this process that was just stopped may still be closing its port.
  const Deadline patience = Deadline::After(std::chrono::milliseconds(300));
  while (zmq_bind(socket->zmq, where.c_str()) != 0) {
    const int error = zmq_errno();
    if (error == EADDRINUSE && !patience.Expired()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      continue;
    }
    if (error == EADDRINUSE)
      return AlreadyExists(address + ": in use by another server: stop it, or take another address");
    return InvalidArgument(StrCat(address, ": cannot listen: ", zmq_strerror(error)));
  }
  char endpoint[512];
  size_t size = sizeof(endpoint);
  QUERN_CHECK(zmq_getsockopt(socket->zmq, ZMQ_LAST_ENDPOINT, endpoint, &size) == 0, zmq_strerror(zmq_errno()));
  address_ = endpoint;
  socket_ = std::move(socket);
  return {};
}

Status RpcServer::Start(const std::string& address) {
  QUERN_CHECK(socket_ == nullptr);
  if (Status status = Bind(address); !status.ok()) {
    if (!domain_.empty()) ForgetCurveDomain(domain_);
    domain_.clear();
    return status;
  }
  thread_ = std::thread([this] {
    if (options_.threads == 1) return Serve();
    Workers workers;
    ServeWithWorkers(workers);
  });
  return {};
}

void RpcServer::Stop() {
  if (socket_ == nullptr) return;
  socket_->stop = true;
  socket_->Wake();
  thread_.join();
  socket_->monitor.Close();
  if (!address_.starts_with("inproc:")) CloseListener(socket_->zmq, address_);
  socket_.reset();
  if (!domain_.empty()) ForgetCurveDomain(domain_);
  domain_.clear();
}

RpcServerCounters RpcServer::counters() const {
  return {.requests = requests_,
          .malformed = malformed_,
          .rejected = rejected_,
          .undeliverable = undeliverable_,
          .connections = connections_,
          .handshakes = handshakes_};
}

void RpcServer::CountConnections() {
  const ConnectionMonitor::Counts counts = socket_->monitor.Take();
  connections_ += counts.accepted;
  handshakes_ += counts.handshakes;
}

void RpcServer::Receive(size_t most, std::vector<Request>* requests) {
  size_t bytes = 0;
  std::vector<Frame> frames;
  while (requests->size() < most && bytes < kGroupBytes && ReceiveFrames(socket_->zmq, ZMQ_DONTWAIT, &frames)) {
    if (frames.size() != 4 || frames[1].view().size() != sizeof(uint64_t)) {
      ++malformed_;
      continue;
    }
    ++requests_;
    Request request;
    request.client = std::move(frames[0]);
    request.id = std::move(frames[1]);
    request.method = frames[2].view();
    request.payload = std::move(frames[3]);
    bytes += request.payload.view().size();
    requests->push_back(std::move(request));
  }
}

void RpcServer::Serve() {
  zmq_pollitem_t items[] = {{socket_->zmq, 0, ZMQ_POLLIN, 0},
                            {nullptr, socket_->wake, ZMQ_POLLIN, 0},
                            {socket_->monitor.events(), 0, ZMQ_POLLIN, 0}};
  std::vector<Request> requests;
  while (!socket_->stop) {
    if (zmq_poll(items, socket_->monitor.events() == nullptr ? 2 : 3, -1) < 0)
      QUERN_CHECK(zmq_errno() == EINTR, zmq_strerror(zmq_errno()));
    if (socket_->stop) return;
    CountConnections();
    requests.clear();
    Receive(kGroupRequests, &requests);
    Dispatch(requests);
  }
}

void RpcServer::ServeWithWorkers(Workers& workers) {
  for (int i = 0; i < options_.threads; ++i) {
    workers.threads.emplace_back([this, &workers] {
      std::unique_lock lock(workers.mutex);
      while (true) {
        workers.ready.wait(lock, [&] { return workers.stop || !workers.waiting.empty(); });
        if (workers.stop) return;
        Request request = std::move(workers.waiting.front());
        workers.waiting.pop_front();
        lock.unlock();
        Result<std::string> result = RunHandler(request);
        lock.lock();
        workers.done.push_back({std::move(request), std::move(result)});
        socket_->Wake();
      }
    });
  }
  const size_t most_waiting = static_cast<size_t>(options_.limits.high_water_mark);
  std::vector<Request> requests;
  std::vector<Workers::Done> done;
  while (!socket_->stop) {
    size_t room;
    {
      std::lock_guard lock(workers.mutex);
      room = most_waiting - std::min(most_waiting, workers.waiting.size());
    }
    std::vector<zmq_pollitem_t> items = {{nullptr, socket_->wake, ZMQ_POLLIN, 0}};
    if (socket_->monitor.events() != nullptr) items.push_back({socket_->monitor.events(), 0, ZMQ_POLLIN, 0});
    if (room > 0) items.push_back({socket_->zmq, 0, ZMQ_POLLIN, 0});
    if (zmq_poll(items.data(), static_cast<int>(items.size()), -1) < 0)
      QUERN_CHECK(zmq_errno() == EINTR, zmq_strerror(zmq_errno()));
    socket_->ClearWake();
    CountConnections();
    requests.clear();
    Receive(room, &requests);
    {
      std::lock_guard lock(workers.mutex);
      for (Request& request : requests) workers.waiting.push_back(std::move(request));
      done.swap(workers.done);
    }
    if (!requests.empty()) workers.ready.notify_all();
    for (Workers::Done& one : done) Reply(one.request, one.result);
    done.clear();
  }
  {
    std::lock_guard lock(workers.mutex);
    workers.stop = true;
  }
  workers.ready.notify_all();
  for (std::thread& thread : workers.threads) thread.join();
  for (Workers::Done& one : workers.done) Reply(one.request, one.result);
}

void RpcServer::Dispatch(std::vector<Request>& requests) {
  std::map<std::string, std::vector<Request*>> groups;
  for (Request& request : requests) {
    if (batch_handlers_.count(request.method) > 0)
      groups[request.method].push_back(&request);
    else
      Reply(request, RunHandler(request));
  }
  for (auto& [method, group] : groups) {
    std::vector<std::string_view> payloads;
    for (Request* request : group) payloads.push_back(request->payload.view());
    std::vector<Result<std::string>> results;
    try {
      results = batch_handlers_.at(method)(payloads);
      QUERN_CHECK(results.size() == group.size());
    } catch (const std::exception& error) {
      results.assign(group.size(), Internal(method + ": " + error.what()));
    }
    for (size_t i = 0; i < group.size(); ++i) Reply(*group[i], results[i]);
  }
}

Result<std::string> RpcServer::RunHandler(Request& request) {
  const std::string& method = request.method;
  try {
    if (const auto found = handlers_.find(method); found != handlers_.end())
      return found->second(request.payload.view());
    if (const auto found = batch_handlers_.find(method); found != batch_handlers_.end()) {
      std::vector<Result<std::string>> results = found->second({request.payload.view()});
      QUERN_CHECK(results.size() == 1);
      return std::move(results[0]);
    }
  } catch (const std::exception& error) {
    return Internal(method + ": " + error.what());
  }
  return Unimplemented(StrCat(address_, " has no method '", method.substr(0, 100), "'"));
}

void RpcServer::Reply(Request& request, const Result<std::string>& result) {
  Status status = result.status();
  if (status.code() == StatusCode::kInvalidArgument) ++rejected_;
  if (result.ok() && static_cast<int64_t>(result->size()) > options_.limits.max_message_bytes)
    status = ResourceExhausted(StrCat(
        request.method, ": an answer of ", HumanBytes(static_cast<double>(result->size())), " is over the limit of ",
        HumanBytes(static_cast<double>(options_.limits.max_message_bytes)), ": ask for less"));
  const char code = static_cast<char>(status.code());
  const std::string_view payload = status.ok() ? std::string_view(*result) : std::string_view();
  // DONTWAIT: a client that does not read its answers must not hold up the others.
  if (!SendFrames(socket_->zmq, ZMQ_DONTWAIT,
                  {request.client.view(), request.id.view(), std::string_view(&code, 1), status.message(), payload}))
    ++undeliverable_;
}

}  // namespace quern
