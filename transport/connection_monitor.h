#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace quern {

// What becomes of the connections to a socket that was bound (ipc and tcp). One thread.
class ConnectionMonitor {
 public:
  struct Counts {
    uint64_t accepted = 0;
    uint64_t handshakes = 0;  // of those, the ones that spoke ZMTP and, on tcp, had a key on the list
    uint64_t failed = 0;      // the others, once it is known
  };
  ConnectionMonitor() = default;
  ConnectionMonitor(const ConnectionMonitor&) = delete;
  ConnectionMonitor& operator=(const ConnectionMonitor&) = delete;
  ~ConnectionMonitor() { Close(); }

  // Before the socket is bound; the socket must outlive Close. `address` is for the error.
  Status Watch(void* socket, const std::string& address);
  // Since the last call.
  Counts Take();
  void Close();
  // To be polled for input; null before Watch.
  void* events() const { return events_; }

 private:
  void* socket_ = nullptr;
  void* events_ = nullptr;
};

}  // namespace quern
