// The regression oracles of Strong Model Collapse (arXiv 2410.04840): what the mixture's closed forms say against least
// squares on drawn data. Linear regression y = x w + noise in d dimensions, Sigma = I unless said; generated data has
// its own w + delta with E ||delta||^2 = c2. E is the excess error on real data.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "base/random.h"
#include "learner/mixture.h"

namespace quern {
namespace {

constexpr double kSigma = 0.5;
using Vector = std::vector<double>;

// Ridge by the normal equations, records weighted: Cholesky of sum a x x' + penalty I.
class Regression {
 public:
  explicit Regression(size_t d) : d_(d), gram_(d * d), right_(d) {}
  void Add(const Vector& x, double y, double weight) {
    for (size_t i = 0; i < d_; ++i) {
      const double scaled = weight * x[i];
      right_[i] += scaled * y;
      double* row = &gram_[i * d_];
      for (size_t j = 0; j <= i; ++j) row[j] += scaled * x[j];
    }
  }
  Vector Solve(double penalty) {
    for (size_t i = 0; i < d_; ++i) gram_[i * d_ + i] += penalty;
    for (size_t i = 0; i < d_; ++i) {
      for (size_t j = 0; j <= i; ++j) {
        double sum = gram_[i * d_ + j];
        for (size_t k = 0; k < j; ++k) sum -= gram_[i * d_ + k] * gram_[j * d_ + k];
        gram_[i * d_ + j] = i == j ? std::sqrt(sum) : sum / gram_[j * d_ + j];
      }
    }
    Vector w = right_;
    for (size_t i = 0; i < d_; ++i) {
      for (size_t k = 0; k < i; ++k) w[i] -= gram_[i * d_ + k] * w[k];
      w[i] /= gram_[i * d_ + i];
    }
    for (size_t i = d_; i-- > 0;) {
      for (size_t k = i + 1; k < d_; ++k) w[i] -= gram_[k * d_ + i] * w[k];
      w[i] /= gram_[i * d_ + i];
    }
    return w;
  }

