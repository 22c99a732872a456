#include "transport/context.h"

#include <zmq.h>

#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "transport/frames.h"

namespace quern {

namespace {

// Answers libzmq's questions whether a client may connect (ZAP, https://rfc.zeromq.org/spec/27).
class Authenticator {
 public:
  static Authenticator& Get() {
    static auto* instance = new Authenticator();  // lives as long as the context
    return *instance;
  }

  void Allow(const std::string& domain, const std::vector<std::string>& keys) {
    std::lock_guard lock(mutex_);
    allowed_[domain] = {keys.begin(), keys.end()};
  }
  void Forget(const std::string& domain) {
    std::lock_guard lock(mutex_);
    allowed_.erase(domain);
  }

 private:
  Authenticator() {
    void* socket = zmq_socket(ZmqContext(), ZMQ_REP);
    QUERN_CHECK(socket != nullptr && zmq_bind(socket, "inproc://zeromq.zap.01") == 0, zmq_strerror(zmq_errno()));
    std::thread([this, socket] { Serve(socket); }).detach();
  }

  bool Allowed(const std::string& domain, const std::string& mechanism, const std::string& binary_key) {
    if (mechanism != "CURVE" || binary_key.size() != 32) return false;
    char key[41];
    zmq_z85_encode(key, reinterpret_cast<const uint8_t*>(binary_key.data()), binary_key.size());
    std::lock_guard lock(mutex_);
    const auto found = allowed_.find(domain);
    return found != allowed_.end() && found->second.count(key) > 0;
  }

  void Serve(void* socket) {
    while (true) {
      std::vector<std::string> frames;
      if (!ReceiveFrames(socket, 0, &frames)) {
        if (zmq_errno() == EINTR) continue;
        return;  // the context is gone
      }
      // version, request id, domain, address, identity, mechanism, credentials...
      const bool well_formed = frames.size() >= 6 && frames[0] == "1.0";
      const bool allowed = well_formed && frames.size() == 7 && Allowed(frames[2], frames[5], frames[6]);
      if (!allowed && well_formed) LogWarning("refused a client from " + frames[3] + ": its key is not on the list");
      SendFrames(
          socket, 0,
          {"1.0", well_formed ? frames[1] : "", allowed ? "200" : "400", allowed ? "OK" : "unknown key", "", ""});
    }
  }

  std::mutex mutex_;
  std::map<std::string, std::set<std::string>> allowed_;
};

}  // namespace

void* ZmqContext() {
  static void* context = [] {
    void* made = zmq_ctx_new();
    QUERN_CHECK(made != nullptr, zmq_strerror(zmq_errno()));
    zmq_ctx_set(made, ZMQ_MAX_SOCKETS, 4096);
    return made;
  }();
  return context;
}

void AllowCurveClients(const std::string& domain, const std::vector<std::string>& public_keys) {
  Authenticator::Get().Allow(domain, public_keys);
}

void ForgetCurveDomain(const std::string& domain) { Authenticator::Get().Forget(domain); }

}  // namespace quern
