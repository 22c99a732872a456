#include "compute/cpu/attention_tiles.h"
#if defined(__AVX512BF16__)
#include "compute/cpu/attention_dots.h"
#endif
#include "compute/cpu/kernels.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

namespace {

constexpr int64_t kPage = KvLayout::kPageTokens;
constexpr int64_t kBlock = KvLayout::kBlockTokens;
static_assert(kBlock == kLanes);

inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t Most(int64_t a, int64_t b) { return a > b ? a : b; }

// One query: a row and a head. It attends to positions [first, last].
struct Query {
  int64_t row = 0;
  int64_t head = 0;
  int64_t first = 0;
  int64_t last = 0;
};

// scores: [first, last] of the query, as an array that starts at position `origin` (a multiple of kBlock). Becomes
// the weights e^(scale s - max), zero outside [first, last] in the blocks that hold them. With kSelective, s is less by
// what `penalties` holds for its position.
struct SoftmaxSums {
  float max = 0;
  float mass = 0;
  float weights = 0;  // the sum of the weights as they are stored
};
template <typename Products, bool kSelective>
SoftmaxSums SoftmaxRow(float* scores, int64_t origin, const Query& query, float scale, const float* penalties) {
  const int64_t begin = query.first / kBlock * kBlock;
  const F16 lowest = Set(-__builtin_inff());
  F16 max = lowest;
  for (int64_t p = begin; p <= query.last; p += kBlock) {
    float* at = scores + (p - origin);
    F16 s = Load(at) * Set(scale);
    if constexpr (kSelective) s = s - Load(penalties + p);
    if (p < query.first || p + kBlock > query.last + 1)
      s = InRange(Most(query.first - p, 0), Least(query.last + 1 - p, kBlock), s, lowest);
    Store(at, s);
    max = Max(max, s);
  }
  SoftmaxSums out;
  out.max = MaxLanes(max);
  F16 mass = Zero(), weights = Zero();
  for (int64_t p = begin; p <= query.last; p += kBlock) {
    const F16 e = Exp(Load(scores + (p - origin)) - Set(out.max));
    mass = mass + e;
    weights = weights + Products::StoreWeights(scores, p - origin, e);
  }
  out.mass = SumLanes(mass);
  out.weights = SumLanes(weights);
  return out;
}

// Where the keys and values of one sequence and KV head lie.
template <typename Kv>
class Place {
 public:
  Place(const AttentionArgs& args, const AttentionTask& task)
      : pages_(task.sequence->pages),
        end_(task.sequence->context + task.end),
        dim_(args.layout.head_dim),
        keys_(args.layout.KeyOffset(args.layer, task.kv_head)),
        values_(args.layout.ValueOffset(args.layer, task.kv_head)) {
    if (task.sequence->pruned == nullptr || task.sequence->pruned->pages == 0) return;
    const PrunedKeys& pruned = *task.sequence->pruned;
    pruned_end_ = pruned.pages * kPage;
    pruned_dim_ = pruned.Channels(args.layout, task.kv_head);
    pruned_keys_ = pruned.KeyOffset(args.layout, task.kv_head);
    pruned_values_ = pruned.ValueOffset(args.layout, task.kv_head);
    if (pruned_dim_ < dim_) kept_ = pruned.kept + task.kv_head * pruned.channels;
  }

  bool Holds(int64_t p) const { return p < end_; }
  bool Pruned(int64_t p) const { return p < pruned_end_; }
  const Kv* Keys(int64_t p) const {
    const int64_t slot = p % kPage;
    return Page(p) + (Pruned(p) ? pruned_keys_ + slot * pruned_dim_ : keys_ + slot * dim_);
  }
  const Kv* Values(int64_t p) const { return Page(p) + (Pruned(p) ? pruned_values_ : values_) + p % kPage * dim_; }
  int64_t pruned_dim() const { return pruned_dim_; }
  const int32_t* kept() const { return kept_; }

 private:
  const Kv* Page(int64_t p) const { return static_cast<const Kv*>(pages_[p / kPage]); }

  void* const* pages_;
  int64_t end_;  // of the positions that the task attends to
  int64_t dim_;
  int64_t keys_, values_;  // element offsets in a page
  // Pages before pruned_end hold keys of pruned_dim channels, `kept` ones unless it is null.
  int64_t pruned_end_ = 0, pruned_dim_ = 0, pruned_keys_ = 0, pruned_values_ = 0;
  const int32_t* kept_ = nullptr;
};

template <typename Products, bool kSelective>
class Attender {
 public:
  using Kv = typename Products::Kv;
  using Element = typename Products::Element;

