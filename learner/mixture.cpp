#include "learner/mixture.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace quern {

namespace {

constexpr std::array<size_t, 3> kGenerated = {kVerifiedData, kHintedData, kUnverifiedData};

// What is left of 1 belongs to real data.
Shares WithReal(Shares shares) {
  shares[kRealData] = std::max(0.0, 1 - GeneratedShare(shares));
  return shares;
}

Shares Scaled(const Shares& shares, double factor) {
  Shares out{};
  for (const size_t q : kGenerated) out[q] = shares[q] * factor;
  return WithReal(out);
}

}  // namespace

double GeneratedShare(const Shares& shares) {
  return shares[kVerifiedData] + shares[kHintedData] + shares[kUnverifiedData];
}

double ExcessLoss(const MixtureState& state, const Shares& shares) {
  const double real = 1 - GeneratedShare(shares);
  double excess = real > 0 ? real * real * state.sigma2d / state.n[kRealData] : 0;
  for (const size_t q : kGenerated) {
    if (shares[q] > 0) excess += shares[q] * shares[q] * (state.c2[q] + state.sigma2d / state.n[q]);
  }
  return excess;
}

Shares FloorCaps(const MixtureState& state, double rho) {
  Shares caps = kNoCaps;
  double classes = 0;
  for (const size_t q : kGenerated) classes += state.n[q] > 0 ? 1 : 0;
  for (const size_t q : kGenerated) {
    if (state.n[q] <= 0 || state.c2[q] <= 0 || state.n[kRealData] <= 0) continue;
    caps[q] = std::min(1.0, std::sqrt(rho * state.sigma2d / state.n[kRealData] / state.c2[q]) / classes);
  }
  return caps;
}

Shares BestShares(const MixtureState& state, const Shares& caps) {
  Shares weight{};  // of a class beside 1 of real data
  for (const size_t q : kGenerated) {
    const double error = state.n[q] > 0 ? state.c2[q] + state.sigma2d / state.n[q] : 0;
    if (error > 0) weight[q] = state.sigma2d / state.n[kRealData] / error;
  }
  // The real part r solves r + sum_q min(cap_q, weight_q r) = 1. A class that has reached its cap stays there while the
  // others are found again, because r only grows.
  std::array<bool, kDataClasses> capped{};
  Shares shares{};
  for (bool again = true; again;) {
    double taken = 0, free = 1;
    for (const size_t q : kGenerated) (capped[q] ? taken : free) += capped[q] ? caps[q] : weight[q];
    const double real = std::max(0.0, 1 - taken) / free;
    again = false;
    for (const size_t q : kGenerated) {
      shares[q] = capped[q] ? caps[q] : weight[q] * real;
      if (shares[q] > caps[q]) again = capped[q] = true;
    }
  }
  return WithReal(shares);
}

double LossWeight(double omega, double n_real, double n_generated) {
  return omega * n_real / ((1 - omega) * n_generated);
}

double ShareOfWeight(double weight, double n_real, double n_generated) {
  return weight * n_generated / (n_real + weight * n_generated);
}

ExcessFit FitExcess(std::span<const LossPoint> points) {
  if (points.empty()) return {};
  double mean_x = 0, mean_y = 0;
  for (const LossPoint& point : points) {
    mean_x += 1 / point.n / static_cast<double>(points.size());
    mean_y += point.loss / static_cast<double>(points.size());
  }
  double xx = 0, xy = 0;
  for (const LossPoint& point : points) {
    const double x = 1 / point.n - mean_x;
    xx += x * x;
    xy += x * (point.loss - mean_y);
  }
  ExcessFit fit;
  fit.sigma2d = xx > 0 ? std::max(0.0, xy / xx) : 0;
  fit.e0 = mean_y - fit.sigma2d * mean_x;
  return fit;
}

Mixture::Mixture(const MixtureOptions& options, const MixtureState& state) : options_(options), state_(state) {
  if (options_.policy != MixtureOptions::Policy::kController) return;
  if (state_.n[kRealData] <= 0) {
    controlled_ = Divide(1);
    return;
  }
  Shares caps = FloorCaps(state_, options_.rho);
  caps[kHintedData] = std::min(caps[kHintedData], options_.hinted_max);
  controlled_ = BestShares(state_, caps);
  const double omega = GeneratedShare(controlled_);
  if (omega > options_.omega_max) controlled_ = Scaled(controlled_, options_.omega_max / omega);
}

// By the classes' sizes; what hinted data may not have goes to the others, or else to real data.
Shares Mixture::Divide(double omega) const {
  double total = 0;
  for (const size_t q : kGenerated) total += state_.n[q];
  Shares shares{};
  if (state_.n[kRealData] <= 0) omega = 1;
  if (total <= 0 || omega <= 0) return WithReal(shares);
  for (const size_t q : kGenerated) shares[q] = omega * state_.n[q] / total;
  const double others = total - state_.n[kHintedData];
  if (shares[kHintedData] > options_.hinted_max && (others > 0 || state_.n[kRealData] > 0)) {
    shares[kHintedData] = options_.hinted_max;
    for (const size_t q : {kVerifiedData, kUnverifiedData}) {
      if (others > 0) shares[q] = (omega - options_.hinted_max) * state_.n[q] / others;
    }
  }
  return WithReal(shares);
}

