#include "model/budget_search.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

using Budgets = std::vector<int64_t>;

// Layer 0 needs 40 entries, layer 1 none, layer 2 costs a little for each entry.
double Loss(const Budgets& budgets) {
  double loss = 1;
  if (budgets[0] < 40) loss += 0.5;
  return loss + 0.001 * static_cast<double>(100 - budgets[2]);
}

TEST(BudgetSearch, TakesFromTheLayerThatNeedsLeast) {
  int evaluations = 0;
  std::vector<Budgets> told;
  const auto steps = SearchBudgets(
      3, {.positions = 100, .least = 2, .target_loss = 1.05},
      [&](const Budgets& budgets) {
        ++evaluations;
        return Result<double>(Loss(budgets));
      },
      [&](const BudgetStep& step) { told.push_back(step.budgets); });
  ASSERT_TRUE(steps.ok());
  ASSERT_EQ(told.size(), steps->size());
  double before = Loss({100, 100, 100});
  Budgets last = {100, 100, 100};
  for (size_t i = 0; i < steps->size(); ++i) {
    const BudgetStep& step = (*steps)[i];
    EXPECT_EQ(told[i], step.budgets);
    EXPECT_EQ(step.loss, Loss(step.budgets));
    EXPECT_LE(step.loss, 1.05);
    EXPECT_GE(step.loss, before);
    before = step.loss;
    for (size_t l = 0; l < 3; ++l) EXPECT_EQ(step.budgets[l] < last[l], static_cast<int64_t>(l) == step.layer);
    last = step.budgets;
  }
  EXPECT_EQ(steps->front().budgets, (Budgets{72, 100, 100})) << "a quarter less, a multiple of 8; the first of equals";
  EXPECT_EQ(last, (Budgets{48, 2, 72})) << "72 48 32; 72 48 32 24 16 8 6 4 3 2; 72 48";
  EXPECT_LT(evaluations, 60);
}

TEST(BudgetSearch, ATargetBelowTheModelsLossGivesNothing) {
  const auto steps = SearchBudgets(
      1, {.positions = 10, .least = 2, .target_loss = 0.9}, [](const Budgets&) { return Result<double>(1.0); },
      [](const BudgetStep&) { FAIL(); });
  ASSERT_TRUE(steps.ok());
  EXPECT_TRUE(steps->empty());
}

TEST(BudgetSearch, AnErrorEndsIt) {
  const auto steps = SearchBudgets(
      1, {.positions = 10, .least = 2, .target_loss = 2}, [](const Budgets&) { return Result<double>(Internal("x")); },
      [](const BudgetStep&) { FAIL(); });
  EXPECT_FALSE(steps.ok());
}

}  // namespace
}  // namespace quern
