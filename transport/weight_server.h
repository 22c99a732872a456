#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "proto/coordinator.pb.h"

namespace quern {

struct WeightServerOptions {
  std::string host = "127.0.0.1";          // where to listen
  int port = 0;                            // 0: a free one
  int64_t cache_bytes = int64_t{1} << 28;  // of enciphered chunks: readers that are this far apart share them
  int max_connections = 256;
  int request_timeout_s = 5;  // for a stranger to say what it wants
  int idle_timeout_s = 60;    // for a reader to take something
};

struct WeightServerCounters {
  uint64_t connections = 0;
  uint64_t refused = 0;  // those that sent something else than a ticket, or nothing in time
  uint64_t sent_bytes = 0;
  uint64_t sealed_bytes = 0;  // enciphered; sent to any number of readers
};

// Hands weight versions to actors that have no disk in common with the learner. Each is one stream of chunks,
// enciphered once with a key of its own however many read it. A ticket (key, secret, port, names and sizes of the
// files) must go to readers over an authenticated and encrypted channel; what a reader sends on the data port is the
// magic, the ticket's secret and the first chunk it wants, 32 bytes, and what comes back are chunks with their tags.
// Strangers learn nothing: without the key the stream is noise. One thread.
class WeightServer {
 public:
  static Result<std::unique_ptr<WeightServer>> Start(const WeightServerOptions& options);
  virtual ~WeightServer() = default;  // closes every connection

  // Makes `files` of `directory` (or, where that is empty, what makes a model: configuration, weights, tokenizer,
  // chat template) available. The files must never change. `id` names the version: for the same one again the same
  // ticket comes, without a look at the files. The last few are kept.
  virtual Result<v1::OpenWeightsReply> Offer(const std::string& id, const std::string& directory,
                                             std::vector<std::string> files = {}) = 0;
  virtual int port() const = 0;
  virtual WeightServerCounters counters() const = 0;
};

// Of the data port; not for users of the library.
inline constexpr char kWeightMagic[] = "QUERNW1\n";
inline constexpr size_t kWeightSecretBytes = 16;
inline constexpr size_t kWeightRequestBytes = 8 + kWeightSecretBytes + 8;

}  // namespace quern
