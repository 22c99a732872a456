#pragma once

#include <cstdint>
#include <memory>

#include "compute/dtype.h"

namespace quern::bench {

// The same product in another library: c[m, n] = a[m, k] * b, weights packed beforehand, c in a's dtype.
class GemmPeer {
 public:
  virtual ~GemmPeer() = default;
  // Multiplies by weight number `i` (of those asked for).
  virtual void Run(int64_t i) = 0;
};

// Null when the benchmark was built without a peer.
std::unique_ptr<GemmPeer> NewGemmPeer(DType dtype, int64_t m, int64_t k, int64_t n, int64_t weights);
const char* GemmPeerName();
void SetGemmPeerThreads(int threads);

}  // namespace quern::bench
