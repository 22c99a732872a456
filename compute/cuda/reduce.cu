#include <algorithm>

#include "compute/cuda/rows.h"

// Sums over rows are cut into pieces by size and added in order: no atomics on floats, and the same bits every time.

namespace quern::cuda {

namespace {

constexpr int64_t kPartialRows = 64;
constexpr int64_t kNormElements = 16384;

// One column of up to kPartialRows rows.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    ColumnSums(Rows<const T> x, int64_t rows, int64_t cols, Rows<float> partials) {
  const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (i >= cols) return;
  const int64_t begin = int64_t{blockIdx.y} * kPartialRows;
  const int64_t end = begin + kPartialRows < rows ? begin + kPartialRows : rows;
  float sum = 0;
  for (int64_t r = begin; r < end; ++r) sum += static_cast<float>(x.At(r)[i]);
  partials.At(blockIdx.y)[i] = sum;
}

__global__ void __launch_bounds__(kRowThreads)
    AddPartialsKernel(Rows<const float> partials, int64_t rows, int64_t cols, float* out) {
  const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (i >= cols) return;
  float sum = out[i];
  for (int64_t r = 0; r < rows; ++r) sum += partials.At(r)[i];
  out[i] = sum;
}

// Integers may be raised in any order: the bits of magnitudes are ordered as the magnitudes are.
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    ColumnAmaxKernel(Rows<const T> x, int64_t rows, int64_t cols, uint32_t* amax) {
  const int64_t i = int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (i >= cols) return;
  const int64_t begin = int64_t{blockIdx.y} * kPartialRows;
  const int64_t end = begin + kPartialRows < rows ? begin + kPartialRows : rows;
  uint32_t most = 0;
  for (int64_t r = begin; r < end; ++r) most = Max::Of(most, MagnitudeBits(static_cast<float>(x.At(r)[i])));
  atomicMax(amax + i, most);
}

__global__ void __launch_bounds__(kRowThreads)
    SquaredNormKernel(Rows<const float> x, int64_t cols, int64_t per_row, double* sums) {
  const float* row = x.At(blockIdx.x / per_row);
  const int64_t begin = blockIdx.x % per_row * kNormElements;
  const int64_t end = begin + kNormElements < cols ? begin + kNormElements : cols;
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kRowThreads) {
    const auto v = static_cast<double>(row[i]);
    sum += v * v;
  }
  sum = BlockReduce<Sum>(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

dim3 ColumnGrid(int64_t cols, int64_t rows) {
  const int64_t pieces = (rows + kPartialRows - 1) / kPartialRows;
  QUERN_CHECK(pieces <= 65535, "more rows than a launch has");
  return dim3(static_cast<unsigned>((cols + kRowThreads - 1) / kRowThreads), static_cast<unsigned>(pieces));
}

}  // namespace

void AddPartials(Context& context, const TensorView& partials, const TensorView& out) {
  Launch(AddPartialsKernel, dim3(static_cast<unsigned>((out.cols + kRowThreads - 1) / kRowThreads)), dim3(kRowThreads),
         0, context.stream(), RowsOf<const float>(partials), partials.rows, out.cols, Vector(out));
}

void BiasBackward(Context& context, const BiasBackwardArgs& args) {
  if (args.dy.rows == 0) return;
  const Arena::Scope scope(context.scratch);
  const dim3 grid = ColumnGrid(args.dy.cols, args.dy.rows);
  const TensorView partials = context.scratch.New(DType::kF32, grid.y, args.dy.cols);
  WithType(args.dy, [&](auto type) {
    using T = decltype(type);
    Launch(ColumnSums<T>, grid, dim3(kRowThreads), 0, context.stream(), RowsOf<const T>(args.dy), args.dy.rows,
           args.dy.cols, RowsOf<float>(partials));
  });
  AddPartials(context, partials, args.dbias);
}

void ColumnAmax(Context& context, const ColumnAmaxArgs& args) {
  WithType(args.x, [&](auto type) {
    using T = decltype(type);
    Launch(ColumnAmaxKernel<T>, ColumnGrid(args.x.cols, args.x.rows), dim3(kRowThreads), 0, context.stream(),
           RowsOf<const T>(args.x), args.x.rows, args.x.cols, static_cast<uint32_t*>(args.amax.data));
  });
}

double SquaredNorm(Context& context, const TensorView& x) {
  const int64_t per_row = (x.cols + kNormElements - 1) / kNormElements, count = x.rows * per_row;
  if (count == 0) return 0;
  const Arena::Scope scope(context.scratch);
  const TensorView sums = context.scratch.New(DType::kF64, 1, count);
  Launch(SquaredNormKernel, dim3(static_cast<unsigned>(count)), dim3(kRowThreads), 0, context.stream(),
         RowsOf<const float>(x), x.cols, per_row, static_cast<double*>(sums.data));
  const Tensor host(DType::kF64, 1, count);
  context.runtime.Download2D(sums, host);
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += host.Row<double>(0)[i];
  return total;
}

}  // namespace quern::cuda
