#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "base/strings.h"
#include "compute/cpu/cpu_ops.h"
#include "compute/cpu/gemm.h"
#include "compute/cpu/kernels.h"
#include "compute/cpu/packed.h"

// The FP8 operations of the CPU backend.

namespace quern {

namespace {

constexpr int64_t kElementChunk = 16384;
constexpr int64_t kCastChunk = 8192;     // elements: a microsecond or two
constexpr int64_t kDecodeChunk = 65536;  // fewer than these are not worth a second thread
constexpr int64_t kColumnChunk = 64;
constexpr float kLeastAmax = 1e-30f;  // of moments: below, their scale's inverse would overflow

bool IsAct(const TensorView& view) { return view.dtype == DType::kF32 || view.dtype == DType::kBf16; }

int64_t RowsOf(int64_t elements, int64_t cols) { return std::max<int64_t>(1, elements / std::max<int64_t>(1, cols)); }

void CheckVector(const TensorView& view, int64_t cols, const char* what) {
  QUERN_CHECK(view.dtype == DType::kF32 && view.rows == 1 && view.cols == cols && !view.empty(),
              StrCat(what, " is ", DTypeName(view.dtype), " [", view.rows, ", ", view.cols, "], expected fp32 [1, ",
                     cols, "]"));
}

float PowerOfTwo(int exponent) { return std::ldexp(1.0f, exponent); }

// What codes are multiplied with, by a largest magnitude's bits.
float ScaleFor(uint32_t amax_bits, const Fp8Format& format) {
  if (amax_bits >= 0x7f800000u) return std::numeric_limits<float>::quiet_NaN();
  return PowerOfTwo(-PowerOfTwoExponent(std::bit_cast<float>(amax_bits), format.max));
}

void RaiseTo(const TensorView& amax, uint32_t bits) {
  float& value = *amax.Row<float>(0);
  value = std::bit_cast<float>(std::max(std::bit_cast<uint32_t>(value), bits));
}

}  // namespace

void CpuOps::Quantize(const QuantizeArgs& args) {
  using Scale = QuantizeArgs::Scale;
  const int64_t rows = args.x.rows, cols = args.x.cols;
  QUERN_CHECK(IsAct(args.x) && IsFp8(args.format.dtype) && args.codes.dtype == args.format.dtype &&
              args.codes.rows == rows && args.codes.cols == cols);
  CheckVector(args.scale, args.rule == Scale::kRow ? rows : 1, "scale");
  if (!args.column_scale.empty()) CheckVector(args.column_scale, cols, "column_scale");
  if (!args.amax.empty()) CheckVector(args.amax, 1, "amax");
  if (rows == 0) return;
  const int64_t chunk = RowsOf(kCastChunk, cols), chunks = (rows + chunk - 1) / chunk;
  float* scale = args.scale.Row<float>(0);
  std::vector<uint32_t> most(static_cast<size_t>(chunks), 0);
  const auto for_rows = [&](auto body) {
    pool_->ParallelFor(chunks, [&](int64_t i) {
      for (int64_t row = i * chunk; row < std::min(rows, (i + 1) * chunk); ++row) body(row, static_cast<size_t>(i));
    });
  };
  const auto find_amax = [&](int64_t row, size_t i) {
    const uint32_t bits = kernels_->row_amax(args.x, args.column_scale, row);
    most[i] = std::max(most[i], bits);
    return bits;
  };
  if (args.rule == Scale::kTensor) {
    for_rows([&](int64_t row, size_t i) { find_amax(row, i); });
    *scale = ScaleFor(*std::max_element(most.begin(), most.end()), args.format);
  }
  std::vector<int32_t> counts(args.counts.empty() ? 0 : static_cast<size_t>(2 * chunks), 0);
  for_rows([&](int64_t row, size_t i) {
    if (args.rule == Scale::kRow) {
      scale[row] = ScaleFor(find_amax(row, i), args.format);
    } else if (args.rule == Scale::kGiven && !args.amax.empty()) {
      find_amax(row, i);
    }
    const float own = scale[args.rule == Scale::kRow ? row : 0];
    kernels_->quantize_row(args, row, 1.0f / own, counts.empty() ? nullptr : counts.data() + 2 * i);
  });
  if (!args.amax.empty()) RaiseTo(args.amax, *std::max_element(most.begin(), most.end()));
  for (size_t i = 0; i < counts.size(); ++i) args.counts.Row<int32_t>(0)[i % 2] += counts[i];
}

// Whether CastRows does all that a cast asks for: a row's codes are its own affair.
bool CpuOps::CastsByRows(const OutputCast& cast) {
  return !cast.codes.empty() && cast.rule == QuantizeArgs::Scale::kRow && cast.amax.empty() && cast.counts.empty();
}

void CpuOps::CastRows(const OutputCast& cast, const TensorView& output, int64_t begin, int64_t end) const {
  QuantizeArgs args = cast;
  args.x = output;
  for (int64_t row = begin; row < end; ++row) {
    const float scale = ScaleFor(kernels_->row_amax(args.x, args.column_scale, row), args.format);
    args.scale.Row<float>(0)[row] = scale;
    kernels_->quantize_row(args, row, 1.0f / scale, nullptr);
  }
}

void CpuOps::Dequantize(const DequantizeArgs& args) {
  const int64_t rows = args.codes.rows, cols = args.codes.cols;
  QUERN_CHECK(IsFp8(args.codes.dtype) && IsAct(args.y) && args.y.rows == rows && args.y.cols == cols);
  CheckVector(args.scale, args.scale.cols == 1 ? 1 : rows, "scale");
  if (!args.column_scale.empty()) CheckVector(args.column_scale, cols, "column_scale");
  const int64_t chunk = RowsOf(kDecodeChunk, cols);
  pool_->ParallelFor((rows + chunk - 1) / chunk,
                     [&](int64_t i) { kernels_->dequantize(args, i * chunk, std::min(rows, (i + 1) * chunk)); });
}

void CpuOps::ColumnAmax(const ColumnAmaxArgs& args) {
  QUERN_CHECK(IsAct(args.x));
  CheckVector(args.amax, args.x.cols, "amax");
  pool_->ParallelFor((args.x.cols + kColumnChunk - 1) / kColumnChunk, [&](int64_t i) {
    kernels_->column_amax(args, i * kColumnChunk, std::min(args.x.cols, (i + 1) * kColumnChunk));
  });
}

void CpuOps::PackFp8(const PackArgs& args) {
  const Arena::Scope scope(scratch_);
  const int64_t rows = args.weight.rows, cols = args.weight.cols;
  TensorView weight = args.weight;
  if (!IsAct(weight)) {
    weight = scratch_.New(DType::kF32, rows, cols);
    Cast(args.weight, weight);
  }
  const TensorView codes = scratch_.New(args.format.dtype, rows, cols);
  const int64_t outputs = args.transposed ? cols : rows;
  // Of the outputs: what codes are multiplied with.
  const TensorView scale = scratch_.New(DType::kF32, 1, outputs);
  float* scales = scale.Row<float>(0);
  QUERN_CHECK(args.input_scale.empty() || !args.transposed || !args.scale.empty());
  if (!args.scale.empty()) {
    Quantize({.x = weight,
              .column_scale = args.input_scale,
              .format = args.format,
              .rule = QuantizeArgs::Scale::kGiven,
              .codes = codes,
              .scale = args.scale});
    const float given = *args.scale.Row<float>(0);
    for (int64_t i = 0; i < outputs; ++i)
      scales[i] = args.transposed && !args.input_scale.empty() ? given / args.input_scale.Row<float>(0)[i] : given;
  } else if (!args.transposed) {
    Quantize({.x = weight, .column_scale = args.input_scale, .format = args.format, .codes = codes, .scale = scale});
  } else {
    // A column's scale, applied before the cast and taken off after it.
    const TensorView column = scratch_.New(DType::kF32, 1, cols), one = scratch_.New(DType::kF32, 1, 1);
    Fill(column, 0);
    Fill(one, 1);
    ColumnAmax({.x = weight, .amax = column});
    float* factor = column.Row<float>(0);
    for (int64_t i = 0; i < cols; ++i) {
      scales[i] = ScaleFor(std::bit_cast<uint32_t>(factor[i]), args.format);
      factor[i] = 1.0f / scales[i];
    }
    Quantize({.x = weight,
              .column_scale = column,
              .format = args.format,
              .rule = QuantizeArgs::Scale::kGiven,
              .codes = codes,
              .scale = one});
  }
  auto& out = static_cast<cpu::CpuPackedMatrix&>(*args.out);
  QUERN_CHECK(args.format.dtype == out.dtype());
  if (out.has_codes()) return cpu::PackCodes(codes, scales, args.transposed, out, *pool_);
  // E5M2
  const TensorView values = scratch_.New(DType::kBf16, rows, cols);
  const TensorView row_scale = scratch_.New(DType::kF32, 1, rows), column_scale = scratch_.New(DType::kF32, 1, cols);
  Fill(row_scale, 1);
  Fill(column_scale, 1);
  for (int64_t i = 0; i < outputs; ++i) {
    if (args.transposed) {
      column_scale.Row<float>(0)[i] = 1.0f / scales[i];
    } else {
      row_scale.Row<float>(0)[i] = scales[i];
    }
  }
  Dequantize({.codes = codes, .scale = row_scale, .column_scale = column_scale, .y = values});
  cpu::Pack({.weight = values, .transposed = args.transposed, .out = args.out}, *pool_);
}

void CpuOps::AdamWFp8(const AdamWArgs& args) {
  const int64_t count = args.param.cols;
  const int64_t block = args.block > 0 ? args.block : std::max<int64_t>(1, count);
  const int64_t blocks = (count + block - 1) / block;
  QUERN_CHECK(args.m.dtype == DType::kE4M3 && args.v.dtype == DType::kE5M2 && IsAct(args.param));
  QUERN_CHECK(args.m.cols == count && args.v.cols == count);
  CheckVector(args.m_scale, blocks, "m_scale");
  CheckVector(args.v_scale, blocks, "v_scale");
  float* m_scale = args.m_scale.Row<float>(0);
  float* v_scale = args.v_scale.Row<float>(0);
  const auto held = [](cpu::MomentAmax amax) {
    return cpu::MomentAmax{std::max(amax.m, kLeastAmax), std::max(amax.v, kLeastAmax)};
  };
  const auto set_scales = [&](int64_t i, const cpu::MomentAmax& amax) {
    m_scale[i] = amax.m / kE4M3.max;
    v_scale[i] = amax.v / kE5M2.max;
  };
  if (block <= kElementChunk) {
    const int64_t per_chunk = kElementChunk / block;
    pool_->ParallelFor((blocks + per_chunk - 1) / per_chunk, [&](int64_t chunk) {
      for (int64_t i = chunk * per_chunk; i < std::min(blocks, (chunk + 1) * per_chunk); ++i) {
        const int64_t begin = i * block, end = std::min(count, begin + block);
        cpu::MomentAmax amax;
        kernels_->adamw_amax(args, begin, end, &amax);
        amax = held(amax);
        kernels_->adamw_fp8(args, begin, end, amax);
        set_scales(i, amax);
      }
    });
    return;
  }
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t begin = i * block, end = std::min(count, begin + block);
    const int64_t pieces = (end - begin + kElementChunk - 1) / kElementChunk;
    const auto for_pieces = [&](auto body) {
      pool_->ParallelFor(pieces, [&](int64_t piece) {
        const int64_t from = begin + piece * kElementChunk;
        body(piece, from, std::min(end, from + kElementChunk));
      });
    };
    std::vector<cpu::MomentAmax> parts(static_cast<size_t>(pieces));
    for_pieces([&](int64_t piece, int64_t from, int64_t to) {
      kernels_->adamw_amax(args, from, to, &parts[static_cast<size_t>(piece)]);
    });
    cpu::MomentAmax amax;
    for (const cpu::MomentAmax& part : parts) amax = {std::max(amax.m, part.m), std::max(amax.v, part.v)};
    amax = held(amax);
    for_pieces([&](int64_t, int64_t from, int64_t to) { kernels_->adamw_fp8(args, from, to, amax); });
    set_scales(i, amax);
  }
}

}  // namespace quern
