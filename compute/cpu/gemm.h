#pragma once

#include <memory>

#include "base/thread_pool.h"
#include "compute/arena.h"
#include "compute/cpu/cpu_features.h"
#include "compute/ops.h"

// Matrix products of the CPU backend. Every element of a product is one chain of operations over k in increasing order
// (for very long k, chains of fixed pieces of it), the same whatever the number of rows, the other rows, the tile it
// falls into and the threads: a row of a batch is bit-equal to that row alone. Instruction sets differ from each other
// in the last bits.

namespace quern::cpu {

struct FormatKernels;
struct GemmKernels;
class CpuPackedMatrix;

// The kernels of one instruction set (at most BestIsa()).
const GemmKernels& KernelsFor(Isa isa);
inline const GemmKernels& ActiveKernels() { return KernelsFor(ActiveIsa()); }

// dtype kF32 or kBf16. The matrix remembers its kernels; MatMul uses them.
std::unique_ptr<PackedMatrix> NewPacked(DType dtype, int64_t k, int64_t n,
                                        const GemmKernels& kernels = ActiveKernels());

// Rounds to nearest even where the packed dtype is narrower than the source.
void Pack(const PackArgs& args, ThreadPool& pool);

// a has the packed matrix's dtype; c is fp32 or bf16, not overlapping a. c = a * b + bias, or c += a * b + bias.
void MatMul(const MatMulArgs& args, ThreadPool& pool, Arena& scratch);

// The same product a piece at a time, for callers that use a piece while it is in the caches. Of args.c only the dtype
// matters. What `scratch` gives must last as long as the product. Panels() is thread-safe.
class Product {
 public:
  Product(const MatMulArgs& args, ThreadPool& pool, Arena& scratch);
  // c: rows [row, row + rows) of panels [panel, end). The panel `after` is asked for towards the end.
  void Panels(int64_t row, int64_t rows, int64_t panel, int64_t end, int64_t after, const TensorView& c) const;
  int64_t chain_bytes() const { return chain_ * a_word_bytes_; }  // of a row of a that is one chain

 private:
  const MatMulArgs& args_;
  TensorView a_;  // as the kernels read it
  const CpuPackedMatrix& b_;
  const FormatKernels& format_;
  int64_t panel_cols_, panels_;
  int64_t a_word_bytes_ = 4;
  int64_t chain_ = 0;  // words
  bool half_word_ = false, decodes_ = false;
};

// dy and x share a dtype, fp32 or bf16. Tokens are summed in blocks at fixed boundaries, each block a chain from zero.
void MatMulGradWeight(const MatMulGradWeightArgs& args, ThreadPool& pool, Arena& scratch,
                      const GemmKernels& kernels = ActiveKernels());

}  // namespace quern::cpu
