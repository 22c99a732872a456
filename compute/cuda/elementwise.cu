#include <algorithm>
#include <numeric>

#include "compute/cuda/cast_row.h"

namespace quern::cuda {

namespace {

template <typename T, int kN>
struct EmbeddingOp {
  const int32_t* ids;
  Rows<const T> table;
  Rows<float> out;
  __device__ void operator()(int64_t row, int64_t i) const {
    float v[kN];
    Load(table.At(ids[row]) + i, v);
    Store(out.At(row) + i, v);
  }
};

// One id's rows, in row order.
__global__ void __launch_bounds__(kRowThreads)
    EmbeddingBackwardKernel(const int32_t* ids, const int32_t* begins, const int32_t* rows, Rows<const float> dout,
                            Rows<float> dtable, int64_t cols) {
  const int64_t i = int64_t{blockIdx.y} * kRowThreads + threadIdx.x;
  if (i >= cols) return;
  float* at = dtable.At(ids[blockIdx.x]) + i;
  float sum = *at;
  for (int32_t r = begins[blockIdx.x]; r < begins[blockIdx.x + 1]; ++r) sum += dout.At(rows[r])[i];
  *at = sum;
}

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename In, typename Out, int kN>
struct SwiGluOp {
  Rows<const In> gate_up;
  int64_t width;
  Rows<Out> h;
  __device__ __forceinline__ void Compute(int64_t row, int64_t i, float (&up)[kN]) const {
    float gate[kN];
    Load(gate_up.At(row) + i, gate);
    Load(gate_up.At(row) + width + i, up);
#pragma unroll
    for (int j = 0; j < kN; ++j) up[j] *= gate[j] * Sigmoid(gate[j]);
  }
  __device__ void operator()(int64_t row, int64_t i) const {
    float up[kN];
    Compute(row, i, up);
    Store(h.At(row) + i, up);
  }
};

// A block a row, with the cast of h, which waits for its scale in shared memory (`held`) or is read again.
__global__ void __launch_bounds__(kRowThreads)
    SwiGluCastKernel(Rows<const Bf16> gate_up, Rows<Bf16> h, bool held, CastParams cast) {
  QUERN_DYNAMIC_SHARED(memory);
  constexpr int kN = kWide;
  const SwiGluOp<Bf16, Bf16, kN> op = {gate_up, cast.cols, h};
  const int64_t row = blockIdx.x;
  Bf16* again = held ? reinterpret_cast<Bf16*>(memory) : h.At(row);
  uint32_t most = 0;
  for (int64_t i = int64_t{threadIdx.x} * kN; i < cast.cols; i += kRowThreads * kN) {
    float v[kN];
    op.Compute(row, i, v);
    Store(h.At(row) + i, v);
    if (held) Store(again + i, v);
    Load(again + i, v);
    ScaleColumns(cast, i, v);
    most = Max::Of(most, Largest(v));
  }
  most = BlockReduce<Max>(most);
  CastRow<E4M3Codec, kN>(cast, row, most, true, [&](int64_t i, float(&v)[kN]) {
    Load(again + i, v);
    ScaleColumns(cast, i, v);
  });
}

template <typename In, typename Grad, typename Out, int kN>
struct SwiGluBackwardOp {
  Rows<const In> gate_up;
  int64_t width;
  Rows<const Grad> dh;
  Rows<Out> dgate_up;
  __device__ void operator()(int64_t row, int64_t i) const {
    float gate[kN], up[kN], d[kN];
    Load(gate_up.At(row) + i, gate);
    Load(gate_up.At(row) + width + i, up);
    Load(dh.At(row) + i, d);
#pragma unroll
    for (int j = 0; j < kN; ++j) {
      const float s = Sigmoid(gate[j]), by_up = d[j] * gate[j] * s;
      gate[j] = d[j] * up[j] * (s + gate[j] * s * (1.0f - s));
      up[j] = by_up;
    }
    Store(dgate_up.At(row) + i, gate);
    Store(dgate_up.At(row) + width + i, up);
  }
};

template <bool kScatter, typename T>
struct CopyRowsOp {
  const int64_t* rows;
  Rows<const T> x;
  Rows<T> y;
  __device__ void operator()(int64_t row, int64_t i) const {
    y.At(kScatter ? rows[row] : row)[i] = x.At(kScatter ? row : rows[row])[i];
  }
};

template <typename In, int kN>
struct LerpOp {
  Rows<const In> x;
  float alpha;
  Rows<float> y;
  __device__ void operator()(int64_t row, int64_t i) const {
    float from[kN], to[kN];
    Load(x.At(row) + i, from);
    Load(y.At(row) + i, to);
#pragma unroll
    for (int j = 0; j < kN; ++j) to[j] += alpha * (from[j] - to[j]);
    Store(y.At(row) + i, to);
  }
};

template <typename In, typename Out, int kN>
struct CastOp {
  Rows<const In> x;
  Rows<Out> y;
  __device__ void operator()(int64_t row, int64_t i) const {
    float v[kN];
    Load(x.At(row) + i, v);
    Store(y.At(row) + i, v);
  }
};

// A block a row.
template <typename In>
__global__ void __launch_bounds__(kRowThreads) RowScalesKernel(Rows<const In> x, int64_t cols, float* scale) {
  float amax = 0;
  for (int64_t i = threadIdx.x; i < cols; i += kRowThreads)
    amax = fmaxf(amax, fabsf(static_cast<float>(x.At(blockIdx.x)[i])));
  amax = BlockReduce<Max>(amax);
  if (threadIdx.x == 0) scale[blockIdx.x] = SmoothScale(amax);
}

template <typename In, typename Out, int kN>
struct ScaleRowsOp {
  Rows<const In> x;
  const float* scale;
  bool divide, accumulate;
  Rows<Out> y;
  __device__ void operator()(int64_t row, int64_t i) const {
    const float by = divide ? 1.0f / scale[row] : scale[row];
    float v[kN], before[kN] = {};
    Load(x.At(row) + i, v);
    if (accumulate) Load(static_cast<const Out*>(y.At(row) + i), before);
#pragma unroll
    for (int j = 0; j < kN; ++j) v[j] = v[j] * by + before[j];
    Store(y.At(row) + i, v);
  }
};

// As stored in a file; arithmetic knows no fp16.
struct Half {
  uint16_t bits = 0;
  Half() = default;
  __device__ explicit Half(float value) {
#ifdef QUERN_CUDA_EMULATED
    bits = FloatToHalf(value);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#endif
  }
  __device__ explicit operator float() const {
#ifdef QUERN_CUDA_EMULATED
    return HalfToFloat(bits);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#endif
  }
};

template <typename F>
void WithStored(const TensorView& x, const TensorView& y, F f) {
  const auto known = [](const TensorView& v) {
    return v.dtype == DType::kF32 || v.dtype == DType::kBf16 || v.dtype == DType::kF16;
  };
  QUERN_CHECK(known(x) && known(y), std::string("cast of ") + DTypeName(x.dtype) + " to " + DTypeName(y.dtype));
  if (x.dtype == DType::kF16 && y.dtype == DType::kF16) {
    f(Half(), Half());
  } else if (x.dtype == DType::kF16) {
    WithType(y, [&](auto out) { f(Half(), out); });
  } else if (y.dtype == DType::kF16) {
    WithType(x, [&](auto in) { f(in, Half()); });
  } else {
    WithTypes(x, y, f);
  }
}

template <typename T>
struct FillOp {
  Rows<T> x;
  T value;
  __device__ void operator()(int64_t row, int64_t i) const { x.At(row)[i] = value; }
};

// A 32x32 tile by 32x8 threads.
template <typename T>
__global__ void TransposeKernel(Rows<const T> x, int64_t rows, int64_t cols, Rows<T> y) {
  __shared__ T tile[32][33];
  const int64_t row = int64_t{blockIdx.x} * 32, col = int64_t{blockIdx.y} * 32;
  for (unsigned r = threadIdx.y; r < 32; r += 8)
    if (row + r < rows && col + threadIdx.x < cols) tile[r][threadIdx.x] = x.At(row + r)[col + threadIdx.x];
  __syncthreads();
  for (unsigned c = threadIdx.y; c < 32; c += 8)
    if (col + c < cols && row + threadIdx.x < rows) y.At(col + c)[row + threadIdx.x] = tile[threadIdx.x][c];
}

template <typename T>
void TransposeAs(Context& context, const TensorView& x, const TensorView& y) {
  Launch(TransposeKernel<T>, dim3(static_cast<unsigned>((x.rows + 31) / 32), static_cast<unsigned>((x.cols + 31) / 32)),
         dim3(32, 8), 0, context.stream(), RowsOf<const T>(x), x.rows, x.cols, RowsOf<T>(y));
}

// Rows are copied in the widest words that fit.
template <bool kScatter>
void CopyRows(Context& context, const TensorView& x, std::span<const int64_t> rows, const TensorView& y) {
  const int64_t* at = context.staging.Put(rows);
  const int64_t size = DTypeSize(x.dtype), bytes = x.cols * size;
  const auto fits = [&](int64_t word) {
    const auto is = [&](const TensorView& v) {
      return reinterpret_cast<uintptr_t>(v.data) % static_cast<uintptr_t>(word) == 0 && v.stride * size % word == 0;
    };
    return bytes % word == 0 && is(x) && is(y);
  };
  const auto launch = [&](auto word) {
    using T = decltype(word);
    constexpr int64_t kSize = sizeof(T);
    const Rows<const T> from{static_cast<const T*>(x.data), x.stride * size / kSize};
    const Rows<T> to{static_cast<T*>(y.data), y.stride * size / kSize};
    LaunchForGroups<1>(context, static_cast<int64_t>(rows.size()), bytes / kSize,
                       CopyRowsOp<kScatter, T>{at, from, to});
  };
  if (fits(16)) {
    launch(Group<uint32_t, 4>());
  } else if (fits(4)) {
    launch(uint32_t());
  } else {
    launch(uint8_t());
  }
}

}  // namespace

void Embedding(Context& context, const EmbeddingArgs& args) {
  const int32_t* ids = context.staging.Put(args.ids);
  WithType(args.table, [&](auto type) {
    using T = decltype(type);
    WithWidth(
        [&](auto width) {
          constexpr int kN = width;
          LaunchForGroups<kN>(context, args.out.rows, args.out.cols,
                              EmbeddingOp<T, kN>{ids, RowsOf<const T>(args.table), RowsOf<float>(args.out)});
        },
        args.table, args.out);
  });
}

void EmbeddingBackward(Context& context, const EmbeddingBackwardArgs& args) {
  const auto count = static_cast<int32_t>(args.ids.size());
  if (count == 0) return;
  std::vector<int32_t> rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), 0);
  const auto id = [&](int32_t row) { return args.ids[static_cast<size_t>(row)]; };
  std::stable_sort(rows.begin(), rows.end(), [&](int32_t a, int32_t b) { return id(a) < id(b); });
  std::vector<int32_t> ids, begins;
  for (int32_t i = 0; i < count; ++i) {
    const int32_t own = id(rows[static_cast<size_t>(i)]);
    if (!ids.empty() && ids.back() == own) continue;
    ids.push_back(own);
    begins.push_back(i);
  }
  begins.push_back(count);
  Launch(
      EmbeddingBackwardKernel,
      dim3(static_cast<unsigned>(ids.size()), static_cast<unsigned>((args.dout.cols + kRowThreads - 1) / kRowThreads)),
      dim3(kRowThreads), 0, context.stream(), context.staging.Put(ids), context.staging.Put(begins),
      context.staging.Put(rows), RowsOf<const float>(args.dout), RowsOf<float>(args.dtable), args.dout.cols);
}

