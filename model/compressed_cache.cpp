#include "model/compressed_cache.h"

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "compute/key_pruning.h"

namespace quern {

namespace {

constexpr int64_t kPage = KvLayout::kPageTokens;
constexpr float kEvicted = std::numeric_limits<float>::infinity();

// Adds a position to runs, where it goes on one to the last.
void AddSlot(std::vector<SlotRun>& runs, const void* from, int64_t from_slot, void* to, int64_t to_slot) {
  if (!runs.empty()) {
    SlotRun& last = runs.back();
    if (last.from == from && last.to == to && last.from_slot + last.count == from_slot &&
        last.to_slot + last.count == to_slot) {
      ++last.count;
      return;
    }
  }
  runs.push_back({from, to, static_cast<int32_t>(from_slot), static_cast<int32_t>(to_slot), 1});
}

}  // namespace

CompressedCache::CompressedCache(Ops& ops, const KvLayout& layout, const Compression& compression, int64_t prompt)
    : ops_(ops),
      layout_(layout),
      compression_(compression),
      prompt_(prompt),
      layers_(static_cast<size_t>(layout.layers)) {
  QUERN_CHECK(layout.dtype == DType::kF32 || layout.dtype == DType::kBf16);
  QUERN_CHECK(compression.budgets.empty() ||
              (layout.selective && static_cast<int64_t>(compression.budgets.size()) == layout.layers));
  QUERN_CHECK(compression.key_channels >= 0 && compression.key_channels <= layout.head_dim);
  layout_.layers = 1;
  for (Layer& layer : layers_) {
    if (compression.key_channels > 0)
      layer.query_squares = Tensor(DType::kF64, 1, layout.kv_heads * layout.head_dim, ops.pool());
    layer.pruned.channels = compression.key_channels;
    // Scores of the selecting head stay exact.
    layer.pruned.full_heads = layout.selective ? 1 : 0;
  }
}

std::unique_ptr<CompressedCache> CompressedCache::Copy() const {
  KvLayout layout = layout_;
  layout.layers = static_cast<int64_t>(layers_.size());
  auto copy = std::make_unique<CompressedCache>(ops_, layout, compression_, prompt_);
  copy->tokens_ = tokens_;
  const auto copy_of = [&](const Tensor& x) {
    Tensor y(x.dtype(), x.rows(), x.cols(), ops_.pool());
    if (x.cols() > 0) ops_.Copy(x, y);
    return y;
  };
  for (size_t l = 0; l < layers_.size(); ++l) {
    const Layer& from = layers_[l];
    Layer& to = copy->layers_[l];
    for (const Tensor& page : from.pages) {
      to.pages.push_back(copy_of(page));
      to.table.push_back(to.pages.back().view().data);
    }
    to.selection = copy_of(from.selection);
    to.slots = from.slots;
    to.evicted = from.evicted;
    to.query_squares = copy_of(from.query_squares);
    to.kept = from.kept;
    to.pruned = from.pruned;
    to.pruned.kept = to.kept.data();
  }
  return copy;
}

void CompressedCache::AddPage(Layer& layer, const PrunedKeys& form) {
  layer.pages.emplace_back(layout_.dtype, 1, form.page_elements(layout_), ops_.pool());
  layer.table.push_back(layer.pages.back().view().data);
}

void CompressedCache::Reserve(int64_t count) {
  for (Layer& layer : layers_) {
    while (static_cast<int64_t>(layer.pages.size()) * kPage < layer.slots + count) AddPage(layer, WholeKeys(layout_));
    const auto room = static_cast<int64_t>(layer.pages.size()) * kPage;
    if (!layout_.selective || layer.selection.cols() == room) continue;
    Tensor more(DType::kF32, 1, room, ops_.pool());
    const int64_t known = std::min(room, layer.selection.cols());
    if (known > 0) ops_.Copy(layer.selection.view().Cols(0, known), more.view().Cols(0, known));
    layer.selection = std::move(more);
  }
}

SequenceRows CompressedCache::Rows(int64_t index, int64_t row, int64_t count) {
  Layer& layer = layers_[static_cast<size_t>(index)];
  return {.row = row,
          .count = count,
          .context = layer.slots,
          .pages = layer.table.data(),
          .selection = layout_.selective ? layer.selection.view().data : nullptr,
          .pruned = layer.pruned.pages > 0 ? &layer.pruned : nullptr};
}

void CompressedCache::Observe(int64_t index, const TensorView& q, int64_t row, int64_t count) {
  if (compression_.key_channels == 0 || tokens_ >= prompt_) return;
  const int64_t skipped = std::max<int64_t>(0, prompt_ - compression_.query_window - tokens_);
  if (skipped >= count) return;
  ops_.QuerySquares({.q = q.Rows(row + skipped, count - skipped),
                     .kv_heads = layout_.kv_heads,
                     .head_dim = layout_.head_dim,
                     .squares = layers_[static_cast<size_t>(index)].query_squares});
}

void CompressedCache::Advance(int64_t count) {
  QUERN_CHECK(tokens_ >= prompt_ || tokens_ + count <= prompt_, "a step over the end of the prompt");
  const bool prompt_ends = tokens_ < prompt_ && tokens_ + count == prompt_;
  tokens_ += count;
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    layer.slots += count;
    const bool choose = prompt_ends && compression_.key_channels > 0;
    if (!compression_.budgets.empty()) {
      // As attention evicts: down to the budget with every row.
      if (compression_.budgets[l] > 0) layer.evicted = std::max(layer.evicted, layer.slots - compression_.budgets[l]);
      if (tokens_ >= prompt_) Compact(layer, choose);
    }
    if (choose) Choose(layer);
    if (!layer.kept.empty()) Prune(layer);
  }
}