 private:
  size_t d_;
  Vector gram_;
  Vector right_;
};

Vector Gaussian(Random& random, size_t d, double deviation) {
  Vector v(d);
  for (double& value : v) value = deviation * random.Normal();
  return v;
}

double Dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

struct Setting {
  size_t d = 60;
  Vector spectrum;    // of Sigma; empty: ones
  double lambda = 0;  // the penalty is lambda * n
  double weight = 1;  // of a generated record
  size_t n_real = 0;
  size_t n_generated = 0;
};

struct Estimate {
  double mean = 0;
  double error = 0;
};

Estimate Repeat(int trials, const std::function<double(Random&)>& trial) {
  double sum = 0, squares = 0;
  for (int i = 0; i < trials; ++i) {
    Random random(20261123, static_cast<uint64_t>(i));
    const double value = trial(random);
    sum += value;
    squares += value * value;
  }
  const double mean = sum / trials;
  return {mean, std::sqrt((squares / trials - mean * mean) / (trials - 1))};
}

// c2 = 1 (Delta = I / d); the true w is N(0, I / d), which matters to ridge only.
Estimate MonteCarlo(const Setting& s, int trials) {
  return Repeat(trials, [&](Random& random) {
    const double unit = 1 / std::sqrt(static_cast<double>(s.d));
    const Vector w = Gaussian(random, s.d, unit);
    Vector shifted = Gaussian(random, s.d, unit);
    for (size_t i = 0; i < s.d; ++i) shifted[i] += w[i];
    Regression fit(s.d);
    for (size_t k = 0; k < s.n_real + s.n_generated; ++k) {
      Vector x = Gaussian(random, s.d, 1);
      for (size_t i = 0; i < s.spectrum.size(); ++i) x[i] *= std::sqrt(s.spectrum[i]);
      const bool real = k < s.n_real;
      fit.Add(x, Dot(x, real ? w : shifted) + kSigma * random.Normal(), real ? 1 : s.weight);
    }
    const Vector found = fit.Solve(s.lambda * static_cast<double>(s.n_real + s.n_generated));
    double excess = 0;
    for (size_t i = 0; i < s.d; ++i) {
      excess += (s.spectrum.empty() ? 1 : s.spectrum[i]) * (found[i] - w[i]) * (found[i] - w[i]);
    }
    return excess;
  });
}

MixtureState StateOf(const Setting& s, double c2 = 1) {
  MixtureState state;
  state.sigma2d = kSigma * kSigma * static_cast<double>(s.d);
  state.n[kRealData] = static_cast<double>(s.n_real);
  state.n[kUnverifiedData] = static_cast<double>(s.n_generated);
  state.c2[kUnverifiedData] = c2;
  return state;
}

Shares Of(double omega) {
  Shares shares{};
  shares[kUnverifiedData] = omega;
  shares[kRealData] = 1 - omega;
  return shares;
}

// The paper's Eq. 11: everything pooled, phi = d / n < 1. The controller's form is its limit for small phi.
double Pooled(double n, double d, double p) {
  const double u = d / n / (1 - d / n);
  return kSigma * kSigma * u + p * p + p * (1 - p) * u;
}

TEST(CollapseTheory, PooledDataHasAFloor) {
  // n, p2, E by the formula (design tables), trials.
  const double rows[][4] = {{300, 0, 0.06250, 100},   {300, 0.1, 0.09500, 100}, {300, 0.5, 0.37500, 100},
                            {1200, 0.1, 0.02789, 30}, {1200, 0.5, 0.27632, 30}, {6000, 0.1, 0.01343, 8},
                            {6000, 0.5, 0.25505, 8},  {120, 0.5, 0.75000, 150}};
  for (const auto& row : rows) {
    const auto generated = static_cast<size_t>(std::lround(row[0] * row[1]));
    Setting s;
    s.n_real = static_cast<size_t>(row[0]) - generated;
    s.n_generated = generated;
    EXPECT_NEAR(Pooled(row[0], 60, row[1]), row[2], 6e-6);
    const Estimate found = MonteCarlo(s, static_cast<int>(row[3]));
    EXPECT_NEAR(found.mean, row[2], 4 * found.error) << "n " << row[0] << ", p2 " << row[1];
    // The controller's own form is the limit of small phi = d / n: it leaves out the shift's part in the noise, p1 p2
    // phi c2 (it knows sigma^2 d and not d), and a factor 1 / (1 - phi).
    const double phi = 60 / row[0];
    const double left_out = row[1] * (1 - row[1]) * phi;
    EXPECT_NEAR(ExcessLoss(StateOf(s), Of(row[1])) + left_out, row[2], 1.05 * phi * row[2]) << row[0] << " " << row[1];
  }
}

TEST(CollapseTheory, RidgeHasItToo) {
  // The explicit form of Theorem 1 for diagonal Sigma and Gamma = Delta = I / d.
  const auto ridge = [](const Vector& spectrum, double n, double lambda, double p2) {
    const double d = static_cast<double>(spectrum.size());
    double kappa = lambda;
    const auto df = [&](int m) {
      double sum = 0;
      for (const double s : spectrum) sum += std::pow(s / (s + kappa), m);
      return sum;
    };
    for (int i = 0; i < 500; ++i) kappa = lambda / (1 - df(1) / n);
    const double phi = df(2) / n, u = phi / (1 - phi), p1 = 1 - p2;
    double bias = 0, fixed = 0, noise = 0;
    for (const double s : spectrum) {
      const double inverse = 1 / ((s + kappa) * (s + kappa));
      bias += kappa * kappa * s * inverse / d / (1 - phi);
      fixed += s * s * s * inverse / d;
      noise += s * (p1 * s + kappa) * (p1 * s + kappa) * inverse / d;
    }
    return bias + kSigma * kSigma * u + p2 * p2 * (1 + p1 * u) * fixed + p2 * u * noise;
  };
  Setting s;
  for (int i = 0; i < 60; ++i) s.spectrum.push_back(1 / (1 + 0.1 * i));
  const double rows[][3] = {{0.01, 0.1, 0.15807}, {0.01, 0.5, 0.25987}, {0.1, 0.1, 0.09927},
                            {0.1, 0.5, 0.15552},  {0.5, 0.1, 0.14399},  {0.5, 0.5, 0.16317}};
  for (const auto& row : rows) {
    s.lambda = row[0];
    s.n_generated = static_cast<size_t>(std::lround(150 * row[1]));
    s.n_real = 150 - s.n_generated;
    EXPECT_NEAR(ridge(s.spectrum, 150, row[0], row[1]), row[2], 2e-5);
    const Estimate found = MonteCarlo(s, 120);
    EXPECT_NEAR(found.mean, row[2], 4 * found.error + 0.01 * row[2]) << row[0] << " " << row[1];
  }
}

TEST(CollapseTheory, TheLossWeightSetsTheShare) {
  // n = 6000, half of it generated: weight, share, E.
  const double rows[][3] = {{1, 0.5, 0.25250}, {0.5, 1.0 / 3, 0.11389}, {0.1, 1.0 / 11, 0.01244}, {0, 0, 0.00500}};
  Setting s;
  s.n_real = s.n_generated = 3000;
  for (const auto& row : rows) {
    const double omega = ShareOfWeight(row[0], 3000, 3000);
    EXPECT_NEAR(omega, row[1], 1e-12);
    EXPECT_NEAR(ExcessLoss(StateOf(s), Of(omega)), row[2], 6e-6);
    s.weight = LossWeight(omega, 3000, 3000);
    EXPECT_NEAR(s.weight, row[0], 1e-12);
    const Estimate found = MonteCarlo(s, 8);
    EXPECT_NEAR(found.mean, row[2], 4 * found.error + 0.03 * row[2]) << row[0];
  }
}

TEST(CollapseTheory, TheBestShareBeatsRealDataAloneAndPooling) {
  Setting s;
  s.n_real = 300;
  s.n_generated = 900;
  const MixtureState state = StateOf(s);
  const double omega = GeneratedShare(BestShares(state));
  Setting real = s, pooled = s;
  real.weight = 0;
  s.weight = LossWeight(omega, 300, 900);
  const Estimate best = MonteCarlo(s, 50), alone = MonteCarlo(real, 50), all = MonteCarlo(pooled, 50);
  EXPECT_LT(best.mean, alone.mean) << omega;
  EXPECT_GT(all.mean, 5 * alone.mean);
}

// Refitting on real data and labels from the model before, d = 40, n = 2000, half of it real.
Estimate Iterated(int rounds, bool fresh, int trials) {
  constexpr size_t kD = 40, kHalf = 1000;
  return Repeat(trials, [&](Random& random) {
    const Vector w(kD, 0.0);
    Vector model = Gaussian(random, kD, 1 / std::sqrt(static_cast<double>(kD)));  // error c2 = 1
    Random real_data = random;
    for (int round = 0; round < rounds; ++round) {
      Regression fit(kD);
      Random data = fresh ? random : real_data;
      for (size_t k = 0; k < kHalf; ++k) fit.Add(Gaussian(data, kD, 1), kSigma * data.Normal(), 1);
      if (fresh || round == 0) random = data;
      for (size_t k = 0; k < kHalf; ++k) {
        const Vector x = Gaussian(random, kD, 1);
        fit.Add(x, Dot(x, model) + kSigma * random.Normal(), 1);
      }
      model = fit.Solve(0);
    }
    return Dot(model, model);
  });
}

TEST(CollapseTheory, IteratedMixingForgetsTheFirstModel) {
  MixtureState state;
  state.sigma2d = kSigma * kSigma * 40;
  state.n[kRealData] = state.n[kUnverifiedData] = 1000;
  // Fresh real data: each round's c2 is the error of the round before.
  std::vector<double> fresh;
  state.c2[kUnverifiedData] = 1;
  for (int round = 0; round < 12; ++round) {
    fresh.push_back(ExcessLoss(state, Of(0.5)));
    state.c2[kUnverifiedData] = fresh.back();
  }
  EXPECT_NEAR(fresh.back(), 0.00667, 1e-5) << "sigma^2 d / n / (1 - p2^2)";
  // The same real data: its noise comes back each round. A = B = 0.01: to A + p2^2 / (1 - p2^2) B.
  const auto fixed = [](int t) {
    const double bias = std::pow(0.25, t), kept = 1 - std::pow(0.5, t);
    return bias + kept * kept * 0.01 + 0.25 * 0.01 * (1 - bias) / 0.75;
  };
  EXPECT_NEAR(fixed(12), 0.01333, 1e-5);
  const double measured_fixed[] = {0.248, 0.075, 0.030, 0.018, 0.0135};
  const double measured_fresh[] = {0.262, 0.072, 0.024, 0.011, 0.0067};
  const int rounds[] = {1, 2, 3, 4, 12};
  for (size_t i = 0; i < 5; ++i) {
    const int trials = rounds[i] == 12 ? 4 : 12;
    const Estimate again = Iterated(rounds[i], false, trials), renewed = Iterated(rounds[i], true, trials);
    // The forms leave out terms of order d / n = 2 % in each round's noise and bias.
    EXPECT_NEAR(again.mean, fixed(rounds[i]), 4 * again.error + 0.04 * fixed(rounds[i])) << rounds[i];
    const double theory = fresh[static_cast<size_t>(rounds[i] - 1)];
    EXPECT_NEAR(renewed.mean, theory, 4 * renewed.error + 0.04 * theory) << rounds[i];
    // And the design's own Monte Carlo, whose error is not known: its spread between rounds is of this order.
    EXPECT_NEAR(again.mean, measured_fixed[i], 4 * again.error + 0.1 * measured_fixed[i]) << rounds[i];
    EXPECT_NEAR(renewed.mean, measured_fresh[i], 4 * renewed.error + 0.1 * measured_fresh[i]) << rounds[i];
  }
  // Never better than the real half alone.
  EXPECT_GT(fixed(12), 0.01);
}

}  // namespace
}  // namespace quern
