#include "learner/host_communicator.h"

#include <algorithm>
#include <cstring>

#include "base/strings.h"

namespace quern {

namespace {

constexpr int64_t kChunkBytes = int64_t{1} << 20;  // of a message: what is on its way stays small

template <typename T>
void Combine(const T* from, T* to, int64_t count, Communicator::Reduction reduction) {
  if (reduction == Communicator::Reduction::kMax) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i] > to[i] || from[i] != from[i] ? from[i] : to[i];
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] += from[i];
  }
}

// Sums parts [lo, hi) into the first of them, in the order of the tree.
template <typename T>
void CombineTree(const std::vector<T*>& parts, int64_t lo, int64_t hi, int64_t count,
                 Communicator::Reduction reduction) {
  if (hi - lo < 2) return;
  const int64_t split = TreeSplit(lo, hi);
  CombineTree(parts, lo, split, count, reduction);
  CombineTree(parts, split, hi, count, reduction);
  Combine(parts[static_cast<size_t>(split)], parts[static_cast<size_t>(lo)], count, reduction);
}

std::string_view Bytes(const TensorView& x, int64_t begin, int64_t count) {
  const int64_t size = DTypeSize(x.dtype);
  return {reinterpret_cast<const char*>(x.Row<uint8_t>(0) + begin * size), static_cast<size_t>(count * size)};
}

int64_t LongestSlice(std::span<const int64_t> bounds) {
  int64_t most = 0;
  for (size_t r = 0; r + 1 < bounds.size(); ++r) most = std::max(most, bounds[r + 1] - bounds[r]);
  return most;
}

// The elements of slice r's piece that begins `offset` elements into it.
struct Piece {
  int64_t begin = 0, count = 0;
};
Piece PieceOf(std::span<const int64_t> bounds, int r, int64_t offset, int64_t most) {
  const auto i = static_cast<size_t>(r);
  const int64_t begin = std::min(bounds[i] + offset, bounds[i + 1]);
  return {begin, std::min(most, bounds[i + 1] - begin)};
}

}  // namespace

std::string PeerCommunicator::StrCatCall(const char* name, uint64_t number) {
  return StrCat(name, " (call ", number, ")");
}

Status PeerCommunicator::ReceiveInto(int from, const std::string& call, uint8_t* to, int64_t bytes) {
  QUERN_ASSIGN_OR_RETURN(const std::string got, group_->Receive(from, call));
  if (static_cast<int64_t>(got.size()) != bytes)
    return Internal(
        StrCat("rank ", rank(), ": ", call, ": ", got.size(), " bytes from rank ", from, ", expected ", bytes));
  std::memcpy(to, got.data(), got.size());
  return {};
}

Status PeerCommunicator::Reduce(const std::string& call, const TensorView& x, std::span<const int64_t> bounds,
                                Reduction reduction) {
  QUERN_CHECK(x.dtype == DType::kF32 || x.dtype == DType::kF64, DTypeName(x.dtype));
  QUERN_CHECK(x.rows == 1 && static_cast<int>(bounds.size()) == ranks() + 1 && bounds.back() <= x.cols);
  const int64_t most = kChunkBytes / DTypeSize(x.dtype);
  std::vector<std::vector<uint8_t>> received(static_cast<size_t>(ranks()));
  for (int64_t offset = 0; offset < LongestSlice(bounds); offset += most) {
    for (int peer = 0; peer < ranks(); ++peer) {
      const Piece piece = PieceOf(bounds, peer, offset, most);
      if (peer != rank() && piece.count > 0)
        QUERN_RETURN_IF_ERROR(group_->Send(peer, call, Bytes(x, piece.begin, piece.count)));
    }
    const Piece own = PieceOf(bounds, rank(), offset, most);
    if (own.count == 0) continue;
    const int64_t bytes = own.count * DTypeSize(x.dtype);
    uint8_t* const mine = x.Row<uint8_t>(0) + own.begin * DTypeSize(x.dtype);
    std::vector<uint8_t*> parts;
    for (int peer = 0; peer < ranks(); ++peer) {
      std::vector<uint8_t>& buffer = received[static_cast<size_t>(peer)];
      buffer.resize(static_cast<size_t>(bytes));
      parts.push_back(buffer.data());
      if (peer == rank()) {
        std::memcpy(buffer.data(), mine, static_cast<size_t>(bytes));
      } else {
        QUERN_RETURN_IF_ERROR(ReceiveInto(peer, call, buffer.data(), bytes));
      }
    }
    const auto combine = [&]<typename T>(T*) {
      std::vector<T*> typed;
      for (uint8_t* part : parts) typed.push_back(reinterpret_cast<T*>(part));
      CombineTree(typed, 0, ranks(), own.count, reduction);
    };
    x.dtype == DType::kF32 ? combine(static_cast<float*>(nullptr)) : combine(static_cast<double*>(nullptr));
    std::memcpy(mine, parts[0], static_cast<size_t>(bytes));
  }
  return {};
}