bool SwiGlu(Context& context, const SwiGluArgs& args) {
  if (args.h.rows == 0) return true;
  if (args.gate_up.dtype == DType::kBf16 && CastsInPass(args.h, args.cast, args.gate_up)) {
    const int64_t held = HeldBytes(args.h.cols);
    Launch(SwiGluCastKernel, dim3(static_cast<unsigned>(args.h.rows)), dim3(kRowThreads), held, context.stream(),
           RowsOf<const Bf16>(args.gate_up), RowsOf<Bf16>(args.h), held > 0, CastParamsOf(args.cast, args.h.cols));
    return true;
  }
  WithTypes(args.gate_up, args.h, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    WithWidth(
        [&](auto width) {
          constexpr int kN = width;
          LaunchForGroups<kN>(context, args.h.rows, args.h.cols,
                              SwiGluOp<In, Out, kN>{RowsOf<const In>(args.gate_up), args.h.cols, RowsOf<Out>(args.h)});
        },
        args.gate_up, args.h);
  });
  return args.cast.codes.empty();
}

void SwiGluBackward(Context& context, const SwiGluBackwardArgs& args) {
  WithTypes(args.gate_up, args.dh, [&](auto in, auto grad) {
    WithType(args.dgate_up, [&](auto out) {
      using In = decltype(in);
      using Grad = decltype(grad);
      using Out = decltype(out);
      WithWidth(
          [&](auto width) {
            constexpr int kN = width;
            LaunchForGroups<kN>(
                context, args.dh.rows, args.dh.cols,
                SwiGluBackwardOp<In, Grad, Out, kN>{RowsOf<const In>(args.gate_up), args.dh.cols,
                                                    RowsOf<const Grad>(args.dh), RowsOf<Out>(args.dgate_up)});
          },
          args.gate_up, args.dh, args.dgate_up);
    });
  });
}