  Attender(const AttentionArgs& args, const AttentionTask& task)
      : args_(args),
        sequence_(*task.sequence),
        penalties_(task.penalties),
        penalty_stride_(task.penalty_stride),
        dim_(args.layout.head_dim),
        own_(args, task),
        has_next_(task.next != nullptr),
        next_(args, has_next_ ? *task.next : task),
        row_(Products::RowElements(dim_)),
        sums_(task.scratch),
        scores_(sums_ + 3 * kMaxTile * dim_),
        q_(reinterpret_cast<Element*>(sums_ + kMaxTile * dim_)),
        pruned_q_(reinterpret_cast<Element*>(sums_ + 2 * kMaxTile * dim_)) {}

  template <int R>
  void Tile(const Query* queries) {
    for (int r = 0; r < R; ++r) {
      if constexpr (Products::kStep == 1) {
        WithType(args_.q, [&](auto type) {
          Products::Query(Row<decltype(type)>(args_.q, queries[r].row) + queries[r].head * dim_, dim_, q_ + r * row_);
        });
      } else {
        Products::Query(Row<Element>(args_.q, queries[r].row) + queries[r].head * dim_, dim_, q_ + r * row_);
      }
      ForVectors(dim_, [&](int64_t i, auto lanes) { Store(sums_ + r * dim_ + i, Zero(), lanes); });
    }
    const int64_t pruned_dim = own_.pruned_dim(), pruned_row = Products::RowElements(pruned_dim);
    if (const int32_t* kept = own_.kept(); kept != nullptr) {
      for (int r = 0; r < R; ++r) {
        for (int64_t i = 0; i < pruned_dim; ++i) pruned_q_[r * pruned_row + i] = q_[r * row_ + kept[i]];
        for (int64_t i = pruned_dim; i < pruned_row; ++i) pruned_q_[r * pruned_row + i] = 0;
      }
    }
    // Queries of a tile come in order of position.
    const int64_t origin = queries[0].first / kBlock * kBlock;
    const int64_t end = queries[R - 1].last / kBlock * kBlock + kBlock;
    const int64_t stride = end - origin;
    for (int64_t p = origin; p < end; p = p / kPage * kPage + kPage) {
      const int64_t blocks = (Least(p / kPage * kPage + kPage, end) - p) / kBlock;
      const Kv* ahead = Asks(p) ? next_.Keys(p) : nullptr;
      if (own_.Pruned(p)) {
        Products::template Scores<R>(own_.kept() != nullptr ? pruned_q_ : q_, pruned_dim, own_.Keys(p), blocks,
                                     scores_ + (p - origin), stride, ahead);
      } else {
        Products::template Scores<R>(q_, dim_, own_.Keys(p), blocks, scores_ + (p - origin), stride, ahead);
      }
    }
    SoftmaxSums sums[R];
    for (int r = 0; r < R; ++r) {
      const float* penalties = kSelective ? penalties_ + (queries[r].row - sequence_.row) * penalty_stride_ : nullptr;
      sums[r] = SoftmaxRow<Products, kSelective>(scores_ + r * stride, origin, queries[r], args_.scale, penalties);
    }

    // Positions that all queries attend to go through the tile, in whole steps; those of some only, before and after,
    // one by one.
    constexpr int64_t kStep = Products::kStep;
    const int64_t first = (queries[R - 1].first + kStep - 1) / kStep * kStep,
                  stop = (queries[0].last + 1) / kStep * kStep;
    if (R > 1 && first < stop) {
      for (int r = 0; r < R; ++r) AddValues<1>(r, queries[r].first, first, origin, stride);
      AddValues<R>(0, first, stop, origin, stride);
      for (int r = 0; r < R; ++r) AddValues<1>(r, stop, queries[r].last + 1, origin, stride);
    } else {
      for (int r = 0; r < R; ++r) AddValues<1>(r, queries[r].first, queries[r].last + 1, origin, stride);
    }

    WithType(args_.out, [&](auto type) {
      for (int r = 0; r < R; ++r) {
        auto* to = Row<decltype(type)>(args_.out, queries[r].row) + queries[r].head * dim_;
        const F16 inverse = Set(1.0f / sums[r].weights);
        ForVectors(dim_,
                   [&](int64_t i, auto lanes) { Store(to + i, Load(sums_ + r * dim_ + i, lanes) * inverse, lanes); });
        if (args_.lse.data != nullptr)
          Row<float>(args_.lse, queries[r].row)[queries[r].head] = sums[r].max + __builtin_logf(sums[r].mass);
      }
    });
  }

