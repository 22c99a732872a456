#include <cstring>

#include "compute/cpu/cpu_ops.h"

namespace quern {

namespace {
void CopyRow(const TensorView& from, int64_t from_row, const TensorView& to, int64_t to_row) {
  QUERN_CHECK(from.dtype == to.dtype && from.cols == to.cols);
  QUERN_CHECK(from_row >= 0 && from_row < from.rows && to_row >= 0 && to_row < to.rows);
  std::memcpy(to.Row<uint8_t>(to_row), from.Row<uint8_t>(from_row),
              static_cast<size_t>(from.cols * DTypeSize(from.dtype)));
}
}  // namespace

void CpuOps::GatherRows(const GatherRowsArgs& args) {
  for (size_t i = 0; i < args.rows.size(); ++i) CopyRow(args.x, args.rows[i], args.y, static_cast<int64_t>(i));
}

void CpuOps::ScatterRows(const ScatterRowsArgs& args) {
  for (size_t i = 0; i < args.rows.size(); ++i) CopyRow(args.x, static_cast<int64_t>(i), args.y, args.rows[i]);
}

}  // namespace quern
