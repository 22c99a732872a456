#include "learner/moments.h"

#include <utility>

#include "base/check.h"

namespace quern {

Moments::Extent Moments::ExtentOf(const ParameterLayout& layout, const OptimizerMemory& memory, size_t count) {
  Extent extent;
  for (size_t i = 0; i < count; ++i) {
    const ParameterInfo& info = layout.parameters()[i];
    const int64_t elements = info.rows * info.cols;
    extent.elements += elements;
    if (!memory.fp8_moments) continue;
    if (info.decay) {
      extent.scales += memory.block > 0 ? (elements + memory.block - 1) / memory.block : 1;
    } else {
      extent.vectors += elements;
    }
  }
  return extent;
}

Moments::Moments(Ops& ops, const ParameterLayout& layout, DType acc, const OptimizerMemory& memory, size_t first,
                 size_t last)
    : ops_(ops),
      memory_(memory),
      begin_(ExtentOf(layout, memory, first)),
      all_(ExtentOf(layout, memory, layout.parameters().size())) {
  const bool fp8 = memory.fp8_moments;
  const Extent end = ExtentOf(layout, memory, last);
  first_ = Tensor(fp8 ? DType::kE4M3 : acc, 1, end.elements - begin_.elements, ops.memory());
  second_ = Tensor(fp8 ? DType::kE5M2 : acc, 1, end.elements - begin_.elements, ops.memory());
  scales_ = Tensor(acc, 2, end.scales - begin_.scales, ops.memory());
  vectors_ = Tensor(acc, 2, end.vectors - begin_.vectors, ops.memory());
  Extent at = begin_;
  for (size_t i = first; i < last; ++i) {
    const ParameterInfo& info = layout.parameters()[i];
    const Extent next = ExtentOf(layout, memory, i + 1);
    Part part{.begin = info.offset, .count = info.rows * info.cols, .decay = info.decay};
    QUERN_CHECK(info.offset == at.elements);
    if (fp8 && info.decay) {
      part.scales = at.scales;
      part.blocks = next.scales - at.scales;
    } else if (fp8) {
      part.vectors = at.vectors;
    }
    const bool joins = !parts_.empty() && parts_.back().decay == info.decay && !(fp8 && info.decay);
    if (joins) {
      parts_.back().count += part.count;
    } else {
      parts_.push_back(part);
    }
    at = next;
  }
}

void Moments::Clear() {
  for (Tensor* array : {&first_, &second_, &scales_, &vectors_}) {
    const DType dtype = array->dtype();
    const int64_t rows = array->rows(), cols = array->cols();
    *array = Tensor();  // given back before there is a new one
    *array = Tensor(dtype, rows, cols, ops_.memory());
  }
}

void Moments::Step(const AdamWArgs& common, const Parameters& parameters, const Parameters& gradients) {
  for (const Part& part : parts_) {
    AdamWArgs args = common;
    args.param = parameters.flat().Cols(part.begin, part.count);
    args.grad = gradients.flat().Cols(part.begin, part.count);
    args.first_element = part.begin;
    if (!part.decay) args.weight_decay = 0;
    const int64_t begin = part.begin - begin_.elements;
    if (part.blocks > 0) {
      const int64_t scales = part.scales - begin_.scales;
      args.m = first_.view().Cols(begin, part.count);
      args.v = second_.view().Cols(begin, part.count);
      args.m_scale = scales_.view().Rows(0, 1).Cols(scales, part.blocks);
      args.v_scale = scales_.view().Rows(1, 1).Cols(scales, part.blocks);
      args.block = memory_.block;
    } else if (part.vectors >= 0) {
      const int64_t vectors = part.vectors - begin_.vectors;
      args.m = vectors_.view().Rows(0, 1).Cols(vectors, part.count);
      args.v = vectors_.view().Rows(1, 1).Cols(vectors, part.count);
    } else {
      args.m = first_.view().Cols(begin, part.count);
      args.v = second_.view().Cols(begin, part.count);
    }
    ops_.AdamW(args);
  }
}

std::vector<Moments::Array> Moments::Arrays() const {
  std::vector<Array> arrays = {{"first_moment", first_.dtype(), all_.elements},
                               {"second_moment", second_.dtype(), all_.elements}};
  if (memory_.fp8_moments) {
    arrays.push_back({"moment_scales", scales_.dtype(), 2 * all_.scales});
    arrays.push_back({"vector_moments", vectors_.dtype(), 2 * all_.vectors});
  }
  return arrays;
}

std::vector<Moments::Run> Moments::State() {
  std::vector<Run> runs = {{"first_moment", begin_.elements, first_}, {"second_moment", begin_.elements, second_}};
  if (!memory_.fp8_moments) return runs;
  if (first_.cols() == all_.elements) {
    // As one row, which is how they lie.
    for (const auto& [name, array] : {std::pair("moment_scales", &scales_), std::pair("vector_moments", &vectors_)}) {
      TensorView view = *array;
      view.cols = view.stride = view.rows * view.cols;
      view.rows = 1;
      runs.push_back({name, 0, view});
    }
    return runs;
  }
  // The whole one's rows lie one after the other.
  for (int64_t row = 0; row < 2; ++row) {
    if (all_.scales > 0)
      runs.push_back({"moment_scales", row * all_.scales + begin_.scales,
                      scales_.cols() > 0 ? scales_.view().Rows(row, 1) : TensorView(scales_)});
    if (all_.vectors > 0)
      runs.push_back({"vector_moments", row * all_.vectors + begin_.vectors,
                      vectors_.cols() > 0 ? vectors_.view().Rows(row, 1) : TensorView(vectors_)});
  }
  return runs;
}

}  // namespace quern