void GatherRows(Context& context, const GatherRowsArgs& args) { CopyRows<false>(context, args.x, args.rows, args.y); }
void ScatterRows(Context& context, const ScatterRowsArgs& args) { CopyRows<true>(context, args.x, args.rows, args.y); }

void RowScales(Context& context, const RowScalesArgs& args) {
  WithType(args.x, [&](auto in) {
    using In = decltype(in);
    Launch(RowScalesKernel<In>, dim3(static_cast<unsigned>(args.x.rows)), dim3(kRowThreads), 0, context.stream(),
           RowsOf<const In>(args.x), args.x.cols, Vector(args.scale));
  });
}

void ScaleRows(Context& context, const ScaleRowsArgs& args) {
  WithTypes(args.x, args.y, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    WithWidth(
        [&](auto width) {
          constexpr int kN = width;
          LaunchForGroups<kN>(context, args.x.rows, args.x.cols,
                              ScaleRowsOp<In, Out, kN>{RowsOf<const In>(args.x), Vector(args.scale), args.divide,
                                                       args.accumulate, RowsOf<Out>(args.y)});
        },
        args.x, args.y);
  });
}

void Lerp(Context& context, const TensorView& x, float alpha, const TensorView& y) {
  WithType(x, [&](auto in) {
    using In = decltype(in);
    WithWidth(
        [&](auto width) {
          constexpr int kN = width;
          LaunchForGroups<kN>(context, 1, y.cols, LerpOp<In, kN>{RowsOf<const In>(x), alpha, RowsOf<float>(y)});
        },
        x, y);
  });
}