Status PeerCommunicator::Spread(const std::string& call, const TensorView& x, std::span<const int64_t> bounds) {
  QUERN_CHECK(x.rows == 1 && static_cast<int>(bounds.size()) == ranks() + 1 && bounds.back() <= x.cols);
  const int64_t size = DTypeSize(x.dtype), most = kChunkBytes / size;
  for (int64_t offset = 0; offset < LongestSlice(bounds); offset += most) {
    const Piece own = PieceOf(bounds, rank(), offset, most);
    for (int peer = 0; peer < ranks(); ++peer)
      if (peer != rank() && own.count > 0)
        QUERN_RETURN_IF_ERROR(group_->Send(peer, call, Bytes(x, own.begin, own.count)));
    for (int peer = 0; peer < ranks(); ++peer) {
      const Piece piece = PieceOf(bounds, peer, offset, most);
      if (peer != rank() && piece.count > 0)
        QUERN_RETURN_IF_ERROR(ReceiveInto(peer, call, x.Row<uint8_t>(0) + piece.begin * size, piece.count * size));
    }
  }
  return {};
}

Status PeerCommunicator::ReduceScatter(const TensorView& x, std::span<const int64_t> bounds) {
  return Reduce(Call("reduce_scatter"), x, bounds, Reduction::kSum);
}

Status PeerCommunicator::AllReduce(const TensorView& x, Reduction reduction) {
  const std::string call = Call("all_reduce");
  std::vector<int64_t> bounds;
  for (int r = 0; r <= ranks(); ++r) bounds.push_back(x.cols * r / ranks());
  QUERN_RETURN_IF_ERROR(Reduce(call, x, bounds, reduction));
  return Spread(call, x, bounds);
}

Status PeerCommunicator::AllGather(const TensorView& x, std::span<const int64_t> bounds) {
  return Spread(Call("all_gather"), x, bounds);
}

Status PeerCommunicator::Broadcast(const TensorView& x, int root) {
  const std::string call = Call("broadcast");
  const int64_t size = DTypeSize(x.dtype), most = kChunkBytes / size;
  for (int64_t begin = 0; begin < x.cols; begin += most) {
    const int64_t count = std::min(most, x.cols - begin);
    if (rank() != root) {
      QUERN_RETURN_IF_ERROR(ReceiveInto(root, call, x.Row<uint8_t>(0) + begin * size, count * size));
      continue;
    }
    for (int peer = 0; peer < ranks(); ++peer)
      if (peer != rank()) QUERN_RETURN_IF_ERROR(group_->Send(peer, call, Bytes(x, begin, count)));
  }
  return {};
}

Status PeerCommunicator::Barrier() {
  const std::string call = Call("barrier");
  for (int peer = 0; peer < ranks(); ++peer)
    if (peer != rank()) QUERN_RETURN_IF_ERROR(group_->Send(peer, call, {}));
  for (int peer = 0; peer < ranks(); ++peer)
    if (peer != rank()) QUERN_RETURN_IF_ERROR(group_->Receive(peer, call).status());
  return {};
}

Status PeerCommunicator::Gather(const TensorView& slice, const TensorView& whole, std::span<const int64_t> bounds,
                                int root) {
  const std::string call = Call("gather");
  const int64_t size = DTypeSize(slice.dtype), most = kChunkBytes / size;
  if (rank() != root) {
    for (int64_t begin = 0; begin < slice.cols; begin += most)
      QUERN_RETURN_IF_ERROR(group_->Send(root, call, Bytes(slice, begin, std::min(most, slice.cols - begin))));
    return {};
  }
  for (int peer = 0; peer < ranks(); ++peer) {
    const auto i = static_cast<size_t>(peer);
    uint8_t* const to = whole.Row<uint8_t>(0) + bounds[i] * size;
    const int64_t count = bounds[i + 1] - bounds[i];
    if (peer == rank()) {
      std::memcpy(to, slice.Row<uint8_t>(0), static_cast<size_t>(count * size));
      continue;
    }
    for (int64_t begin = 0; begin < count; begin += most)
      QUERN_RETURN_IF_ERROR(ReceiveInto(peer, call, to + begin * size, std::min(most, count - begin) * size));
  }
  return {};
}

Result<std::vector<std::string>> PeerCommunicator::AllGatherTexts(const std::string& text) {
  const std::string call = Call("all_gather_texts");
  for (int peer = 0; peer < ranks(); ++peer)
    if (peer != rank()) QUERN_RETURN_IF_ERROR(group_->Send(peer, call, text));
  std::vector<std::string> texts(static_cast<size_t>(ranks()));
  for (int peer = 0; peer < ranks(); ++peer) {
    std::string& out = texts[static_cast<size_t>(peer)];
    if (peer == rank()) {
      out = text;
    } else {
      QUERN_ASSIGN_OR_RETURN(out, group_->Receive(peer, call));
    }
  }
  return texts;
}

Status PeerCommunicator::BroadcastText(std::string& text, int root) {
  const std::string call = Call("broadcast_text");
  if (rank() != root) {
    QUERN_ASSIGN_OR_RETURN(text, group_->Receive(root, call));
    return {};
  }
  for (int peer = 0; peer < ranks(); ++peer)
    if (peer != rank()) QUERN_RETURN_IF_ERROR(group_->Send(peer, call, text));
  return {};
}

}  // namespace quern
