#include "compute/key_pruning.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "compute/dtype.h"

namespace quern {

namespace {

constexpr int64_t kPage = KvLayout::kPageTokens, kBlock = KvLayout::kBlockTokens;

// Calls f with a pointer of an unsigned type as wide as the elements: copying needs no more of them.
template <typename F>
void WithBits(DType dtype, F f) {
  switch (DTypeSize(dtype)) {
    case 2: return f(static_cast<uint16_t*>(nullptr));
    case 4: return f(static_cast<uint32_t*>(nullptr));
    case 8: return f(static_cast<uint64_t*>(nullptr));
    default: QUERN_CHECK(false, "keys of this type cannot be copied");
  }
}

double Read(DType dtype, const void* data, int64_t i) {
  switch (dtype) {
    case DType::kF32: return static_cast<double>(static_cast<const float*>(data)[i]);
    case DType::kBf16: return static_cast<double>(static_cast<float>(static_cast<const Bf16*>(data)[i]));
    case DType::kF64: return static_cast<const double*>(data)[i];
    default: QUERN_CHECK(false, "keys of this type cannot be read");
  }
  return 0;
}

}  // namespace

std::vector<int32_t> ChooseChannels(std::span<const double> query_squares, std::span<const double> key_squares,
                                    int64_t heads, int64_t dim, int64_t channels) {
  QUERN_CHECK(channels > 0 && channels <= dim);
  std::vector<int32_t> kept;
  std::vector<int32_t> order(static_cast<size_t>(dim));
  for (int64_t head = 0; head < heads; ++head) {
    const auto score = [&](int32_t d) {
      const auto i = static_cast<size_t>(head * dim + d);
      return query_squares[i] * key_squares[i];
    };
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return score(a) > score(b); });
    std::sort(order.begin(), order.begin() + channels);
    kept.insert(kept.end(), order.begin(), order.begin() + channels);
  }
  return kept;
}

void AddKeySquares(const KvLayout& layout, const void* page, int64_t slots, std::span<double> squares) {
  for (int64_t head = 0; head < layout.kv_heads; ++head) {
    for (int64_t d = 0; d < layout.head_dim; ++d) {
      double sum = 0;
      for (int64_t slot = 0; slot < slots; ++slot) {
        const double key = Read(layout.dtype, page, layout.KeyOffset(0, head) + layout.KeyElement(slot, d));
        sum += key * key;
      }
      squares[static_cast<size_t>(head * layout.head_dim + d)] += sum;
    }
  }
}

void PrunePage(const KvLayout& layout, const PrunedKeys& pruned, const void* page, void* pruned_page) {
  WithBits(layout.dtype, [&](auto* type) {
    using Bits = std::remove_pointer_t<decltype(type)>;
    const auto* from = static_cast<const Bits*>(page);
    auto* to = static_cast<Bits*>(pruned_page);
    for (int64_t head = 0; head < layout.kv_heads; ++head) {
      const int64_t channels = pruned.Channels(layout, head);
      const Bits* keys = from + layout.KeyOffset(0, head);
      Bits* kept_keys = to + pruned.KeyOffset(layout, head);
      for (int64_t block = 0; block < kPage / kBlock; ++block) {
        for (int64_t i = 0; i < channels; ++i) {
          const int64_t d = channels == layout.head_dim ? i : pruned.kept[head * pruned.channels + i];
          std::memcpy(kept_keys + (block * channels + i) * kBlock, keys + (block * layout.head_dim + d) * kBlock,
                      kBlock * sizeof(Bits));
        }
      }
      std::memcpy(to + pruned.ValueOffset(layout, head), from + layout.ValueOffset(0, head),
                  static_cast<size_t>(kPage * layout.head_dim) * sizeof(Bits));
    }
  });
}

void CopySlot(const KvLayout& layout, const PrunedKeys* pruned, const void* from, int64_t from_slot, void* to,
              int64_t to_slot) {
  WithBits(layout.dtype, [&](auto* type) {
    using Bits = std::remove_pointer_t<decltype(type)>;
    for (int64_t head = 0; head < layout.kv_heads; ++head) {
      const int64_t channels = pruned != nullptr ? pruned->Channels(layout, head) : layout.head_dim;
      const int64_t keys = pruned != nullptr ? pruned->KeyOffset(layout, head) : layout.KeyOffset(0, head);
      const int64_t values = pruned != nullptr ? pruned->ValueOffset(layout, head) : layout.ValueOffset(0, head);
      const Bits* source = static_cast<const Bits*>(from);
      Bits* target = static_cast<Bits*>(to);
      for (int64_t d = 0; d < channels; ++d)
        target[keys + (to_slot / kBlock * channels + d) * kBlock + to_slot % kBlock] =
            source[keys + (from_slot / kBlock * channels + d) * kBlock + from_slot % kBlock];
      std::memcpy(target + values + to_slot * layout.head_dim, source + values + from_slot * layout.head_dim,
                  static_cast<size_t>(layout.head_dim) * sizeof(Bits));
    }
  });
}

}  // namespace quern