 private:
  bool Asks(int64_t p) const { return has_next_ && next_.Holds(p); }

  template <int R>
  void AddValues(int64_t r, int64_t begin, int64_t end, int64_t origin, int64_t stride) {
    for (int64_t p = begin; p < end;) {
      const int64_t page = p / kPage * kPage, stop = Least(page + kPage, end);
      Products::template Add<R>(scores_ + r * stride, page - origin, stride, own_.Values(page), p - page, stop - page,
                                dim_, sums_ + r * dim_, Asks(p) ? next_.Values(page) : nullptr);
      p = stop;
    }
  }

  const AttentionArgs& args_;
  const SequenceRows& sequence_;
  const float* penalties_;
  int64_t penalty_stride_;
  int64_t dim_;
  Place<Kv> own_;
  bool has_next_;
  Place<Kv> next_;     // what is asked for meanwhile
  int64_t row_;        // elements of a row of q
  float* sums_;        // [R, dim]
  float* scores_;      // [R, stride]
  Element* q_;         // [R, row]
  Element* pruned_q_;  // [R, ...]: the kept channels of q
};

}  // namespace

void Attention(const AttentionArgs& args, const AttentionTask& task) {
  const SequenceRows& sequence = *task.sequence;
  const int64_t group = args.heads / args.layout.kv_heads;
  const int64_t queries = (task.end - task.begin) * group;
  const auto attend = [&](auto attender) {
    for (int64_t i = 0; i < queries;) {
      const int64_t tile = TileOf(queries - i);
      Query tile_queries[kMaxTile];
      for (int64_t r = 0; r < tile; ++r) {
        const int64_t row = task.begin + (i + r) / group;
        const int64_t position = sequence.context + row;
        tile_queries[r] = {.row = sequence.row + row,
                           .head = task.kv_head * group + (i + r) % group,
                           .first = args.window > 0 ? Most(position - args.window + 1, 0) : 0,
                           .last = position};
      }
      WithTile(tile, [&](auto count) { attender.template Tile<decltype(count)::value>(tile_queries); });
      i += tile;
    }
  };
  const auto attend_by = [&](auto products) {
    if (task.penalties == nullptr) {
      attend(Attender<decltype(products), false>(args, task));
    } else {
      attend(Attender<decltype(products), true>(args, task));
    }
  };
#if defined(__AVX512BF16__)
  if (args.q.dtype == DType::kBf16 && args.layout.dtype == DType::kBf16) return attend_by(DotProducts{});
#endif
  WithType(TensorView{.dtype = args.layout.dtype}, [&](auto kv) { attend_by(FloatProducts<decltype(kv)>{}); });
}

void KvWrite(const KvWriteArgs& args, const SequenceRows& sequence, int64_t begin, int64_t end, int64_t first_head,
             int64_t end_head) {
  const KvLayout& layout = args.layout;
  const int64_t dim = layout.head_dim;
  WithTypes(args.qkv, TensorView{.dtype = layout.dtype}, [&](auto in, auto kv) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t position = sequence.context + i;
      const int64_t slot = position % kPage;
      auto* page = static_cast<decltype(kv)*>(sequence.pages[position / kPage]);
      const auto* row = Row<decltype(in)>(args.qkv, sequence.row + i);
      for (int64_t head = first_head; head < end_head; ++head) {
        const auto* key = row + (args.heads + head) * dim;
        const auto* value = row + (args.heads + layout.kv_heads + head) * dim;
        auto* keys = page + layout.KeyOffset(args.layer, head) + slot / kBlock * dim * kBlock + slot % kBlock;
        auto* values = page + layout.ValueOffset(args.layer, head) + slot * dim;
        ForVectors(dim, [&](int64_t d, auto lanes) { Store(values + d, Load(value + d, lanes), lanes); });
        ForVectors(dim, [&](int64_t d, auto lanes) {
          decltype(kv) column[kLanes];
          Store(column, Load(key + d, lanes));
          const int64_t count = Least(dim - d, kLanes);
          for (int64_t lane = 0; lane < count; ++lane) keys[(d + lane) * kBlock] = column[lane];
        });
      }
    }
  });
}

}  // namespace quern::cpu::QUERN_ISA
