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

void AddKeySquares(const KvLayout& layout, const void* page, int64_t slots, double* squares) {
  for (int64_t head = 0; head < layout.kv_heads; ++head) {
    for (int64_t d = 0; d < layout.head_dim; ++d) {
      double sum = 0;
      for (int64_t slot = 0; slot < slots; ++slot) {
        const double key = Read(layout.dtype, page, layout.KeyOffset(0, head) + layout.KeyElement(slot, d));
        sum += key * key;
      }
      squares[head * layout.head_dim + d] += sum;
    }
  }
}

void CopySlots(const KvLayout& layout, const PrunedKeys& from_form, const PrunedKeys& to_form, const SlotRun& run) {
  QUERN_CHECK(run.from_slot + run.count <= kPage && run.to_slot + run.count <= kPage);
  WithBits(layout.dtype, [&](auto* type) {
    using Bits = std::remove_pointer_t<decltype(type)>;
    for (int64_t head = 0; head < layout.kv_heads; ++head) {
      const int64_t from_channels = from_form.Channels(layout, head), channels = to_form.Channels(layout, head);
      const Bits* keys = static_cast<const Bits*>(run.from) + from_form.KeyOffset(layout, head);
      Bits* to_keys = static_cast<Bits*>(run.to) + to_form.KeyOffset(layout, head);
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t d = channels == from_channels ? c : to_form.kept[head * to_form.channels + c];
        for (int64_t i = 0; i < run.count; ++i) {
          const int64_t from = run.from_slot + i, to = run.to_slot + i;
          to_keys[(to / kBlock * channels + c) * kBlock + to % kBlock] =
              keys[(from / kBlock * from_channels + d) * kBlock + from % kBlock];
        }
      }
      std::memcpy(
          static_cast<Bits*>(run.to) + to_form.ValueOffset(layout, head) + run.to_slot * layout.head_dim,
          static_cast<const Bits*>(run.from) + from_form.ValueOffset(layout, head) + run.from_slot * layout.head_dim,
          static_cast<size_t>(run.count * layout.head_dim) * sizeof(Bits));
    }
  });
}

}  // namespace quern
