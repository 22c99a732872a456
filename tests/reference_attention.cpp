#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"
#include "tests/reference_parts.h"

namespace quern::reference {
namespace {

bool IsPruned(const SequenceRows& s, int64_t position) {
  return s.pruned != nullptr && position / KvLayout::kPageTokens < s.pruned->pages;
}

TensorView Page(const SequenceRows& sequence, int64_t position, const KvLayout& layout) {
  return {sequence.pages[position / KvLayout::kPageTokens], layout.dtype, 1, layout.page_elements(),
          layout.page_elements()};
}

// F of a sequence's rows at positions 0 .. own, infinite where evicted, straight from the definition; leaves that of
// the next row in the sequence's selection.
std::vector<std::vector<double>> Masks(const AttentionArgs& args, const SequenceRows& s) {
  const KvLayout& layout = args.layout;
  QUERN_CHECK(args.window == 0);
  const TensorView selection = {s.selection, layout.dtype == DType::kF64 ? DType::kF64 : DType::kF32, 1, 0, 0};
  const auto at = [&](int64_t p) {
    return layout.SelectionOffset(p / KvLayout::kPageTokens, args.layer) + p % KvLayout::kPageTokens;
  };
  const auto selected = [&](int64_t row, int64_t p) {  // S
    if (p == 0 || p >= s.context + row) return 0.0;
    double sum = 0;
    for (int64_t d = 0; d < layout.head_dim; ++d)
      sum +=
          Get(args.q, s.row + row, d) *
          Get(Page(s, p, layout), 0, layout.KeyOffset(args.layer, 0) + layout.KeyElement(p % KvLayout::kPageTokens, d));
    return args.gain * std::max(0.0, sum * static_cast<double>(args.scale));
  };
  const int64_t end = s.context + s.count;
  std::vector<std::vector<double>> all;  // [count + 1]
  std::vector<bool> gone(static_cast<size_t>(end) + 1);
  for (int64_t i = 0; i <= s.count; ++i) {
    std::vector<double> row;
    for (int64_t p = 0; p < std::min(s.context + i + 1, end); ++p) {
      double f = p < s.context ? Get(selection, 0, at(p)) : 0;
      for (int64_t k = 0; k < i; ++k) f += selected(k, p);
      if (std::isinf(f)) gone[static_cast<size_t>(p)] = true;
      row.push_back(f);
    }
    const int64_t position = s.context + i;
    const auto left = [&] { return position + 1 - std::count(gone.begin(), gone.end(), true); };
    while (i < s.count && args.budget > 0 && left() > args.budget) {
      int64_t worst = -1;
      for (int64_t p = 1; p < position; ++p)
        if (!gone[static_cast<size_t>(p)] &&
            (worst < 0 || row[static_cast<size_t>(p)] > row[static_cast<size_t>(worst)]))
          worst = p;
      gone[static_cast<size_t>(worst)] = true;
    }
    for (size_t p = 0; p < row.size(); ++p)
      if (gone[p]) row[p] = std::numeric_limits<double>::infinity();
    all.push_back(std::move(row));
  }
  for (int64_t p = 0; p < end; ++p) Set(selection, 0, at(p), all.back()[static_cast<size_t>(p)]);
  all.pop_back();
  return all;
}

// `mask`: F of one row at positions 0 .. own.
double Live(const std::vector<double>& mask, double tau) {
  double live = 0;
  for (const double f : mask) live += 1 - std::min(f, tau) / tau;
  return live;
}

}  // namespace

void KvWrite(const KvWriteArgs& args) {
  const KvLayout& layout = args.layout;
  for (const SequenceRows& s : args.sequences) {
    for (int64_t i = 0; i < s.count; ++i) {
      const int64_t slot = (s.context + i) % KvLayout::kPageTokens;
      const TensorView page = Page(s, s.context + i, layout);
      for (int64_t head = 0; head < layout.kv_heads; ++head) {
        for (int64_t d = 0; d < layout.head_dim; ++d) {
          Set(page, 0, layout.KeyOffset(args.layer, head) + layout.KeyElement(slot, d),
              Get(args.qkv, s.row + i, (args.heads + head) * layout.head_dim + d));
          Set(page, 0, layout.ValueOffset(args.layer, head) + slot * layout.head_dim + d,
              Get(args.qkv, s.row + i, (args.heads + layout.kv_heads + head) * layout.head_dim + d));
        }
      }
    }
  }
}

void Attention(const AttentionArgs& args) {
  const KvLayout& layout = args.layout;
  const int64_t dim = layout.head_dim, group = args.heads / layout.kv_heads;
  for (const SequenceRows& s : args.sequences) {
    const std::vector<std::vector<double>> masks =
        layout.selective ? Masks(args, s) : std::vector<std::vector<double>>();
    for (int64_t i = 0; i < s.count; ++i) {
      if (layout.selective && !args.live.empty())
        Set(args.live, 0, s.row + i, Live(masks[static_cast<size_t>(i)], static_cast<double>(args.live_tau)));
      for (int64_t head = 0; head < args.heads; ++head) {
        const int64_t position = s.context + i;
        const int64_t first = args.window > 0 ? std::max<int64_t>(0, position - args.window + 1) : 0;
        const int64_t keys = layout.KeyOffset(args.layer, head / group);
        const int64_t values = layout.ValueOffset(args.layer, head / group);
        std::vector<double> scores;
        for (int64_t p = first; p <= position; ++p) {
          const TensorView page = Page(s, p, layout);
          double sum = 0;
          const bool small = IsPruned(s, p);
          const int64_t channels = small ? s.pruned->Channels(layout, head / group) : dim;
          for (int64_t c = 0; c < channels; ++c) {
            const int64_t slot = p % KvLayout::kPageTokens,
                          d = channels < dim ? s.pruned->kept[head / group * channels + c] : c;
            const int64_t at = small ? s.pruned->KeyOffset(layout, head / group) +
                                           (slot / KvLayout::kBlockTokens * channels + c) * KvLayout::kBlockTokens +
                                           slot % KvLayout::kBlockTokens
                                     : keys + layout.KeyElement(slot, d);
            sum += Get(args.q, s.row + i, head * dim + d) * Get(page, 0, at);
          }
          scores.push_back(sum * static_cast<double>(args.scale));
          if (layout.selective) scores.back() -= masks[static_cast<size_t>(i)][static_cast<size_t>(p)];
        }
        const double max = *std::max_element(scores.begin(), scores.end());
        double mass = 0;
        for (const double score : scores) mass += std::exp(score - max);
        for (int64_t d = 0; d < dim; ++d) {
          double sum = 0;
          for (int64_t p = first; p <= position; ++p)
            sum += std::exp(scores[static_cast<size_t>(p - first)] - max) / mass *
                   Get(Page(s, p, layout), 0,
                       (IsPruned(s, p) ? s.pruned->ValueOffset(layout, head / group) : values) +
                           p % KvLayout::kPageTokens * dim + d);
          Set(args.out, s.row + i, head * dim + d, sum);
        }
        if (!args.lse.empty()) Set(args.lse, s.row + i, head, max + std::log(mass));
      }
    }
  }
}

void AttentionBackward(const AttentionBackwardArgs& args) {
  const int64_t dim = args.head_dim, group = args.heads / args.kv_heads;
  const auto scale = static_cast<double>(args.scale);
  Tensor sums(DType::kF64, args.dqkv.rows, args.dqkv.cols);
  for (const SequenceRows& s : args.sequences) {
    QUERN_CHECK(s.context == 0);
    // Selective Attention: L of head 0, F, and the gradient by F, all [count, count].
    const auto n = static_cast<size_t>(s.count);
    std::vector<std::vector<double>> raw(n, std::vector<double>(n)), masks = raw, dmasks = raw;
    for (size_t i = 0; args.selective && i < n; ++i) {
      for (size_t j = 0; j <= i; ++j) {
        for (int64_t d = 0; d < dim; ++d)
          raw[i][j] += scale * Get(args.qkv, s.row + static_cast<int64_t>(i), d) *
                       Get(args.qkv, s.row + static_cast<int64_t>(j), args.heads * dim + d);
        for (size_t k = 0; k < i; ++k)
          if (j > 0 && j < k) masks[i][j] += args.gain * std::max(0.0, raw[k][j]);
      }
    }
    for (int64_t i = s.row; i < s.row + s.count; ++i) {
      for (int64_t head = 0; head < args.heads; ++head) {
        const int64_t q = head * dim, k = (args.heads + head / group) * dim;
        const int64_t v = (args.heads + args.kv_heads + head / group) * dim;
        double delta = 0;
        for (int64_t d = 0; d < dim; ++d) delta += Get(args.dout, i, q + d) * Get(args.out, i, q + d);
        const int64_t first = args.window > 0 ? std::max(s.row, i - args.window + 1) : s.row;
        for (int64_t j = first; j <= i; ++j) {
          double score = 0, dp = 0;
          for (int64_t d = 0; d < dim; ++d) {
            score += Get(args.qkv, i, q + d) * Get(args.qkv, j, k + d);
            dp += Get(args.dout, i, q + d) * Get(args.qkv, j, v + d);
          }
          const auto a = static_cast<size_t>(i - s.row), b = static_cast<size_t>(j - s.row);
          const double p = std::exp(scale * score - masks[a][b] - Get(args.lse, i, head));
          const double ds = scale * p * (dp - delta);
          dmasks[a][b] -= p * (dp - delta);
          for (int64_t d = 0; d < dim; ++d) {
            AddTo(sums, i, q + d, ds * Get(args.qkv, j, k + d));
            AddTo(sums, j, k + d, ds * Get(args.qkv, i, q + d));
            AddTo(sums, j, v + d, p * Get(args.dout, i, q + d));
          }
        }
      }
    }
    if (args.selective) {
      const auto tau = static_cast<double>(args.live_tau);
      size_t most = 0;
      double most_live = 0;
      for (size_t i = 0; i < n; ++i) {
        const std::vector<double> row(masks[i].begin(), masks[i].begin() + static_cast<std::ptrdiff_t>(i) + 1);
        if (Live(row, tau) <= most_live) continue;
        most = i;
        most_live = Live(row, tau);
      }
      for (size_t j = 0; j <= most && n > 0; ++j)
        if (masks[most][j] < tau) dmasks[most][j] -= static_cast<double>(args.live_weight) / tau;
      for (size_t k = 0; k < n; ++k) {
        for (size_t j = 1; j < k; ++j) {
          if (raw[k][j] <= 0) continue;
          double dselected = 0;
          for (size_t i = k + 1; i < n; ++i) dselected += dmasks[i][j];
          if (!args.dgain.empty()) AddTo(args.dgain, 0, 0, dselected * raw[k][j]);
          const int64_t row = s.row + static_cast<int64_t>(k), key = s.row + static_cast<int64_t>(j);
          for (int64_t d = 0; d < dim; ++d) {
            AddTo(sums, row, d, args.gain * scale * dselected * Get(args.qkv, key, args.heads * dim + d));
            AddTo(sums, key, args.heads * dim + d, args.gain * scale * dselected * Get(args.qkv, row, d));
          }
        }
      }
    }
    for (int64_t i = s.row; i < s.row + s.count; ++i)
      for (int64_t c = 0; c < args.dqkv.cols; ++c) Set(args.dqkv, i, c, Get(sums, i, c));
  }
}

}  // namespace quern::reference
