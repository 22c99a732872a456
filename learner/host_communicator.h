#pragma once

#include <memory>

#include "learner/communicator.h"
#include "transport/peer_group.h"

namespace quern {

// Over ZeroMQ, between processes of one machine. Every two ranks exchange directly: of n bytes a rank sends and gets
// (ranks - 1) / ranks n for a sum or a gathering. Needs a few MiB of buffers.
class PeerCommunicator : public HostCommunicator {
 public:
  explicit PeerCommunicator(std::unique_ptr<PeerGroup> group) : group_(std::move(group)) {}
  int rank() const override { return group_->rank(); }
  int ranks() const override { return group_->ranks(); }
  Status AllReduce(const TensorView& x, Reduction reduction) override;
  Status ReduceScatter(const TensorView& x, std::span<const int64_t> bounds) override;
  Status AllGather(const TensorView& x, std::span<const int64_t> bounds) override;
  Status Broadcast(const TensorView& x, int root) override;
  Status Barrier() override;
  Status Gather(const TensorView& slice, const TensorView& whole, std::span<const int64_t> bounds, int root) override;
  Result<std::vector<std::string>> AllGatherTexts(const std::string& text) override;
  Status BroadcastText(std::string& text, int root) override;

 private:
  std::string Call(const char* name) { return StrCatCall(name, calls_++); }
  static std::string StrCatCall(const char* name, uint64_t number);
  Status Reduce(const std::string& call, const TensorView& x, std::span<const int64_t> bounds, Reduction reduction);
  Status Spread(const std::string& call, const TensorView& x, std::span<const int64_t> bounds);
  Status ReceiveInto(int from, const std::string& call, uint8_t* to, int64_t bytes);

  std::unique_ptr<PeerGroup> group_;
  uint64_t calls_ = 0;
};

}  // namespace quern
