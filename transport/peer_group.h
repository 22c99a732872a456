#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/status.h"

namespace quern {

struct PeerGroupOptions {
  int rank = 0;
  std::vector<std::string> addresses;  // of every rank, "ipc://PATH" or "inproc://NAME": one machine
  // A call that waits longer for a peer fails.
  Duration timeout = std::chrono::seconds(300);
  // Once it is true, waiting ends after `patience`; may be null.
  const std::atomic<bool>* stop = nullptr;
  Duration patience = std::chrono::seconds(10);
  // Hears how many connections and messages were none of this group's; on the thread that receives.
  std::function<void(uint64_t count)> strangers = nullptr;
};

// Ordered messages between any two of a fixed number of processes. One thread.
class PeerGroup {
 public:
  // Binds this rank's address. Peers may come later: what is sent waits for them.
  static Result<std::unique_ptr<PeerGroup>> Join(const PeerGroupOptions& options);
  ~PeerGroup();

  int rank() const { return options_.rank; }
  int ranks() const { return static_cast<int>(options_.addresses.size()); }
  // `call` says what both are at.
  Status Send(int to, std::string_view call, std::string_view bytes);
  // The next message of `from`, which must be of the same call.
  Result<std::string> Receive(int from, std::string_view call);

 private:
  struct Sockets;
  struct Message {
    std::string call, bytes;
  };
  explicit PeerGroup(const PeerGroupOptions& options);
  void CountStrangers(uint64_t messages);
  PeerGroupOptions options_;
  std::unique_ptr<Sockets> sockets_;
  std::vector<std::vector<Message>> waiting_;  // of each peer, the oldest first
};

}  // namespace quern
