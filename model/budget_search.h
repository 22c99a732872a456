#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "base/status.h"

namespace quern {

// One accepted reduction of a greedy search for cache budgets of a model with selective attention.
struct BudgetStep {
  int64_t layer = 0;
  double loss = 0;  // with `budgets`
  std::vector<int64_t> budgets;
};

struct BudgetSearchOptions {
  int64_t positions = 0;  // every layer starts with so many: what the longest sequence has
  int64_t least = 8;      // entries that a layer keeps in any case; at least 2
  double target_loss = 0;
};

// Makes the budget of one layer after the other smaller by a quarter (in whole multiples of 8 above 8): each time that
// of the layer where it costs least loss for each entry saved, among those that leave the loss at or below the target.
// Ends when none does. `loss` of given budgets, one a layer; `step` is told of every accepted one. Empty when the
// budgets that the search starts with are above the target already.
Result<std::vector<BudgetStep>> SearchBudgets(int64_t layers, const BudgetSearchOptions& options,
                                              const std::function<Result<double>(const std::vector<int64_t>&)>& loss,
                                              const std::function<void(const BudgetStep&)>& step);

}  // namespace quern
