#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "compute/tensor.h"

namespace quern {

// What the ranks of a data-parallel learner say to each other. Every rank calls the same methods in the same order;
// calls return when the rank's part is done. Errors (a peer that is silent beyond the deadline, that is at another
// call, or has other sizes) name the call and the peer, and leave the group unusable. One thread.
//
// Sums have one order whatever the number of ranks and their timing: a binary tree over the ranks, ((0+1)+(2+3)),
// where that of [lo, hi) is split at lo + the largest power of two below hi - lo. Tensors are one row, fp32 or fp64
// where they are summed. `bounds` has ranks + 1 ascending elements: rank r's slice is [bounds[r], bounds[r + 1]).
class Communicator {
 public:
  enum class Reduction { kSum, kMax };
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int ranks() const = 0;

  virtual Status AllReduce(const TensorView& x, Reduction reduction) = 0;
  // x's own slice becomes the sum of all ranks'; what is in the others is undefined.
  virtual Status ReduceScatter(const TensorView& x, std::span<const int64_t> bounds) = 0;
  // The same, under way perhaps when it returns: in the background of what is computed until Finish(). One may begin
  // behind another; x is not touched meanwhile. Equal bits, where the sum has one order.
  virtual Status BeginReduceScatter(const TensorView& x, std::span<const int64_t> bounds) {
    return ReduceScatter(x, bounds);
  }
  virtual Status Finish() { return {}; }
  // Every rank gets all slices. Any dtype.
  virtual Status AllGather(const TensorView& x, std::span<const int64_t> bounds) = 0;
  // `root`'s x becomes that of all. Any dtype.
  virtual Status Broadcast(const TensorView& x, int root) = 0;
  virtual Status Barrier() = 0;
};

// Of processes' own memory, with what needs no tensors.
class HostCommunicator : public Communicator {
 public:
  // The slices come together at `root` alone; `whole` is looked at there only. Any dtype.
  virtual Status Gather(const TensorView& slice, const TensorView& whole, std::span<const int64_t> bounds,
                        int root) = 0;
  virtual Result<std::vector<std::string>> AllGatherTexts(const std::string& text) = 0;
  virtual Status BroadcastText(std::string& text, int root) = 0;
};

// The split of a sum over [lo, hi), hi - lo > 1, into two.
inline int64_t TreeSplit(int64_t lo, int64_t hi) {
  int64_t half = 1;
  while (2 * half < hi - lo) half *= 2;
  return lo + half;
}

}  // namespace quern