void CompressedCache::Choose(Layer& layer) {
  const Tensor squares(DType::kF64, 1, layer.query_squares.cols(), ops_.pool());
  ops_.KeySquares({.layout = layout_, .pages = layer.table.data(), .slots = layer.slots, .squares = squares});
  const Tensor q = OnHost(ops_, layer.query_squares), k = OnHost(ops_, squares);
  const auto count = static_cast<size_t>(q.cols());
  layer.kept = ChooseChannels({q.Row<double>(0), count}, {k.Row<double>(0), count}, layout_.kv_heads, layout_.head_dim,
                              compression_.key_channels);
  layer.pruned.kept = layer.kept.data();
}

// Whole pages that lie before the recent keys.
void CompressedCache::Prune(Layer& layer) {
  while (layer.slots - (layer.pruned.pages + 1) * kPage >= compression_.recent) {
    const auto page = static_cast<size_t>(layer.pruned.pages);
    Tensor smaller(layout_.dtype, 1, layer.pruned.page_elements(layout_), ops_.pool());
    const SlotRun all = {layer.table[page], smaller.view().data, 0, 0, static_cast<int32_t>(kPage)};
    ops_.CopySlots({.layout = layout_, .from = WholeKeys(layout_), .to = layer.pruned, .runs = {&all, 1}});
    layer.pages[page] = std::move(smaller);
    layer.table[page] = layer.pages[page].view().data;
    ++layer.pruned.pages;
  }
}

// Moves what is not evicted together once that frees a page (or `anything`): pruned positions stay pruned, and where
// they do not fill their last page the rest of it counts as evicted.
void CompressedCache::Compact(Layer& layer, bool anything) {
  const int64_t pruned_end = layer.pruned.pages * kPage, least = anything ? 1 : kPage;
  if (layer.evicted < least) return;
  const Tensor host = OnHost(ops_, layer.selection.view().Cols(0, layer.slots));
  const float* masked = host.Row<float>(0);
  const int64_t before = std::count(masked, masked + pruned_end, kEvicted),
                after = std::count(masked + pruned_end, masked + layer.slots, kEvicted);
  QUERN_CHECK(before + after == layer.evicted, "attention evicted other than to the budget");
  if (before < least && after < least) return;
  Layer to;
  to.query_squares = std::move(layer.query_squares);
  to.kept = std::move(layer.kept);
  to.pruned = layer.pruned;
  to.pruned.kept = to.kept.data();
  std::vector<float> selection;
  const auto move = [&](int64_t begin, int64_t end, const PrunedKeys& form) {
    std::vector<SlotRun> runs;
    for (int64_t slot = begin; slot < end; ++slot) {
      if (masked[slot] == kEvicted) continue;
      if (to.slots % kPage == 0) AddPage(to, form);
      AddSlot(runs, layer.table[static_cast<size_t>(slot / kPage)], slot % kPage, to.table.back(), to.slots % kPage);
      selection.push_back(masked[slot]);
      ++to.slots;
    }
    if (!runs.empty()) ops_.CopySlots({.layout = layout_, .from = form, .to = form, .runs = runs});
  };
  move(0, pruned_end, to.pruned);
  for (; to.slots % kPage != 0; ++to.slots, ++to.evicted) selection.push_back(kEvicted);
  to.pruned.pages = to.slots / kPage;
  move(pruned_end, layer.slots, WholeKeys(layout_));
  to.selection = Tensor(DType::kF32, 1, static_cast<int64_t>(to.pages.size()) * kPage, ops_.pool());
  ops_.Upload({selection.data(), DType::kF32, 1, to.slots, to.slots}, to.selection.view().Cols(0, to.slots));
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
    bytes += layer.selection.bytes();
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
