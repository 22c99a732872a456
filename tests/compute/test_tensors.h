#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/random.h"
#include "compute/kv_layout.h"
#include "compute/tensor.h"
#include "tests/reference_ops.h"

namespace quern {

// Normal numbers times `scale`, rounded to `dtype`.
inline Tensor RandomTensor(DType dtype, int64_t rows, int64_t cols, uint64_t seed, double scale = 1) {
  Tensor out(dtype, rows, cols);
  Random random(seed);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) SetElement(out, r, c, scale * random.Normal());
  return out;
}

// A copy in another dtype.
inline Tensor As(DType dtype, const TensorView& x) {
  Tensor out(dtype, x.rows, x.cols);
  for (int64_t r = 0; r < x.rows; ++r)
    for (int64_t c = 0; c < x.cols; ++c) SetElement(out, r, c, GetElement(x, r, c));
  return out;
}

// A matrix whose rows are `padding` elements apart; the padding holds a mark that Intact() looks for.
class PaddedTensor {
 public:
  PaddedTensor(const TensorView& x, int64_t padding) : cols_(x.cols), storage_(x.dtype, x.rows, x.cols + padding) {
    for (int64_t r = 0; r < x.rows; ++r)
      for (int64_t c = 0; c < x.cols + padding; ++c)
        SetElement(storage_, r, c, c < x.cols ? GetElement(x, r, c) : kMark);
  }
  TensorView view() const { return storage_.view().Cols(0, cols_); }
  operator TensorView() const { return view(); }  // NOLINT
  bool Intact() const {
    for (int64_t r = 0; r < storage_.rows(); ++r)
      for (int64_t c = cols_; c < storage_.cols(); ++c)
        if (GetElement(storage_, r, c) != kMark) return false;
    return true;
  }

 private:
  static constexpr double kMark = 1536;
  int64_t cols_;
  Tensor storage_;
};

// Largest |actual - expected| / (absolute + relative |expected|): at most 1 when within tolerance. NaN anywhere is
// infinite.
inline double WorstError(const TensorView& actual, const TensorView& expected, double absolute, double relative) {
  EXPECT_EQ(actual.rows, expected.rows);
  EXPECT_EQ(actual.cols, expected.cols);
  double worst = 0;
  for (int64_t r = 0; r < expected.rows; ++r) {
    for (int64_t c = 0; c < expected.cols; ++c) {
      const double want = GetElement(expected, r, c);
      const double error = std::abs(GetElement(actual, r, c) - want) / (absolute + relative * std::abs(want));
      if (std::isnan(error)) return std::numeric_limits<double>::infinity();
      worst = std::max(worst, error);
    }
  }
  return worst;
}

inline bool BitEqual(const TensorView& a, const TensorView& b) {
  if (a.dtype != b.dtype || a.rows != b.rows || a.cols != b.cols) return false;
  for (int64_t r = 0; r < a.rows; ++r)
    if (std::memcmp(a.Row<uint8_t>(r), b.Row<uint8_t>(r), static_cast<size_t>(a.cols * DTypeSize(a.dtype))) != 0)
      return false;
  return true;
}

// Pages for sequences of given lengths, filled with NaN: what was never written must not be read.
class TestPages {
 public:
  TestPages(const KvLayout& layout, const std::vector<int64_t>& lengths) {
    for (const int64_t length : lengths) {
      std::vector<void*> table;
      for (int64_t p = 0; p < length; p += KvLayout::kPageTokens) {
        pages_.emplace_back(layout.dtype, 1, layout.page_elements());
        for (int64_t i = 0; i < layout.page_elements(); ++i)
          SetElement(pages_.back(), 0, i, std::numeric_limits<double>::quiet_NaN());
        table.push_back(pages_.back().view().data);
      }
      tables_.push_back(std::move(table));
    }
  }
  void* const* Table(size_t sequence) const { return tables_[sequence].data(); }
  // All rows of all sequences, one after another, from position 0.
  std::vector<SequenceRows> AllRows(const std::vector<int64_t>& lengths) const {
    std::vector<SequenceRows> out;
    int64_t row = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
      out.push_back({.row = row, .count = lengths[s], .context = 0, .pages = Table(s)});
      row += lengths[s];
    }
    return out;
  }

 private:
  std::vector<Tensor> pages_;
  std::vector<std::vector<void*>> tables_;
};

}  // namespace quern
