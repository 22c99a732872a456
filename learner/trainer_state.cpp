#include "learner/trainer_state.h"

namespace quern {

TrainerState::TrainerState(Ops& ops, Trainer& trainer) : ops_(ops), state_(trainer.State()) {
  for (const auto& [name, values] : state_) {
    TensorView view = values;
    if (ops_.memory() != nullptr) view = copies_.emplace_back(values.dtype, values.rows, values.cols);
    arrays_.push_back({name, {view.Row<uint8_t>(0), static_cast<size_t>(view.cols * DTypeSize(view.dtype))}});
  }
}

void TrainerState::Read() {
  for (size_t i = 0; i < copies_.size(); ++i) ops_.Download(state_[i].second, copies_[i]);
}

void TrainerState::Write() {
  for (size_t i = 0; i < copies_.size(); ++i) ops_.Upload(copies_[i], state_[i].second);
}

}  // namespace quern
