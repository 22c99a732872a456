#pragma once

#include <zmq.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "transport/rpc.h"

// What server, client and authenticator share; not for users of the library.
namespace quern {

// One message part, owned. Movable.
class Frame {
 public:
  Frame() { zmq_msg_init(&message_); }
  Frame(Frame&& other) noexcept {
    zmq_msg_init(&message_);
    zmq_msg_move(&message_, &other.message_);
  }
  Frame& operator=(Frame&& other) noexcept {
    zmq_msg_move(&message_, &other.message_);
    return *this;
  }
  ~Frame() { zmq_msg_close(&message_); }
  zmq_msg_t* get() { return &message_; }
  std::string_view view() { return {static_cast<const char*>(zmq_msg_data(&message_)), zmq_msg_size(&message_)}; }

 private:
  zmq_msg_t message_;
};

// A whole message; false with zmq_errno() when there is none or the socket failed.
inline bool ReceiveFrames(void* socket, int flags, std::vector<Frame>* frames) {
  frames->clear();
  do {
    Frame frame;
    if (zmq_msg_recv(frame.get(), socket, flags) < 0) return false;
    frames->push_back(std::move(frame));
  } while (zmq_msg_more(frames->back().get()) != 0);
  return true;
}

inline bool ReceiveFrames(void* socket, int flags, std::vector<std::string>* frames) {
  std::vector<Frame> parts;
  if (!ReceiveFrames(socket, flags, &parts)) return false;
  frames->clear();
  for (Frame& part : parts) frames->emplace_back(part.view());
  return true;
}

// All or nothing: libzmq refuses the first frame or takes them all.
inline bool SendFrames(void* socket, int flags, const std::vector<std::string_view>& frames) {
  for (size_t i = 0; i < frames.size(); ++i) {
    const int more = i + 1 < frames.size() ? ZMQ_SNDMORE : 0;
    if (zmq_send(socket, frames[i].data(), frames[i].size(), flags | more) < 0) return false;
  }
  return true;
}

// Options that every socket gets (docs: zmq_setsockopt): size limit, heartbeats, reconnection, no lingering.
void SetCommonOptions(void* socket, const SocketLimits& limits);
// CURVE options from Z85 keys; an invalid key is an error.
Status CheckKey(const std::string& key, const std::string& whose);

}  // namespace quern