void Cast(Context& context, const TensorView& x, const TensorView& y) {
  WithStored(x, y, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    WithWidth(
        [&](auto width) {
          constexpr int kN = width;
          LaunchForGroups<kN>(context, x.rows, x.cols, CastOp<In, Out, kN>{RowsOf<const In>(x), RowsOf<Out>(y)});
        },
        x, y);
  });
}

void Fill(Context& context, const TensorView& x, float value) {
  const auto fill = [&](auto element) {
    using T = decltype(element);
    LaunchForGroups<1>(context, x.rows, x.cols, FillOp<T>{RowsOf<T>(x), element});
  };
  switch (x.dtype) {
    case DType::kF32: return fill(value);
    case DType::kBf16: return fill(Bf16(value));
    case DType::kF16: return fill(FloatToHalf(value));
    case DType::kI32: return fill(static_cast<int32_t>(value));
    default: QUERN_CHECK(value == 0, DTypeName(x.dtype)); return fill(uint8_t{0});
  }
}

void Transpose(Context& context, const TensorView& x, const TensorView& y) {
  QUERN_CHECK(x.rows == y.cols && x.cols == y.rows && x.dtype == y.dtype);
  switch (DTypeSize(x.dtype)) {
    case 1: return TransposeAs<uint8_t>(context, x, y);
    case 2: return TransposeAs<uint16_t>(context, x, y);
    default: return TransposeAs<uint32_t>(context, x, y);
  }
}

}  // namespace quern::cuda
