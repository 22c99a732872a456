#include "learner/moments.h"

#include <algorithm>

namespace quern {

Moments::Moments(Ops& ops, const ParameterLayout& layout, DType acc, const OptimizerMemory& memory)
    : ops_(ops), memory_(memory) {
  const bool fp8 = memory.fp8_moments;
  first_ = Tensor(fp8 ? DType::kE4M3 : acc, 1, layout.size(), ops.memory());
  second_ = Tensor(fp8 ? DType::kE5M2 : acc, 1, layout.size(), ops.memory());
  int64_t scales = 0, vectors = 0;
  for (const ParameterInfo& info : layout.parameters()) {
    const int64_t count = info.rows * info.cols;
    Part part{.begin = info.offset, .count = count, .decay = info.decay};
    if (fp8 && info.decay) {
      part.scales = scales;
      part.blocks = memory.block > 0 ? (count + memory.block - 1) / memory.block : 1;
      scales += part.blocks;
    } else if (fp8) {
      part.vectors = vectors;
      vectors += count;
    }
    const bool joins = !parts_.empty() && parts_.back().decay == info.decay && !(fp8 && info.decay);
    if (joins) {
      parts_.back().count += count;
    } else {
      parts_.push_back(part);
    }
  }
  scales_ = Tensor(acc, 2, scales, ops.memory());
  vectors_ = Tensor(acc, 2, vectors, ops.memory());
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
    if (part.blocks > 0) {
      args.m = first_.view().Cols(part.begin, part.count);
      args.v = second_.view().Cols(part.begin, part.count);
      args.m_scale = scales_.view().Rows(0, 1).Cols(part.scales, part.blocks);
      args.v_scale = scales_.view().Rows(1, 1).Cols(part.scales, part.blocks);
      args.block = memory_.block;
    } else if (part.vectors >= 0) {
      args.m = vectors_.view().Rows(0, 1).Cols(part.vectors, part.count);
      args.v = vectors_.view().Rows(1, 1).Cols(part.vectors, part.count);
    } else {
      args.m = first_.view().Cols(part.begin, part.count);
      args.v = second_.view().Cols(part.begin, part.count);
    }
    ops_.AdamW(args);
  }
}

std::vector<std::pair<std::string, TensorView>> Moments::State() {
  std::vector<std::pair<std::string, TensorView>> state = {{"first_moment", first_}, {"second_moment", second_}};
  // As one row, which is how they lie.
  const auto flat = [](const Tensor& x) {
    TensorView view = x;
    view.cols = view.stride = view.rows * view.cols;
    view.rows = 1;
    return view;
  };
  if (memory_.fp8_moments) {
    state.emplace_back("moment_scales", flat(scales_));
    state.emplace_back("vector_moments", flat(vectors_));
  }
  return state;
}

}  // namespace quern
