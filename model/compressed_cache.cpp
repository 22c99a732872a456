#include "model/compressed_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "compute/key_pruning.h"

namespace quern {

namespace {

constexpr int64_t kPage = KvLayout::kPageTokens;
constexpr float kEvicted = std::numeric_limits<float>::infinity();

double Squared(const TensorView& view, int64_t row, int64_t col) {
  const double value = view.dtype == DType::kBf16 ? static_cast<double>(static_cast<float>(view.Row<Bf16>(row)[col]))
                                                  : static_cast<double>(view.Row<float>(row)[col]);
  return value * value;
}

}  // namespace

CompressedCache::CompressedCache(const KvLayout& layout, const Compression& compression, int64_t prompt)
    : layout_(layout), compression_(compression), prompt_(prompt), layers_(static_cast<size_t>(layout.layers)) {
  QUERN_CHECK(layout.dtype == DType::kF32 || layout.dtype == DType::kBf16);
  QUERN_CHECK(compression.budgets.empty() ||
              (layout.selective && static_cast<int64_t>(compression.budgets.size()) == layout.layers));
  QUERN_CHECK(compression.key_channels >= 0 && compression.key_channels <= layout.head_dim);
  layout_.layers = 1;
  for (Layer& layer : layers_) {
    layer.query_squares.resize(static_cast<size_t>(layout.kv_heads * layout.head_dim));
    layer.pruned.channels = compression.key_channels;
    // Scores of the selecting head stay exact.
    layer.pruned.full_heads = layout.selective ? 1 : 0;
  }
}

std::unique_ptr<CompressedCache> CompressedCache::Copy() const {
  KvLayout layout = layout_;
  layout.layers = static_cast<int64_t>(layers_.size());
  auto copy = std::make_unique<CompressedCache>(layout, compression_, prompt_);
  copy->tokens_ = tokens_;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& from = layers_[l];
    Layer& to = copy->layers_[l];
    for (const Tensor& page : from.pages) {
      to.pages.emplace_back(page.dtype(), page.rows(), page.cols());
      std::memcpy(to.pages.back().view().data, page.view().data, static_cast<size_t>(page.bytes()));
      to.table.push_back(to.pages.back().view().data);
    }
    to.selection = from.selection;
    to.slots = from.slots;
    to.query_squares = from.query_squares;
    to.kept = from.kept;
    to.pruned = from.pruned;
    to.pruned.kept = to.kept.data();
  }
  return copy;
}

void CompressedCache::AddPage(Layer& layer, const PrunedKeys* pruned) {
  const int64_t elements = pruned != nullptr ? pruned->page_elements(layout_) : layout_.page_elements();
  layer.pages.emplace_back(layout_.dtype, 1, elements);
  layer.table.push_back(layer.pages.back().view().data);
}

void CompressedCache::Reserve(int64_t count) {
  for (Layer& layer : layers_) {
    while (static_cast<int64_t>(layer.pages.size()) * kPage < layer.slots + count) AddPage(layer, nullptr);
    if (layout_.selective) layer.selection.resize(layer.pages.size() * kPage);
  }
}

SequenceRows CompressedCache::Rows(int64_t index, int64_t row, int64_t count) {
  Layer& layer = layers_[static_cast<size_t>(index)];
  return {.row = row,
          .count = count,
          .context = layer.slots,
          .pages = layer.table.data(),
          .selection = layout_.selective ? layer.selection.data() : nullptr,
          .pruned = layer.pruned.pages > 0 ? &layer.pruned : nullptr};
}

void CompressedCache::Observe(int64_t index, const TensorView& q, int64_t row, int64_t count) {
  if (compression_.key_channels == 0 || tokens_ >= prompt_) return;
  std::vector<double>& squares = layers_[static_cast<size_t>(index)].query_squares;
  const int64_t dim = layout_.head_dim, group = q.cols / dim / layout_.kv_heads;
  for (int64_t r = std::max<int64_t>(0, prompt_ - compression_.query_window - tokens_); r < count; ++r)
    for (int64_t c = 0; c < q.cols; ++c)
      squares[static_cast<size_t>(c / dim / group * dim + c % dim)] += Squared(q, row + r, c);
}

void CompressedCache::Advance(int64_t count) {
  QUERN_CHECK(tokens_ >= prompt_ || tokens_ + count <= prompt_, "a step over the end of the prompt");
  const bool prompt_ends = tokens_ < prompt_ && tokens_ + count == prompt_;
  tokens_ += count;
  for (Layer& layer : layers_) {
    layer.slots += count;
    const bool choose = prompt_ends && compression_.key_channels > 0;
    if (!compression_.budgets.empty() && tokens_ >= prompt_) Compact(layer, choose);
    if (choose) {
      std::vector<double> squares(layer.query_squares.size());
      for (int64_t begin = 0; begin < layer.slots; begin += kPage)
        AddKeySquares(layout_, layer.table[static_cast<size_t>(begin / kPage)], std::min(kPage, layer.slots - begin),
                      squares);
      layer.kept =
          ChooseChannels(layer.query_squares, squares, layout_.kv_heads, layout_.head_dim, compression_.key_channels);
      layer.pruned.kept = layer.kept.data();
    }
    if (!layer.kept.empty()) Prune(layer);
  }
}

