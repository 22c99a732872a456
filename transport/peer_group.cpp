#include "transport/peer_group.h"

#include <zmq.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/strings.h"
#include "transport/address.h"
#include "transport/connection_monitor.h"
#include "transport/context.h"
#include "transport/frames.h"

namespace quern {

namespace {
constexpr long kPollMs = 100;
constexpr int64_t kMostMessageBytes = int64_t{64} << 20;
}  // namespace

struct PeerGroup::Sockets {
  void* in = nullptr;
  std::vector<void*> out;
  ConnectionMonitor monitor;
  ~Sockets() {
    monitor.Close();
    for (void* socket : out)
      if (socket != nullptr) zmq_close(socket);
    if (in != nullptr) zmq_close(in);
  }
};

PeerGroup::PeerGroup(const PeerGroupOptions& options)
    : options_(options), sockets_(std::make_unique<Sockets>()), waiting_(options.addresses.size()) {}
PeerGroup::~PeerGroup() = default;

Result<std::unique_ptr<PeerGroup>> PeerGroup::Join(const PeerGroupOptions& options) {
  std::unique_ptr<PeerGroup> group(new PeerGroup(options));
  Sockets& sockets = *group->sockets_;
  sockets.out.resize(options.addresses.size());
  const auto open = [](int type) {
    void* socket = zmq_socket(ZmqContext(), type);
    if (socket == nullptr) return socket;
    SetCommonOptions(socket, {.max_message_bytes = kMostMessageBytes, .high_water_mark = 0});
    // A connection within a machine breaks when its process dies, not when it is slow; what was sent would be lost.
    const int never = 0;
    zmq_setsockopt(socket, ZMQ_HEARTBEAT_IVL, &never, sizeof(never));
    return socket;
  };
  for (size_t peer = 0; peer < options.addresses.size(); ++peer) {
    const std::string& address = options.addresses[peer];
    QUERN_ASSIGN_OR_RETURN(const AddressKind kind, ParseAddress(address));
    if (kind == AddressKind::kTcp) return InvalidArgument(address + ": ranks talk on one machine, by ipc");
    if (kind == AddressKind::kIpc) QUERN_RETURN_IF_ERROR(PrepareIpcFolder(address));
    const bool own = static_cast<int>(peer) == options.rank;
    void*& socket = own ? sockets.in : sockets.out[peer];
    socket = open(own ? ZMQ_PULL : ZMQ_PUSH);
    if (socket == nullptr) return Internal(StrCat(address, ": ", zmq_strerror(zmq_errno())));
    if (own && kind == AddressKind::kIpc) QUERN_RETURN_IF_ERROR(sockets.monitor.Watch(socket, address));
    const int failed = own ? zmq_bind(socket, address.c_str()) : zmq_connect(socket, address.c_str());
    if (failed != 0) return Unavailable(StrCat(address, ": ", zmq_strerror(zmq_errno())));
  }
  return group;
}

void PeerGroup::CountStrangers(uint64_t messages) {
  const uint64_t strangers = messages + sockets_->monitor.Take().failed;
  if (strangers > 0 && options_.strangers) options_.strangers(strangers);
}

Status PeerGroup::Send(int to, std::string_view call, std::string_view bytes) {
  const std::string from = std::to_string(options_.rank);
  if (!SendFrames(sockets_->out[static_cast<size_t>(to)], 0, {from, call, bytes}))
    return Unavailable(StrCat(std::string(call), " to rank ", to, ": ", zmq_strerror(zmq_errno())));
  return {};
}

Result<std::string> PeerGroup::Receive(int from, std::string_view call) {
  std::vector<Message>& queue = waiting_[static_cast<size_t>(from)];
  const Deadline deadline = Deadline::After(options_.timeout);
  std::optional<Deadline> stopping;
  while (queue.empty()) {
    const bool stop = options_.stop != nullptr && options_.stop->load();
    if (stop && !stopping) stopping = Deadline::After(options_.patience);
    if (stopping && stopping->Expired()) return Cancelled("stopped");
    if (deadline.Expired())
      return DeadlineExceeded(StrFormat("rank %d of %d: %s: nothing from rank %d for %.0f s", options_.rank, ranks(),
                                        std::string(call).c_str(), from, ToSeconds(options_.timeout)));
    zmq_pollitem_t item{sockets_->in, 0, ZMQ_POLLIN, 0};
    const auto wait = std::min<long>(kPollMs, static_cast<long>(deadline.Left().count()) + 1);
    CountStrangers(0);
    if (zmq_poll(&item, 1, wait) <= 0) continue;  // interrupted, or nothing yet
    std::vector<std::string> frames;
    if (!ReceiveFrames(sockets_->in, ZMQ_DONTWAIT, &frames)) continue;
    int sender = -1;
    if (frames.size() != 3 ||
        std::from_chars(frames[0].data(), frames[0].data() + frames[0].size(), sender).ec != std::errc() ||
        sender < 0 || sender >= ranks() || sender == options_.rank) {
      CountStrangers(1);
      continue;
    }
    waiting_[static_cast<size_t>(sender)].push_back({std::move(frames[1]), std::move(frames[2])});
  }
  Message message = std::move(queue.front());
  queue.erase(queue.begin());
  if (message.call != call)
    return Internal(StrCat("rank ", options_.rank, " is at ", std::string(call), ", rank ", from, " at ", message.call,
                           ": the ranks have gone different ways"));
  return std::move(message.bytes);
}

}  // namespace quern
