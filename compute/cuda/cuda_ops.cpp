#include "compute/cuda/cuda_ops.h"

#include <algorithm>
#include <limits>

#include "base/strings.h"
#include "compute/cuda/packed_size.h"
#include "compute/op_checks.h"

namespace quern {

namespace {

using cuda::kFp8Multiple;
using cuda::RoundUp;

// bf16 and fp32 as they were stored, [n, k] or [k, n]; FP8 always [n, k], padded with zeros to whole multiples of 16,
// with the scale of every output.
class CudaPackedMatrix : public PackedMatrix {
 public:
  CudaPackedMatrix(DType dtype, int64_t k, int64_t n, DeviceMemory* memory) : PackedMatrix(dtype, k, n) {
    const bool fp8 = IsFp8(dtype);
    QUERN_CHECK(dtype == DType::kF32 || dtype == DType::kBf16 || fp8, DTypeName(dtype));
    values_ = fp8 ? Tensor(dtype, RoundUp(n, kFp8Multiple), RoundUp(k, kFp8Multiple), memory)
                  : Tensor(dtype, 1, n * k, memory);
    if (fp8) scale_ = Tensor(DType::kF32, 1, RoundUp(n, kFp8Multiple), memory);
  }
  int64_t bytes() const override { return values_.bytes() + scale_.bytes(); }
  // [n, k], or [k, n] when transposed.
  TensorView values() const {
    if (IsFp8(dtype())) return {values_.view().data, dtype(), n(), k(), values_.cols()};
    const int64_t rows = transposed ? k() : n(), cols = transposed ? n() : k();
    return {values_.view().data, dtype(), rows, cols, cols};
  }
  TensorView scale() const { return scale_.view().Cols(0, IsFp8(dtype()) ? n() : 0); }
  bool whole() const { return n() % kFp8Multiple == 0 && k() % kFp8Multiple == 0; }

  bool transposed = false;
  bool one_scale = false;  // all outputs' scales are equal