double Mixture::Omega(int64_t step, int64_t steps) const {
  if (options_.policy == MixtureOptions::Policy::kRealOnly) return 0;
  if (options_.policy == MixtureOptions::Policy::kFixed) return options_.share;
  const std::vector<SharePoint>& points = options_.schedule;
  QUERN_CHECK(!points.empty());
  const auto place = [&](double at) { return options_.schedule_by_real ? std::log(std::max(1e-9, at)) : at; };
  const double here =
      place(options_.schedule_by_real ? state_.n[kRealData] : static_cast<double>(step) / static_cast<double>(steps));
  if (here <= place(points.front().at)) return points.front().share;
  for (size_t i = 1; i < points.size(); ++i) {
    const double left = place(points[i - 1].at);
    const double right = place(points[i].at);
    if (here <= right) return std::lerp(points[i - 1].share, points[i].share, (here - left) / (right - left));
  }
  return points.back().share;
}

Shares Mixture::Planned(int64_t step, int64_t steps) const {
  if (options_.policy != MixtureOptions::Policy::kController) return Divide(Omega(step, steps));
  const double progress = static_cast<double>(step) / static_cast<double>(steps);
  if (state_.n[kRealData] > 0 && progress >= 1 - options_.final_phase) return WithReal({});
  return controlled_;
}

Shares Mixture::Current(int64_t step, int64_t steps) const {
  const Shares planned = Planned(step, steps);
  return progress_.halvings > 0 && state_.n[kRealData] > 0 ? Scaled(planned, std::ldexp(1.0, -progress_.halvings))
                                                           : planned;
}

bool Mixture::ObserveCheck(double loss, double omega) {
  const double best = progress_.checked ? progress_.best_check : std::numeric_limits<double>::infinity();
  progress_.best_check = std::min(best, loss);
  progress_.checked = true;
  if (options_.policy != MixtureOptions::Policy::kController || omega <= 0) return false;
  if (loss <= best + options_.follow_tolerance) return false;
  ++progress_.halvings;
  progress_.best_check = loss;  // what is measured from here on has the new share
  return true;
}

bool Mixture::ObservePhase(std::span<const LossPoint> earlier, double loss, double omega) {
  if (options_.policy != MixtureOptions::Policy::kController || omega <= 0 || earlier.empty()) return false;
  const LossPoint& before = *std::min_element(earlier.begin(), earlier.end(),
                                              [](const LossPoint& a, const LossPoint& b) { return a.loss < b.loss; });
  const double promised = std::max(0.0, state_.sigma2d * (1 / before.n - 1 / state_.n[kRealData]));
  if (before.loss - loss >= 0.5 * promised - options_.follow_tolerance) return false;
  ++progress_.halvings;
  return true;
}

DrawPlan::DrawPlan(const Mixture& mixture, int64_t batch_size, int64_t steps) {
  constexpr int kFraction = 32;  // bits: sums of shares are exact, so that a plan is the same on every machine
  std::array<uint64_t, kDataClasses> sum{};
  std::array<uint64_t, kDataClasses> drawn{};
  before_.reserve(static_cast<size_t>(steps) + 1);
  before_.push_back(drawn);
  for (int64_t step = 0; step < steps; ++step) {
    const Shares shares = mixture.Planned(step, steps);
    std::array<int64_t, kDataClasses> count{};
    int64_t left = batch_size;
    for (const size_t q : kGenerated) {
      if (shares[q] <= 0) continue;
      const auto part = static_cast<uint64_t>(std::ldexp(shares[q], kFraction) * static_cast<double>(batch_size));
      count[q] = std::max<int64_t>(1, static_cast<int64_t>(((sum[q] + part) >> kFraction) - (sum[q] >> kFraction)));
      sum[q] += part;
      left -= count[q];
    }
    const auto largest = std::max_element(count.begin(), count.end());
    if (shares[kRealData] > 0) {
      if (left < 1) *largest += left - 1, left = 1;
      count[kRealData] = left;
    } else {
      *largest += left;
    }
    QUERN_CHECK(*std::min_element(count.begin(), count.end()) >= 0, "a batch is smaller than its number of classes");
    for (size_t q = 0; q < kDataClasses; ++q) drawn[q] += static_cast<uint64_t>(count[q]);
    before_.push_back(drawn);
  }
}

std::array<DrawPlan::Draw, kDataClasses> DrawPlan::At(int64_t step) const {
  std::array<Draw, kDataClasses> draws;
  const auto& before = before_[static_cast<size_t>(step)];
  const auto& after = before_[static_cast<size_t>(step) + 1];
  for (size_t q = 0; q < kDataClasses; ++q) {
    draws[q] = {.first = before[q], .count = static_cast<uint32_t>(after[q] - before[q])};
  }
  return draws;
}

}  // namespace quern
