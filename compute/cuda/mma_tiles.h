#pragma once

#include "compute/cuda/device.h"

// Tiles of bf16 rows in shared memory as operands of Mma. A row of kDim elements is cut into pieces of 16 bytes, and
// piece i of row r lies at i ^ (r % 8), so that the eight rows that a matrix is read from lie in different banks.

namespace quern::cuda {

template <int kDim>
__device__ __forceinline__ Bf16* Piece(Bf16* tile, int row, int piece) {
  return tile + row * kDim + (piece ^ (row % 8)) * 8;
}

// a[16, 16] of the tile's rows from `row` on and columns from 16 * step.
template <int kDim>
__device__ __forceinline__ void LoadA(uint32_t (&a)[4], Bf16* tile, int row, int step) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  LoadMatrices(a, Piece<kDim>(tile, row + lane / 8 % 2 * 8 + lane % 8, 2 * step + lane / 16));
}

// b[16, 16] = transposed tile: its columns are the tile's rows from `row` on, its rows the tile's columns from
// 16 * step. b[0], b[1] are the first eight columns', b[2], b[3] the others'.
template <int kDim>
__device__ __forceinline__ void LoadB(uint32_t (&b)[4], Bf16* tile, int row, int step) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  LoadMatrices(b, Piece<kDim>(tile, row + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
}

// b[16, 16] = the tile's rows from `row` on, columns from 16 * step.
template <int kDim>
__device__ __forceinline__ void LoadBPlain(uint32_t (&b)[4], Bf16* tile, int row, int step) {
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  LoadMatricesTransposed(b, Piece<kDim>(tile, row + lane / 8 % 2 * 8 + lane % 8, 2 * step + lane / 16));
}

// Two neighbouring 16x8 results as the left operand of the next product.
__device__ __forceinline__ void AsA(uint32_t (&a)[4], const float (&left)[4], const float (&right)[4]) {
  a[0] = PackBf16(left[0], left[1]);
  a[1] = PackBf16(left[2], left[3]);
  a[2] = PackBf16(right[0], right[1]);
  a[3] = PackBf16(right[2], right[3]);
}

// Starts copying `rows` rows of kDim elements, those from `valid` on as zeros.
template <int kDim, int kThreads>
__device__ __forceinline__ void CopyTile(Bf16* tile, const Bf16* from, int64_t stride, int rows, int64_t valid) {
  constexpr int kPieces = kDim / 8;
  for (int i = static_cast<int>(threadIdx.x); i < rows * kPieces; i += kThreads) {
    const int row = i / kPieces, piece = i % kPieces;
    const bool there = row < valid;
    CopyAsync(Piece<kDim>(tile, row, piece), from + (there ? row * stride + piece * 8 : 0), there ? 16 : 0);
  }
}

}  // namespace quern::cuda
