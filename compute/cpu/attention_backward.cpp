#include "compute/cpu/attention_tiles.h"
#include "compute/cpu/kernels.h"
#include "compute/cpu/views.h"

namespace quern::cpu::QUERN_ISA {

namespace {

constexpr int64_t kStrip = 32;  // query rows whose probabilities are held at a time

inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t Most(int64_t a, int64_t b) { return a > b ? a : b; }

// [ceil(rows / 16)][dim][16] of rows `stride` apart; rows beyond the end are zero.
template <typename T>
void TransposeBlocks(const T* from, int64_t stride, int64_t rows, int64_t dim, float* to) {
  for (int64_t block = 0; block < rows; block += kLanes, to += dim * kLanes) {
    const int64_t count = Least(rows - block, kLanes);
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int64_t width = Least(dim - d, kLanes);
      for (int64_t j = 0; j < kLanes; ++j) {
        float row[kLanes];
        Store(row, j < count ? Load(from + (block + j) * stride + d, width) : Zero());
        for (int64_t i = 0; i < width; ++i) to[(d + i) * kLanes + j] = row[i];
      }
    }
  }
}

template <typename T>
void CopyRows(const T* from, int64_t stride, int64_t rows, int64_t dim, float* to) {
  for (int64_t r = 0; r < rows; ++r)
    ForVectors(dim, [&](int64_t i, auto lanes) { Store(to + r * dim + i, Load(from + r * stride + i, lanes), lanes); });
}

void AddAllRows(const float* weights, int64_t row_step, int64_t step, const float* values, int64_t count, int64_t dim,
                float* sums, int64_t rows) {
  for (int64_t r = 0; r < rows;) {
    const int64_t tile = TileOf(rows - r);
    WithTile(tile, [&](auto size) {
      AddRows<decltype(size)::value>(weights + r * row_step, row_step, step, values, dim, count, dim, sums + r * dim,
                                     dim);
    });
    r += tile;
  }
}

void ScoreRows(const float* q, int64_t rows, int64_t dim, const float* keys, int64_t blocks, float* scores,
               int64_t stride) {
  for (int64_t r = 0; r < rows;) {
    const int64_t tile = TileOf(rows - r);
    WithTile(tile, [&](auto size) {
      Score<decltype(size)::value>(q + r * dim, dim, keys, blocks, scores + r * stride, stride);
    });
    r += tile;
  }
}

// Selective Attention. F is computed again from the keys and head 0's queries; the gradients by scores are summed over
// all heads but head 0, which comes last and its rows from the last to the first: with the sum U of those gradients
// over the rows below, row i's own selection has the gradient -U where it selected.
struct Selection {
  Selection(const AttentionBackwardArgs& args, float* shared, int64_t count, int64_t padded_count)
      : n(count),
        padded(padded_count),
        f(shared),
        gradient(f + n * padded),
        below(gradient + n * padded),
        live_weight(args.live_weight),
        tau(args.live_tau),
        gain(static_cast<float>(args.gain)) {}

  // q: head 0's rows.
  void Begin(const float* q, int64_t dim, const float* keys_t, float scale) {
    for (int64_t i = 0; i < padded; ++i) below[i] = 0;
    ScoreRows(q, n, dim, keys_t, padded / kLanes, f, padded);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < padded; j += kLanes) {
        float* at = f + i * padded + j;
        const F16 sum = Load(below + j);
        const F16 s = InRange(j == 0 ? 1 : 0, Most(0, Least(i - j, kLanes)), Load(at) * Set(scale), Zero());
        Store(at, sum);
        Store(below + j, Fma(Max(s, Zero()), Set(gain), sum));
      }
    }
    for (int64_t i = 0; i < padded; ++i) below[i] = 0;
    for (int64_t i = 0; i < n * padded; ++i) gradient[i] = 0;
    if (live_weight == 0) return;
    int64_t most = 0;
    float most_live = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float live = Live(f + i * padded, i, tau);
      if (live <= most_live) continue;
      most = i;
      most_live = live;
    }
    const float* row = f + most * padded;
    for (int64_t j = 0; j <= most; ++j)
      if (row[j] < tau) gradient[most * padded + j] = live_weight / tau;
  }

  int64_t n, padded;
  float* f;         // [n, padded]
  float* gradient;  // [n, padded]: of the loss by scaled scores, which is minus that by F
  float* below;     // [padded]: sum of the gradient over later rows
  float live_weight, tau, gain;
};

