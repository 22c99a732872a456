#include "transport/connection_monitor.h"

#include <zmq.h>

#include <atomic>
#include <cstring>
#include <vector>

#include "base/strings.h"
#include "transport/context.h"
#include "transport/frames.h"

namespace quern {

namespace {
constexpr int kFailures =
    ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
}  // namespace

Status ConnectionMonitor::Watch(void* socket, const std::string& address) {
  static std::atomic<uint64_t> next{0};
  const std::string endpoint = StrCat("inproc://quern.connections.", next++);
  if (zmq_socket_monitor(socket, endpoint.c_str(), ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED | kFailures) != 0)
    return Internal(StrCat(address, ": ", zmq_strerror(zmq_errno())));
  socket_ = socket;
  events_ = zmq_socket(ZmqContext(), ZMQ_PAIR);
  if (events_ == nullptr || zmq_connect(events_, endpoint.c_str()) != 0)
    return Internal(StrCat(address, ": ", zmq_strerror(zmq_errno())));
  return {};
}

ConnectionMonitor::Counts ConnectionMonitor::Take() {
  Counts counts;
  std::vector<Frame> frames;
  while (events_ != nullptr && ReceiveFrames(events_, ZMQ_DONTWAIT, &frames)) {
    uint16_t event = 0;
    if (frames.empty() || frames[0].view().size() < sizeof(event)) continue;
    std::memcpy(&event, frames[0].view().data(), sizeof(event));
    if (event == ZMQ_EVENT_ACCEPTED) ++counts.accepted;
    if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED) ++counts.handshakes;
    if ((event & kFailures) != 0) ++counts.failed;
  }
  return counts;
}

void ConnectionMonitor::Close() {
  if (socket_ != nullptr) zmq_socket_monitor(socket_, nullptr, 0);
  if (events_ != nullptr) zmq_close(events_);
  socket_ = events_ = nullptr;
}

}  // namespace quern
