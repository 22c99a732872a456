#include "model/budget_search.h"

#include <algorithm>

#include "base/check.h"

namespace quern {

namespace {

int64_t Smaller(int64_t budget, int64_t least) {
  const int64_t smaller = budget * 3 / 4;
  return std::max(least, smaller > 8 ? smaller / 8 * 8 : smaller);
}

}  // namespace

Result<std::vector<BudgetStep>> SearchBudgets(int64_t layers, const BudgetSearchOptions& options,
                                              const std::function<Result<double>(const std::vector<int64_t>&)>& loss,
                                              const std::function<void(const BudgetStep&)>& step) {
  QUERN_CHECK(layers > 0 && options.least >= 2);
  std::vector<BudgetStep> steps;
  BudgetStep now{
      .layer = 0, .loss = 0, .budgets = std::vector<int64_t>(static_cast<size_t>(layers), options.positions)};
  QUERN_ASSIGN_OR_RETURN(now.loss, loss(now.budgets));
  if (now.loss > options.target_loss) return steps;
  // F never falls and fewer entries rarely help, so a reduction that once was too much is not tried again.
  std::vector<bool> stuck(static_cast<size_t>(layers), false);
  while (true) {
    BudgetStep best;
    double best_cost = 0;
    for (int64_t layer = 0; layer < layers; ++layer) {
      const auto l = static_cast<size_t>(layer);
      const int64_t budget = Smaller(now.budgets[l], options.least);
      if (stuck[l] || budget >= now.budgets[l]) continue;
      BudgetStep tried{.layer = layer, .loss = 0, .budgets = now.budgets};
      tried.budgets[l] = budget;
      QUERN_ASSIGN_OR_RETURN(tried.loss, loss(tried.budgets));
      if (tried.loss > options.target_loss) {
        stuck[l] = true;
        continue;
      }
      const double cost = (tried.loss - now.loss) / static_cast<double>(now.budgets[l] - budget);
      if (!best.budgets.empty() && cost >= best_cost) continue;
      best = std::move(tried);
      best_cost = cost;
    }
    if (best.budgets.empty()) return steps;
    now = best;
    step(best);
    steps.push_back(std::move(best));
  }
}

}  // namespace quern