 private:
  Tensor values_, scale_;
};

bool IsAligned(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && view.stride * DTypeSize(view.dtype) % 16 == 0;
}

}  // namespace

CudaOps::CudaOps(std::unique_ptr<cuda::Runtime> runtime, std::unique_ptr<cuda::Blas> blas, bool strict,
                 ThreadPool* pool)
    : runtime_(std::move(runtime)),
      blas_(std::move(blas)),
      strict_(strict),
      pool_(pool),
      recorder_(*runtime_),
      staging_(*runtime_),
      scratch_(runtime_.get(), cuda::kScratchBlock),
      context_{*runtime_, staging_, scratch_} {
  runtime_->set_recorder(&recorder_);
}

CudaOps::~CudaOps() {
  runtime_->Wait();
  runtime_->set_recorder(nullptr);
}

void CudaOps::Multiply(const cuda::Product& product) {
  if (!recorder_.recording()) return blas_->Multiply(product, strict_);
  cuda::Recorder::Entry entry;
  cuda::AppendIdentity(product, entry.identity);
  entry.queue = [this, product] { blas_->Multiply(product, strict_); };
  recorder_.Add(std::move(entry));
}

TensorView CudaOps::OnDevice(const TensorView& x) {
  if (x.rows * x.cols == 0 || runtime_->IsDevice(x.data)) return x;
  const TensorView copy = scratch_.New(x.dtype, x.rows, x.cols);
  runtime_->Upload2D(x, copy);
  return copy;
}

void CudaOps::Upload(const TensorView& host, const TensorView& x) {
  if (x.rows * x.cols == 0 || runtime_->IsDevice(x.data)) return runtime_->Upload2D(host, x);
  Ops::Upload(host, x);
}

void CudaOps::Download(const TensorView& x, const TensorView& host) {
  if (x.rows * x.cols == 0 || runtime_->IsDevice(x.data)) return runtime_->Download2D(x, host);
  Ops::Download(x, host);
}

std::unique_ptr<PackedMatrix> CudaOps::NewPacked(DType dtype, int64_t k, int64_t n) {
  return std::make_unique<CudaPackedMatrix>(dtype, k, n, runtime_.get());
}

void CudaOps::Pack(const PackArgs& args) {
  QUERN_CHECK(args.out != nullptr);
  auto& out = static_cast<CudaPackedMatrix&>(*args.out);
  QUERN_CHECK(args.weight.rows == (args.transposed ? out.k() : out.n()) &&
              args.weight.cols == (args.transposed ? out.n() : out.k()));
  if (IsFp8(out.dtype())) return PackFp8(args);
  out.transposed = args.transposed;
  Cast(args.weight, out.values());
}

// As the CPU's: the codes are those of the weight as it is stored; a transposed one is turned afterwards.
void CudaOps::PackFp8(const PackArgs& args) {
  auto& out = static_cast<CudaPackedMatrix&>(*args.out);
  const Arena::Scope scope(scratch_);
  const int64_t rows = args.weight.rows, cols = args.weight.cols;
  TensorView weight = OnDevice(args.weight);
  if (!IsAct(weight)) {
    const TensorView wide = scratch_.New(DType::kF32, rows, cols);
    Cast(weight, wide);
    weight = wide;
  }
  QUERN_CHECK(args.input_scale.empty() || !args.transposed || !args.scale.empty());
  const TensorView codes = args.transposed ? scratch_.New(args.format.dtype, rows, cols) : out.values();
  QUERN_CHECK(args.format.dtype == out.dtype());
  out.one_scale = false;
  QuantizeArgs quantize{.x = weight,
                        .column_scale = args.input_scale,
                        .format = args.format,
                        .rule = QuantizeArgs::Scale::kGiven,
                        .codes = codes,
                        .scale = args.scale};
  if (!args.scale.empty()) {
    Quantize(quantize);
    const TensorView ones = scratch_.New(DType::kF32, 1, out.n());
    Fill(ones, 1);
    const bool taken_off = args.transposed && !args.input_scale.empty();
    out.one_scale = !taken_off;
    cuda::DivideScale(context_, args.scale, taken_off ? args.input_scale : ones, out.scale());
  } else if (!args.transposed) {
    quantize.rule = QuantizeArgs::Scale::kRow;
    quantize.scale = out.scale();
    Quantize(quantize);
  } else {
    // A column's scale, applied before the cast.
    const TensorView amax = scratch_.New(DType::kF32, 1, cols), inverse = scratch_.New(DType::kF32, 1, cols);
    const TensorView one = scratch_.New(DType::kF32, 1, 1);
    Fill(amax, 0);
    Fill(one, 1);
    ColumnAmax({.x = weight, .amax = amax});
    cuda::ScalesFor(context_, amax, args.format, false, out.scale());
    cuda::ScalesFor(context_, amax, args.format, true, inverse);
    quantize.column_scale = inverse;
    quantize.scale = one;
    Quantize(quantize);
  }
  if (args.transposed) cuda::Transpose(context_, codes, out.values());
}

void CudaOps::Quantize(const QuantizeArgs& args) {
  const int64_t rows = args.x.rows, cols = args.x.cols;
  CheckAct(args.x, rows, cols, "x");
  QUERN_CHECK(rows == 0 || !args.codes.empty());
  CheckCast(args.x, args);
  cuda::Quantize(context_, args);
}

void CudaOps::Dequantize(const DequantizeArgs& args) {
  const int64_t rows = args.codes.rows, cols = args.codes.cols;
  QUERN_CHECK(IsFp8(args.codes.dtype));
  CheckAct(args.y, rows, cols, "y");
  CheckAcc(args.scale, 1, args.scale.cols == 1 ? 1 : rows, "scale");
  if (!args.column_scale.empty()) CheckAcc(args.column_scale, 1, cols, "column_scale");
  cuda::Dequantize(context_, args);
}

void CudaOps::ColumnAmax(const ColumnAmaxArgs& args) {
  CheckAct(args.x, args.x.rows, args.x.cols, "x");
  CheckAcc(args.amax, 1, args.x.cols, "amax");
  if (args.x.rows > 0) cuda::ColumnAmax(context_, args);
}

void CudaOps::MatMul(const MatMulArgs& args) {
  QUERN_CHECK(args.b != nullptr);
  const auto& b = static_cast<const CudaPackedMatrix&>(*args.b);
  const int64_t rows = args.a.rows;
  QUERN_CHECK(args.a.cols == b.k() && args.c.cols == b.n() && args.c.rows == rows);
  QUERN_CHECK(args.c.dtype == DType::kF32 || (args.c.dtype == DType::kBf16 && !args.accumulate));
  if (rows == 0 || b.n() == 0) return;
  const Arena::Scope scope(scratch_);
  const TensorView weight = b.values();
  cuda::Product p{.rows = rows,
                  .n = b.n(),
                  .k = b.k(),
                  .a = args.a.data,
                  .a_dtype = args.a.dtype,
                  .a_stride = args.a.stride,
                  .b = weight.data,
                  .b_dtype = weight.dtype,
                  .b_stride = weight.stride,
                  .b_transposed = b.transposed,
                  .d = args.c.data,
                  .d_dtype = args.c.dtype,
                  .d_stride = args.c.stride,
                  .accumulate = args.accumulate};
  const bool fp8 = IsFp8(b.dtype()) && blas_->has_fp8() && b.whole() && IsAligned(args.a);
  // One scale each, or one a row and an output.
  const bool one_scale = args.a_scale.cols == 1 && b.one_scale;
  const bool codes = fp8 && (one_scale || blas_->has_row_scales());
  if (!args.bias.empty()) {
    CheckAcc(args.bias, 1, b.n(), "bias");
    p.bias_dtype = codes ? DType::kBf16 : args.c.dtype;
    TensorView bias = args.bias;
    if (p.bias_dtype != DType::kF32) {
      bias = scratch_.New(p.bias_dtype, 1, b.n());
      Cast(args.bias, bias);
    }
    p.bias = bias.data;
  }
  if (!IsFp8(b.dtype())) {
    QUERN_CHECK(args.a.dtype == b.dtype(), StrCat(DTypeName(args.a.dtype), " times ", DTypeName(b.dtype())));
    return Multiply(p);
  }
  QUERN_CHECK(IsFp8(args.a.dtype));
  CheckAcc(args.a_scale, 1, args.a_scale.cols == 1 ? 1 : rows, "a_scale");
  if (codes) {
    TensorView a_scale = args.a_scale;
    if (!one_scale && a_scale.cols != rows) {
      a_scale = scratch_.New(DType::kF32, 1, rows);
      const TensorView ones = scratch_.New(DType::kF32, 1, rows);
      Fill(ones, 1);
      cuda::DivideScale(context_, args.a_scale, ones, a_scale);
    }
    p.a_scale = static_cast<const float*>(a_scale.data);
    p.a_scale_rows = !one_scale;
    p.b_scale = static_cast<const float*>(b.scale().data);
    p.b_scale_outputs = !one_scale;
    return Multiply(p);
  }
  // bf16 holds a code times its scale, so multiplying decoded values is multiplying codes and scaling the sum.
  const TensorView a = scratch_.New(DType::kBf16, rows, b.k()), decoded = scratch_.New(DType::kBf16, b.n(), b.k());
  Dequantize({.codes = args.a, .scale = args.a_scale, .y = a});
  Dequantize({.codes = weight, .scale = b.scale(), .y = decoded});
  p.a = a.data;
  p.b = decoded.data;
  p.a_dtype = p.b_dtype = DType::kBf16;
  p.a_stride = p.b_stride = b.k();
  Multiply(p);
}

void CudaOps::MatMulGradWeight(const MatMulGradWeightArgs& args) {
  const int64_t tokens = args.x.rows, n = args.dy.cols, k = args.x.cols;
  QUERN_CHECK(args.dy.rows == tokens && args.dw.rows == n && args.dw.cols == k && args.dw.dtype == DType::kF32);
  QUERN_CHECK(args.dy.dtype == args.x.dtype && IsAct(args.x));
  if (tokens == 0) return;
  Multiply({.rows = n,
            .n = k,
            .k = tokens,
            .a = args.dy.data,
            .a_dtype = args.dy.dtype,
            .a_stride = args.dy.stride,
            .a_transposed = true,
            .b = args.x.data,
            .b_dtype = args.x.dtype,
            .b_stride = args.x.stride,
            .b_transposed = true,
            .d = args.dw.data,
            .d_dtype = DType::kF32,
            .d_stride = args.dw.stride,
            .accumulate = true});
}

void CudaOps::BiasBackward(const BiasBackwardArgs& args) {
  CheckArgs(args);
  cuda::BiasBackward(context_, args);
}
void CudaOps::Embedding(const EmbeddingArgs& args) {
  CheckArgs(args);
  cuda::Embedding(context_, args);
}
void CudaOps::EmbeddingBackward(const EmbeddingBackwardArgs& args) {
  CheckArgs(args);
  cuda::EmbeddingBackward(context_, args);
}
void CudaOps::RmsNorm(const RmsNormArgs& args) {
  CheckArgs(args);
  CheckCast(args.y, args.cast);
  if (!cuda::RmsNorm(context_, args)) CastOutput(*this, args.y, args.cast);
}
void CudaOps::RmsNormBackward(const RmsNormBackwardArgs& args) {
  CheckArgs(args);
  cuda::RmsNormBackward(context_, args);
}
void CudaOps::Rotary(const RotaryArgs& args) {
  CheckArgs(args);
  if (args.pages != nullptr) CheckArgs(PagesOf(args));
  if (!cuda::Rotary(context_, args)) WritePages(*this, args);
}
void CudaOps::RotaryBackward(const RotaryBackwardArgs& args) {
  CheckArgs(args);
  cuda::RotaryBackward(context_, args);
}
void CudaOps::KvWrite(const KvWriteArgs& args) {
  CheckArgs(args);
  cuda::KvWrite(context_, args);
}
void CudaOps::Attention(const AttentionArgs& args) {
  CheckArgs(args);
  cuda::Attention(context_, args);
}
void CudaOps::AttentionBackward(const AttentionBackwardArgs& args) {
  CheckArgs(args);
  cuda::AttentionBackward(context_, args);
}
void CudaOps::SwiGlu(const SwiGluArgs& args) {
  CheckArgs(args);
  CheckCast(args.h, args.cast);
  if (!cuda::SwiGlu(context_, args)) CastOutput(*this, args.h, args.cast);
}
void CudaOps::SwiGluBackward(const SwiGluBackwardArgs& args) {
  CheckArgs(args);
  cuda::SwiGluBackward(context_, args);
}
void CudaOps::LogSoftmax(const LogSoftmaxArgs& args) {
  CheckArgs(args);
  cuda::LogSoftmax(context_, args);
}
void CudaOps::Draw(const DrawArgs& args) {
  CheckArgs(args);
  if (args.a.rows == 0) return;
  const Arena::Scope scope(scratch_);
  const TensorView logits = scratch_.New(DType::kF32, args.a.rows, args.b->n());
  MatMul({.a = args.a, .b = args.b, .c = logits, .bias = {}});
  if (args.never >= 0) cuda::Fill(context_, logits.Cols(args.never, 1), -std::numeric_limits<float>::infinity());
  cuda::DrawIds(context_, args, logits);
  cuda::LogProbs(context_, logits, args.ids, args.log_prob);
}
void CudaOps::LogSoftmaxBackward(const LogSoftmaxBackwardArgs& args) {
  CheckArgs(args);
  cuda::LogSoftmaxBackward(context_, args);
}
void CudaOps::MaxRatio(const MaxRatioArgs& args) {
  CheckArgs(args);
  cuda::MaxRatio(context_, args);
}

void CudaOps::RowScales(const RowScalesArgs& args) {
  CheckArgs(args);
  cuda::RowScales(context_, args);
}
void CudaOps::ScaleRows(const ScaleRowsArgs& args) {
  CheckArgs(args);
  cuda::ScaleRows(context_, args);
}
void CudaOps::QuerySquares(const QuerySquaresArgs& args) {
  CheckArgs(args);
  cuda::QuerySquares(context_, args);
}
void CudaOps::KeySquares(const KeySquaresArgs& args) {
  CheckArgs(args);
  cuda::KeySquares(context_, args);
}
void CudaOps::CopySlots(const CopySlotsArgs& args) {
  CheckArgs(args);
  cuda::CopySlots(context_, args);
}

void CudaOps::GatherRows(const GatherRowsArgs& args) {
  QUERN_CHECK(args.x.dtype == args.y.dtype && args.x.cols == args.y.cols &&
              args.y.rows == static_cast<int64_t>(args.rows.size()));
  for (const int64_t row : args.rows) QUERN_CHECK(row >= 0 && row < args.x.rows, StrCat("row ", row));
  cuda::GatherRows(context_, args);
}

void CudaOps::ScatterRows(const ScatterRowsArgs& args) {
  QUERN_CHECK(args.x.dtype == args.y.dtype && args.x.cols == args.y.cols &&
              args.x.rows == static_cast<int64_t>(args.rows.size()));
  for (const int64_t row : args.rows) QUERN_CHECK(row >= 0 && row < args.y.rows, StrCat("row ", row));
  cuda::ScatterRows(context_, args);
}

void CudaOps::AdamW(const AdamWArgs& args) {
  const int64_t count = args.param.cols;
  CheckAct(args.param, 1, count, "param");
  CheckAcc(args.grad, 1, count, "grad");
  QUERN_CHECK(args.step >= 1);
  if (IsFp8(args.m.dtype)) {
    const int64_t block = args.block > 0 ? args.block : std::max<int64_t>(1, count);
    QUERN_CHECK(args.m.dtype == DType::kE4M3 && args.v.dtype == DType::kE5M2);
    QUERN_CHECK(args.m.cols == count && args.v.cols == count);
    CheckAcc(args.m_scale, 1, (count + block - 1) / block, "m_scale");
    CheckAcc(args.v_scale, 1, (count + block - 1) / block, "v_scale");
  } else {
    CheckAcc(args.m, 1, count, "m");
    CheckAcc(args.v, 1, count, "v");
  }
  cuda::AdamW(context_, args);
}

double CudaOps::SquaredNorm(const TensorView& x) {
  CheckAcc(x, x.rows, x.cols, "x");
  return cuda::SquaredNorm(context_, x);
}

void CudaOps::Lerp(const TensorView& x, float alpha, const TensorView& y) {
  CheckAct(x, 1, x.cols, "x");
  CheckAcc(y, 1, x.cols, "y");
  cuda::Lerp(context_, x, alpha, y);
}

void CudaOps::Cast(const TensorView& x, const TensorView& y) {
  QUERN_CHECK(x.rows == y.rows && x.cols == y.cols, StrCat("cast of ", Shape(x), " to ", Shape(y)));
  if (x.rows * x.cols == 0) return;
  const Arena::Scope scope(scratch_);
  const TensorView from = OnDevice(x);
  const bool here = runtime_->IsDevice(y.data);
  const TensorView to = here ? y : scratch_.New(y.dtype, y.rows, y.cols);
  cuda::Cast(context_, from, to);
  if (!here) runtime_->Download2D(to, y);
}

void CudaOps::Fill(const TensorView& x, float value) {
  if (x.rows * x.cols == 0) return;
  if (runtime_->IsDevice(x.data)) return cuda::Fill(context_, x, value);
  const Arena::Scope scope(scratch_);
  const TensorView filled = scratch_.New(x.dtype, x.rows, x.cols);
  cuda::Fill(context_, filled, value);
  runtime_->Download2D(filled, x);
}

void CudaOps::Add(const TensorView& x, const TensorView& y) {
  CheckAcc(x, 1, x.cols, "x");
  CheckAcc(y, 1, x.cols, "y");
  if (x.cols > 0) cuda::AddPartials(context_, x, y);
}

void CudaOps::ForEach(int64_t count, const std::function<void(int64_t)>& body) {
  if (pool_ == nullptr) return Ops::ForEach(count, body);
  pool_->ParallelFor(count, body);
}

}  // namespace quern
