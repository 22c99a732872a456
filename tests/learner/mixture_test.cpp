#include "learner/mixture.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"

namespace quern {
namespace {

using Policy = MixtureOptions::Policy;

MixtureState OneClass(double sigma2d, double n_real, double n_generated, double c2) {
  MixtureState state;
  state.sigma2d = sigma2d;
  state.n[kRealData] = n_real;
  state.n[kUnverifiedData] = n_generated;
  state.c2[kUnverifiedData] = c2;
  return state;
}

Shares Unverified(double omega) {
  Shares shares{};
  shares[kUnverifiedData] = omega;
  shares[kRealData] = 1 - omega;
  return shares;
}

MixtureOptions Controller() {
  MixtureOptions options;
  options.policy = Policy::kController;
  return options;
}

MixtureState RandomState(Random& random) {
  MixtureState state;
  state.sigma2d = std::exp(6 * random.Uniform() - 1);
  state.n[kRealData] = std::floor(std::exp(9 * random.Uniform()));
  for (const size_t q : {kVerifiedData, kHintedData, kUnverifiedData}) {
    state.n[q] = random.Uniform() < 0.3 ? 0 : std::floor(std::exp(9 * random.Uniform()));
    state.c2[q] = random.Uniform() < 0.1 ? 0 : std::exp(6 * random.Uniform() - 5);
  }
  return state;
}

TEST(Omega, TheSchedulersValues) {
  // sigma^2 d = 100, c^2 = 1: best share, its error, real data only, everything pooled.
  const double rows[][6] = {{200, 200, 0.25, 0.375, 0.5, 0.5},
                            {1000, 1000, 0.08333, 0.09167, 0.1, 0.30},
                            {10000, 10000, 0.009804, 0.009902, 0.01, 0.255},
                            {1000, 100000, 0.090827, 0.090917, 0.1, 0.981}};
  for (const auto& row : rows) {
    const MixtureState state = OneClass(100, row[0], row[1], 1);
    const Shares best = BestShares(state);
    EXPECT_NEAR(GeneratedShare(best), row[2], 1e-5);
    EXPECT_NEAR(ExcessLoss(state, best), row[3], 1e-5);
    EXPECT_NEAR(ExcessLoss(state, Unverified(0)), row[4], 1e-9);
    const double pooled = row[1] / (row[0] + row[1]);
    EXPECT_NEAR(ExcessLoss(state, Unverified(pooled)), row[5], 6e-4);
  }
}

TEST(Omega, IsTheMinimumOverAllClasses) {
  Random random(1);
  for (int trial = 0; trial < 200; ++trial) {
    const MixtureState state = RandomState(random);
    const Shares best = BestShares(state);
    const double least = ExcessLoss(state, best);
    for (int k = 0; k < 40; ++k) {
      Shares other = best;
      double generated = 0;
      for (const size_t q : {kVerifiedData, kHintedData, kUnverifiedData}) {
        if (state.n[q] > 0) other[q] = std::clamp(best[q] + 0.05 * random.Normal(), 0.0, 1.0);
        generated += other[q];
      }
      if (generated >= 1) continue;
      other[kRealData] = 1 - generated;
      EXPECT_GE(ExcessLoss(state, other), least * (1 - 1e-12));
    }
  }
}

TEST(Omega, TheCapHoldsTheFloor) {
  const MixtureState state = OneClass(100, 1000, 100000, 1);
  const Shares capped = BestShares(state, FloorCaps(state, 0.1));
  EXPECT_NEAR(GeneratedShare(capped), std::min(0.090827, std::sqrt(0.1 * 0.1 / 1)), 1e-5);
  Random random(2);
  for (int trial = 0; trial < 500; ++trial) {
    const MixtureState any = RandomState(random);
    double shift = 0;
    const Shares shares = BestShares(any, FloorCaps(any, 0.1));
    for (size_t q = kVerifiedData; q < kDataClasses; ++q) shift += shares[q] * std::sqrt(any.c2[q]);
    EXPECT_LE(shift * shift, 0.1 * any.sigma2d / any.n[kRealData] * (1 + 1e-9));
  }
}

TEST(Omega, LossWeightAndShareAreInverse) {
  EXPECT_NEAR(LossWeight(0.5, 100, 100), 1, 1e-12);
  EXPECT_NEAR(ShareOfWeight(LossWeight(0.07, 300, 5000), 300, 5000), 0.07, 1e-12);
}

TEST(Controller, SharesAreSharesAndFallWithShiftAndRealData) {
  Random random(3);
  for (int trial = 0; trial < 500; ++trial) {
    MixtureOptions options = Controller();
    options.omega_max = random.Uniform() < 0.5 ? 1 : random.Uniform();
    const MixtureState state = RandomState(random);
    const Mixture mixture(options, state);
    double sum = 0;
    for (const double share : mixture.Planned(0, 100)) {
      EXPECT_GE(share, 0);
      EXPECT_LE(share, 1);
      sum += share;
    }
    EXPECT_NEAR(sum, 1, 1e-12);
    const double omega = GeneratedShare(mixture.Planned(0, 100));
    EXPECT_LE(omega, options.omega_max + 1e-12);
    EXPECT_LE(mixture.Planned(0, 100)[kHintedData], options.hinted_max + 1e-12);
    EXPECT_EQ(GeneratedShare(mixture.Planned(90, 100)), 0) << "the last phase";
    EXPECT_EQ(GeneratedShare(mixture.Planned(99, 100)), 0);
    // More of a shift, or more real data: not more of what is generated.
    MixtureState worse = state;
    for (double& c2 : worse.c2) c2 *= 1.5;
    EXPECT_LE(GeneratedShare(Mixture(options, worse).Planned(0, 100)), omega + 1e-12);
    MixtureState richer = state;
    richer.n[kRealData] *= 1.5;
    EXPECT_LE(GeneratedShare(Mixture(options, richer).Planned(0, 100)), omega + 1e-12);
  }
}

TEST(Controller, VerifiedDataGetsMoreThanUnverifiedAndHintedIsCapped) {
  MixtureState state = OneClass(100, 500, 5000, 0.5);
  state.n[kVerifiedData] = state.n[kHintedData] = 5000;
  state.c2[kVerifiedData] = 0.01;
  state.c2[kHintedData] = 0.002;
  MixtureOptions options = Controller();
  options.rho = 100;
  const Shares shares = Mixture(options, state).Planned(0, 10);
  EXPECT_GT(shares[kVerifiedData], 3 * shares[kUnverifiedData]);
  EXPECT_NEAR(shares[kHintedData], 0.2, 1e-12);
}

TEST(Controller, WithoutOneKindOfDataTheOtherHasAll) {
  for (const Policy policy : {Policy::kController, Policy::kFixed}) {
    MixtureOptions options;
    options.policy = policy;
    EXPECT_EQ(GeneratedShare(Mixture(options, OneClass(100, 500, 0, 0)).Planned(0, 10)), 0);
    EXPECT_EQ(GeneratedShare(Mixture(options, OneClass(100, 0, 500, 0.1)).Planned(0, 10)), 1);
    EXPECT_EQ(GeneratedShare(Mixture(options, OneClass(100, 0, 500, 0.1)).Planned(9, 10)), 1);
    MixtureState hinted;
    hinted.sigma2d = 1;
    hinted.n[kHintedData] = 50;
    EXPECT_EQ(Mixture(options, hinted).Planned(0, 10)[kHintedData], 1);
    hinted.n[kRealData] = 50;
    EXPECT_LE(Mixture(options, hinted).Planned(0, 10)[kHintedData], 0.2);
  }
}

TEST(Controller, HalvesWhenTheHeldOutLossStopsFollowing) {
  MixtureOptions options = Controller();
  Mixture mixture(options, OneClass(100, 1000, 1000, 1));
  const double omega = GeneratedShare(mixture.Current(0, 100));
  EXPECT_GT(omega, 0.05);
  EXPECT_FALSE(mixture.ObserveCheck(2.5, omega));
  EXPECT_FALSE(mixture.ObserveCheck(2.3, omega));
  EXPECT_FALSE(mixture.ObserveCheck(2.315, omega)) << "within the tolerance";
  EXPECT_FALSE(mixture.ObserveCheck(2.4, 0)) << "generated data has no share";
  EXPECT_TRUE(mixture.ObserveCheck(2.4, omega));
  EXPECT_NEAR(GeneratedShare(mixture.Current(0, 100)), omega / 2, 1e-12);
  EXPECT_NEAR(GeneratedShare(mixture.Planned(0, 100)), omega, 1e-12) << "what is drawn does not depend on it";
  // Twice the real data promises 100 (1/500 - 1/1000) = 0.1 nats.
  const std::vector<LossPoint> earlier = {{500, 2.5}};
  EXPECT_FALSE(mixture.ObservePhase(earlier, 2.4, omega));
  EXPECT_FALSE(mixture.ObservePhase(earlier, 2.46, omega)) << "half of it and the tolerance";
  EXPECT_TRUE(mixture.ObservePhase(earlier, 2.49, omega));
  EXPECT_EQ(mixture.halvings(), 2);
  Mixture fixed({}, OneClass(100, 1000, 1000, 1));
  EXPECT_FALSE(fixed.ObserveCheck(1, 0.5) || fixed.ObserveCheck(9, 0.5));
}

TEST(Policies, FixedScheduledRealOnly) {
  MixtureOptions options;
  options.share = 0.3;
  MixtureState state = OneClass(0, 100, 300, 0);
  state.n[kVerifiedData] = 100;
  const Shares fixed = Mixture(options, state).Planned(5, 10);
  EXPECT_NEAR(fixed[kUnverifiedData], 0.225, 1e-12);
  EXPECT_NEAR(fixed[kVerifiedData], 0.075, 1e-12);
  options.policy = Policy::kRealOnly;
  EXPECT_EQ(Mixture(options, state).Planned(5, 10)[kRealData], 1);
  options.policy = Policy::kScheduled;
  options.schedule = {{0, 0.5}, {0.5, 0.3}, {0.8, 0}};
  const Mixture by_progress(options, state);
  EXPECT_NEAR(GeneratedShare(by_progress.Planned(0, 100)), 0.5, 1e-12);
  EXPECT_NEAR(GeneratedShare(by_progress.Planned(25, 100)), 0.4, 1e-12);
  EXPECT_EQ(GeneratedShare(by_progress.Planned(90, 100)), 0);
  options.schedule_by_real = true;
  options.schedule = {{10, 0.5}, {1000, 0.1}};
  EXPECT_NEAR(GeneratedShare(Mixture(options, state).Planned(50, 100)), 0.3, 1e-12)
      << "100 lies half-way from 10 to 1000";
}

TEST(Fit, FindsTheLawAndNeverANegativeOne) {
  const std::vector<LossPoint> law = {{64, 1.5 + 20.0 / 64}, {128, 1.5 + 20.0 / 128}, {512, 1.5 + 20.0 / 512}};
  EXPECT_NEAR(FitExcess(law).sigma2d, 20, 1e-9);
  EXPECT_NEAR(FitExcess(law).e0, 1.5, 1e-9);
  const std::vector<LossPoint> rising = {{64, 1}, {128, 2}};
  EXPECT_EQ(FitExcess(rising).sigma2d, 0);
  EXPECT_NEAR(FitExcess(rising).e0, 1.5, 1e-12);
}

TEST(Draws, CountsFollowTheSharesAndBatchesAreContiguous) {
  MixtureState state = OneClass(0, 100, 100, 0);
  state.n[kVerifiedData] = 100;
  MixtureOptions options;
  options.share = 0.4;
  const DrawPlan plan(Mixture(options, state), 16, 1000);
  std::array<uint64_t, kDataClasses> drawn{};
  for (int64_t step = 0; step < 1000; ++step) {
    const auto draws = plan.At(step);
    uint32_t total = 0;
    for (size_t q = 0; q < kDataClasses; ++q) {
      EXPECT_EQ(draws[q].first, drawn[q]);
      drawn[q] += draws[q].count;
      total += draws[q].count;
    }
    EXPECT_EQ(total, 16u);
  }
  EXPECT_NEAR(static_cast<double>(drawn[kVerifiedData]), 3200, 1);
  EXPECT_NEAR(static_cast<double>(drawn[kUnverifiedData]), 3200, 1);
}

TEST(Draws, EveryClassWithAShareIsInEveryBatchAndNoneAfterTheEnd) {
  MixtureState state = OneClass(1, 10000, 100, 1);
  state.n[kHintedData] = 50;
  state.c2[kHintedData] = 1;
  const DrawPlan plan(Mixture(Controller(), state), 8, 100);
  for (int64_t step = 0; step < 100; ++step) {
    const auto draws = plan.At(step);
    EXPECT_EQ(draws[kUnverifiedData].count, step < 90 ? 1u : 0u);
    EXPECT_EQ(draws[kHintedData].count, step < 90 ? 1u : 0u);
    EXPECT_GE(draws[kRealData].count, 6u) << "real data is in every batch";
  }
}

}  // namespace
}  // namespace quern