// With s = scale q k, p = e^(s - lse), D = dout . out (Dao et al. 2022, appendix B.4): dv = p dout; dp = dout v;
// ds = p (dp - D); dq = scale ds k; dk = scale ds q. Rows are taken in strips in order of position and heads in order,
// so that every sum has one order.
template <bool kSelective>
void Backward(const AttentionBackwardArgs& args, const AttentionBackwardTask& task) {
  const SequenceRows& sequence = *task.sequence;
  const int64_t n = sequence.count, dim = args.head_dim;
  const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
  const int64_t group = args.heads / args.kv_heads;
  const int64_t key_column = (args.heads + task.kv_head) * dim;
  const int64_t value_column = (args.heads + args.kv_heads + task.kv_head) * dim;
  float* next = task.scratch;
  const auto take = [&](int64_t size) {
    float* out = next;
    next += size;
    return out;
  };
  float* keys = take(n * dim);
  float* keys_t = take(padded * dim);
  float* values_t = take(padded * dim);
  float* dkeys = take(n * dim);
  float* dvalues = take(n * dim);
  float* q = take(kStrip * dim);
  float* dq = take(kStrip * dim);
  float* dout = take(kStrip * dim);
  float* p = take(kStrip * padded);
  float* ds = take(kStrip * padded);

  Selection selection(args, task.shared, kSelective ? n : 0, padded);
  F16 dgain = Zero();
  if (kSelective && task.kv_head == args.kv_heads - 1) {
    // Head 0's queries and its keys stand where this task's gradients will.
    float* first_q = dkeys;
    WithType(args.qkv, [&](auto type) {
      const auto* rows = Row<decltype(type)>(args.qkv, sequence.row);
      CopyRows(rows, args.qkv.stride, n, dim, first_q);
      TransposeBlocks(rows + args.heads * dim, args.qkv.stride, n, dim, keys_t);
    });
    selection.Begin(first_q, dim, keys_t, args.scale);
  }
  WithType(args.qkv, [&](auto type) {
    const auto* rows = Row<decltype(type)>(args.qkv, sequence.row);
    CopyRows(rows + key_column, args.qkv.stride, n, dim, keys);
    TransposeBlocks(rows + key_column, args.qkv.stride, n, dim, keys_t);
    TransposeBlocks(rows + value_column, args.qkv.stride, n, dim, values_t);
  });
  for (int64_t i = 0; i < n * dim; ++i) dkeys[i] = dvalues[i] = 0;

  for (int64_t h = 0; h < group; ++h) {
    const int64_t head = kSelective ? (task.kv_head + 1) * group - 1 - h : task.kv_head * group + h;
    const bool selects = kSelective && head == 0;
    const int64_t strips = (n + kStrip - 1) / kStrip;
    for (int64_t strip = 0; strip < strips; ++strip) {
      const int64_t begin = (selects ? strips - 1 - strip : strip) * kStrip;
      const int64_t rows = Least(n - begin, kStrip);
      WithType(args.qkv, [&](auto type) {
        CopyRows(Row<decltype(type)>(args.qkv, sequence.row + begin) + head * dim, args.qkv.stride, rows, dim, q);
      });
      WithType(args.dout, [&](auto type) {
        CopyRows(Row<decltype(type)>(args.dout, sequence.row + begin) + head * dim, args.dout.stride, rows, dim, dout);
      });
      // Key blocks any row of the strip attends to.
      const int64_t first = (args.window > 0 ? Most(begin - args.window + 1, 0) : 0) / kLanes * kLanes;
      const int64_t blocks = (begin + rows - 1) / kLanes + 1 - first / kLanes;
      ScoreRows(q, rows, dim, keys_t + first * dim, blocks, p, padded);
      ScoreRows(dout, rows, dim, values_t + first * dim, blocks, ds, padded);
      for (int64_t k = 0; k < rows; ++k) {
        const int64_t r = selects ? rows - 1 - k : k;
        const int64_t row = sequence.row + begin + r;
        float delta = 0;
        WithType(args.out, [&](auto type) {
          const auto* out = Row<decltype(type)>(args.out, row) + head * dim;
          delta = SumVectors(dim, [&](F16 sum, int64_t i, auto lanes) {
            return Fma(Load(dout + r * dim + i, lanes), Load(out + i, lanes), sum);
          });
        });
        const F16 lse = Set(Row<float>(args.lse, row)[head]);
        const int64_t from = args.window > 0 ? Most(begin + r - args.window + 1, 0) : 0;
        const int64_t to = begin + r + 1;
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t position = first + block * kLanes;
          float* p_at = p + r * padded + block * kLanes;
          float* ds_at = ds + r * padded + block * kLanes;
          if (position >= to || position + kLanes <= from) {
            Store(p_at, Zero());
            Store(ds_at, Zero());
            continue;
          }
          F16 e;
          if constexpr (kSelective) {
            e = Exp(Load(p_at) * Set(args.scale) - Load(selection.f + (begin + r) * padded + position) - lse);
          } else {
            e = Exp(Fma(Load(p_at), Set(args.scale), Zero() - lse));
          }
          if (position < from || position + kLanes > to)
            e = InRange(Most(from - position, 0), Least(to - position, kLanes), e, Zero());
          if constexpr (kSelective) {
            const F16 s = Load(p_at);
            F16 by_score = e * (Load(ds_at) - Set(delta));
            float* gradient = selection.gradient + (begin + r) * padded + position;
            const F16 sum = Load(gradient) + by_score;
            if (selects) {
              // 0 < position < row, and s > 0.
              F16 selected = IfLess(Zero(), s, Load(selection.below + position), Zero());
              selected = InRange(position == 0 ? 1 : 0, Most(0, Least(begin + r - position, kLanes)), selected, Zero());
              by_score = by_score - selected * Set(selection.gain);
              dgain = dgain - selected * (s * Set(args.scale));
              Store(selection.below + position, Load(selection.below + position) + sum);
            } else {
              Store(gradient, sum);
            }
            Store(p_at, e);
            Store(ds_at, by_score * Set(args.scale));
          } else {
            Store(p_at, e);
            Store(ds_at, e * (Load(ds_at) - Set(delta)) * Set(args.scale));
          }
        }
      }
      const int64_t count = Least(blocks * kLanes, n - first);
      for (int64_t i = 0; i < rows * dim; ++i) dq[i] = 0;
      AddAllRows(ds, padded, 1, keys + first * dim, count, dim, dq, rows);
      AddAllRows(p, 1, padded, dout, rows, dim, dvalues + first * dim, count);
      AddAllRows(ds, 1, padded, q, rows, dim, dkeys + first * dim, count);
      WithType(args.dqkv, [&](auto type) {
        for (int64_t r = 0; r < rows; ++r) {
          auto* to = Row<decltype(type)>(args.dqkv, sequence.row + begin + r) + head * dim;
          ForVectors(dim, [&](int64_t i, auto lanes) { Store(to + i, Load(dq + r * dim + i, lanes), lanes); });
        }
      });
    }
  }
  if (kSelective && task.kv_head == 0) *task.dgain = SumLanes(dgain);
  WithType(args.dqkv, [&](auto type) {
    for (int64_t r = 0; r < n; ++r) {
      auto* to = Row<decltype(type)>(args.dqkv, sequence.row + r);
      ForVectors(dim, [&](int64_t i, auto lanes) {
        Store(to + key_column + i, Load(dkeys + r * dim + i, lanes), lanes);
        Store(to + value_column + i, Load(dvalues + r * dim + i, lanes), lanes);
      });
    }
  });
}

}  // namespace

void AttentionBackward(const AttentionBackwardArgs& args, const AttentionBackwardTask& task) {
  if (args.selective) {
    Backward<true>(args, task);
  } else {
    Backward<false>(args, task);
  }
}

}  // namespace quern::cpu::QUERN_ISA
