#pragma once

#include <functional>
#include <string>

#include "base/deadline.h"
#include "base/status.h"
#include "proto/coordinator.pb.h"

namespace quern {

struct WeightFetchOptions {
  std::string host;  // of the weight server
  // Asks for a ticket, anew after every lost connection: the server may be another one by then.
  std::function<Result<v1::OpenWeightsReply>()> ticket;
  std::string directory;  // where the version is to be; its parent exists or is made
  // Whether a directory holds what was published: called before it gets its name, and for one that is there already.
  std::function<Status(const std::string& directory)> verify;
  std::function<Status()> alive;                 // called about once a second; an error ends the fetch. May be null
  Duration patience = std::chrono::seconds(60);  // without a byte
  Duration back_off = std::chrono::milliseconds(20);  // after a lost connection; doubled up to a second
};

struct WeightFetchCounters {
  uint64_t received_bytes = 0;
  int connections = 0;
};

// Makes options.directory hold the version: from the server, unless it is there. What arrives is deciphered into
// DIRECTORY.part and gets its name when it is whole and verified, so nobody ever sees half of it. A lost connection,
// a server that was killed and a reader that was killed cost one chunk: what is there is not sent again. Several
// processes that want the same directory fetch it once. `counters` may be null.
Status FetchWeights(const WeightFetchOptions& options, WeightFetchCounters* counters = nullptr);

}  // namespace quern
