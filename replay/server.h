#pragma once

#include <memory>
#include <string>

#include "replay/store.h"
#include "transport/metrics.h"
#include "transport/rpc.h"

namespace quern {

// Serves a store: replay.OpenWriter, replay.Insert (waiting inserts of all clients share one sync), replay.Contains,
// replay.Sample, replay.Query, replay.Stats.
class ReplayServer {
 public:
  // Store and metrics (of role "replay-server"; may be null) must outlive the server.
  ReplayServer(Store* store, RpcServerOptions options = {}, Metrics* metrics = nullptr);
  ~ReplayServer();
  // Also writes the address to DIRECTORY/server.address, for commands that are given the directory.
  Status Start(const std::string& address);
  void Stop();
  const std::string& address() const { return server_.address(); }
  RpcServerCounters counters() const { return server_.counters(); }

 private:
  Store* store_;
  MetricsOrOwn metrics_;
  RpcServer server_;
  bool announced_ = false;
};

}  // namespace quern
