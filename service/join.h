#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "proto/coordinator.pb.h"
#include "service/run_directory.h"
#include "transport/rpc.h"

namespace quern {

// RUN/keys/join.token, mode 600: all that an actor on another host needs to take part in a run on tcp: the
// coordinator's address, the public keys of coordinator and store, and the actors' secret key. Text of letters and
// digits.
Status WriteJoinToken(const Run& run);

// Takes part in the run of a token (or of the file that holds it) as actor `index`, without any of the run's disk:
// keeps keys, the model and weight versions in `directory`/RUN. Several actors of one host may share a directory, and
// then fetch each version once.
Result<Run> JoinRun(const std::string& token, const std::string& directory, uint32_t index,
                    const std::atomic<bool>& stop);

// Where a joined actor has a version: fetched from the coordinator's host unless it is there, its hash verified.
Result<std::string> FetchVersion(const Run& run, RpcClient& coordinator, const v1::WeightVersion& version,
                                 const std::function<Status()>& alive);

}  // namespace quern