// Whole pages that lie before the recent keys.
void CompressedCache::Prune(Layer& layer) {
  while (layer.slots - (layer.pruned.pages + 1) * kPage >= compression_.recent) {
    const auto page = static_cast<size_t>(layer.pruned.pages);
    Tensor smaller(layout_.dtype, 1, layer.pruned.page_elements(layout_));
    PrunePage(layout_, layer.pruned, layer.table[page], smaller.view().data);
    layer.pages[page] = std::move(smaller);
    layer.table[page] = layer.pages[page].view().data;
    ++layer.pruned.pages;
  }
}

// Moves what is not evicted together once that frees a page (or `anything`): pruned positions stay pruned, and where
// they do not fill their last page the rest of it counts as evicted.
void CompressedCache::Compact(Layer& layer, bool anything) {
  const int64_t pruned_end = layer.pruned.pages * kPage;
  const auto evicted = [&](int64_t begin, int64_t end) {
    return std::count(layer.selection.begin() + begin, layer.selection.begin() + end, kEvicted);
  };
  const int64_t least = anything ? 1 : kPage;
  if (evicted(0, pruned_end) < least && evicted(pruned_end, layer.slots) < least) return;
  Layer to;
  to.query_squares = std::move(layer.query_squares);
  to.kept = std::move(layer.kept);
  to.pruned = layer.pruned;
  to.pruned.kept = to.kept.data();
  const auto move = [&](int64_t begin, int64_t end, const PrunedKeys* pruned) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const float masked = layer.selection[static_cast<size_t>(slot)];
      if (masked == kEvicted) continue;
      if (to.slots % kPage == 0) AddPage(to, pruned);
      CopySlot(layout_, pruned, layer.table[static_cast<size_t>(slot / kPage)], slot % kPage, to.table.back(),
               to.slots % kPage);
      to.selection.push_back(masked);
      ++to.slots;
    }
  };
  move(0, pruned_end, &to.pruned);
  while (to.slots % kPage != 0) {
    to.selection.push_back(kEvicted);
    ++to.slots;
  }
  to.pruned.pages = to.slots / kPage;
  move(pruned_end, layer.slots, nullptr);
  layer = std::move(to);
  layer.pruned.kept = layer.kept.data();
}

int64_t CompressedCache::MostBytes(const KvLayout& layout, const Compression& compression, int64_t prompt,
                                   int64_t tokens) {
  const auto pages = [](int64_t slots) { return (slots + kPage - 1) / kPage; };
  KvLayout one = layout;
  one.layers = 1;
  PrunedKeys pruned;
  pruned.channels = compression.key_channels;
  pruned.full_heads = layout.selective ? 1 : 0;
  const int64_t size = DTypeSize(layout.dtype);
  const int64_t masks = layout.selective ? kPage * static_cast<int64_t>(sizeof(float)) : 0;
  const int64_t whole_page = one.page_bytes() + masks;
  const int64_t pruned_page = pruned.page_elements(one) * size + masks;
  int64_t bytes = 0;
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    const int64_t reading = pages(std::min(prompt, tokens)) + 1;
    // Up to a page of evicted positions on either side of where pruned pages end, and the rest of that page.
    int64_t slots = tokens;
    if (!compression.budgets.empty())
      slots = std::min(slots, compression.budgets[static_cast<size_t>(layer)] + 3 * kPage);
    const int64_t all = pages(slots) + 1;
    int64_t whole = all;
    if (compression.key_channels > 0) whole = std::min(all, pages(compression.recent + kPage) + 2);
    bytes += std::max(reading * whole_page, whole * whole_page + (all - whole) * pruned_page);
  }
  return bytes;
}

int64_t CompressedCache::bytes() const {
  int64_t bytes = 0;
  for (const Layer& layer : layers_) {
    for (const Tensor& page : layer.pages) bytes += page.cols() * DTypeSize(page.dtype());
    bytes += static_cast<int64_t>(layer.selection.size() * sizeof(float));
  }
  return bytes;
}

KvView CompressedView(const KvLayout& layout, const Compression& compression, std::span<CompressedCache* const> caches,
                      const TokenBatch& batch) {
  QUERN_CHECK(caches.size() == batch.sequences.size());
  KvView view{.layout = layout, .one_layer = true, .budgets = compression.budgets};
  view.layout.layers = 1;
  view.layers.resize(static_cast<size_t>(layout.layers));
  for (size_t layer = 0; layer < view.layers.size(); ++layer)
    for (size_t s = 0; s < caches.size(); ++s)
      view.layers[layer].push_back(
          caches[s]->Rows(static_cast<int64_t>(layer), batch.sequences[s].row, batch.sequences[s].count));
  if (compression.key_channels > 0 &&
      std::any_of(caches.begin(), caches.end(), [](const CompressedCache* cache) { return cache->reads_prompt(); })) {
    view.observe = [caches = std::vector<CompressedCache*>(caches.begin(), caches.end()), &batch](int64_t layer,
                                                                                                  const TensorView& q) {
      for (size_t s = 0; s < caches.size(); ++s)
        caches[s]->Observe(layer, q, batch.sequences[s].row, batch.sequences[s].count);
    };
  }
  return view;
}

}  // namespace quern
