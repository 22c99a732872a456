#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace quern {

// How much of a batch's loss may come from generated data. Strong Model Collapse (Dohmatob et al., arXiv 2410.04840): a
// fixed share of generated data is a floor under the loss however much real data there is; a share that falls like
// 1 / n_real is not. Mathematics only: no store, no model. Units: n in records, losses in nats a token.
//
// Classes of data, by how much is known of a text's worth. Their numbers are those of v1::DataClass minus one.
enum DataClassIndex { kRealData, kVerifiedData, kHintedData, kUnverifiedData, kDataClasses };
inline constexpr std::array<const char*, kDataClasses> kDataClassNames = {"real", "verified", "hinted", "unverified"};

// Parts of a batch's loss by class; they sum to 1.
using Shares = std::array<double, kDataClasses>;
double GeneratedShare(const Shares& shares);

// What the closed forms need. E is the excess of the loss on real data over the best that can be had:
//   E(omega) = sum_q omega_q^2 c2_q + (1 - Omega)^2 sigma2d / n_real + sum_q omega_q^2 sigma2d / n_q,  Omega = sum
//   omega_q
// c2_q = E ||delta_q||^2 is the whole squared shift between class q and real data (the isotropic reading: covariance
// c2 / d in each of d directions), in the units of the loss; shifts of different classes are taken as independent.
struct MixtureState {
  double sigma2d = 0;                     // excess loss of n real records alone is sigma2d / n
  std::array<double, kDataClasses> n{};   // unique records; n[kRealData] = n_real
  std::array<double, kDataClasses> c2{};  // c2[kRealData] = 0
};
double ExcessLoss(const MixtureState& state, const Shares& shares);
// Upper bounds of each class's share that keep the floor (sum_q omega_q c_q)^2 (shifts that add up: the worst case) at
// or below rho * sigma2d / n_real, an equal part of its root for each class there is. One class: sqrt(rho A / c2).
Shares FloorCaps(const MixtureState& state, double rho);
inline constexpr Shares kNoCaps = {1, 1, 1, 1};
// The minimiser of ExcessLoss below the caps: omega_q = min(cap_q, (1 - Omega) A / (c2_q + sigma2d / n_q)), A = sigma2d
// / n_real. One class without a cap: A / (A + B + c2). More shift or more real data never gives a larger Omega.
Shares BestShares(const MixtureState& state, const Shares& caps = kNoCaps);
// Loss weight of a generated record, where a real one weighs 1, for share omega of n_generated records beside n_real;
// and back.
double LossWeight(double omega, double n_real, double n_generated);
double ShareOfWeight(double weight, double n_real, double n_generated);

// e(n) = sigma2d / n + e0 by least squares; sigma2d is 0 or more.
struct ExcessFit {
  double sigma2d = 0;
  double e0 = 0;
};
struct LossPoint {
  double n = 0;
  double loss = 0;
};
ExcessFit FitExcess(std::span<const LossPoint> points);

struct SharePoint {
  double at = 0;
  double share = 0;
};

struct MixtureOptions {
  enum class Policy {
    kFixed,       // always `share`
    kScheduled,   // by `schedule`, straight between its points
    kController,  // the closed forms
    kRealOnly,
  };
  Policy policy = Policy::kFixed;
  double share = 0.5;
  std::vector<SharePoint> schedule;
  bool schedule_by_real = false;  // points are numbers of real records, between them straight in their logarithm;
                                  // otherwise progress of the stage in [0, 1]
  // Controller.
  double rho = 0.1;
  double omega_max = 1;      // the user's bound
  double final_phase = 0.1;  // the last part of a stage has real data only
  double sigma2d = -1;       // negative: measured by probes
  std::array<double, kDataClasses> c2 = {0, -1, -1, -1};
  int64_t probe_steps = 0;  // of the largest probe; smaller ones pass over their records as often. 0: no probes
  std::vector<int64_t> probe_sizes;
  double follow_tolerance = 0.02;  // nats by which the real validation loss may miss what 1 / n_real promises
  // Every policy.
  double hinted_max = 0.2;   // of the batch
  int64_t real_records = 0;  // use only the first so many real records; 0: all
};

// The share of each class over a stage. Real data is never left out but by a fixed or scheduled share of 1; where one
// kind of data is missing the other has everything.
class Mixture {
 public:
  // state.n decides which classes there are; sigma2d and c2 matter to the controller only.
  Mixture(const MixtureOptions& options, const MixtureState& state);

  // At 0-based step `step` of `steps`, before any halving: a pure function.
  Shares Planned(int64_t step, int64_t steps) const;
  // The same with the halvings so far.
  Shares Current(int64_t step, int64_t steps) const;
  const MixtureState& state() const { return state_; }

  // Real validation loss during a stage, in order: a rise by more than the tolerance over the stage's best while
  // generated data has a share halves it. True when it did. Controller only.
  bool ObserveCheck(double loss, double omega);
  // At the end of a stage, against the ends of earlier ones: the loss should have fallen by
  // sigma2d (1 / n_before - 1 / n_now); missing more than half of that and the tolerance halves the share of what
  // follows.
  bool ObservePhase(std::span<const LossPoint> earlier, double loss, double omega);
  int halvings() const { return progress_.halvings; }
  // What checks and phases have left behind.
  struct Progress {
    int halvings = 0;
    bool checked = false;
    double best_check = 0;
  };
  const Progress& progress() const { return progress_; }
  void set_progress(const Progress& progress) { progress_ = progress; }

 private:
  Shares Divide(double omega) const;
  double Omega(int64_t step, int64_t steps) const;

  MixtureOptions options_;
  MixtureState state_;
  Shares controlled_{};
  Progress progress_;
};

// How many records of each class a stage's batches hold, so that over the steps the counts follow the planned shares,
// with at least one record of every class that has a share: the loss weights can then make each batch's shares exact.
class DrawPlan {
 public:
  struct Draw {
    uint64_t first = 0;  // position in the class's sequence
    uint32_t count = 0;
  };
  // batch_size >= the number of classes with a share.
  DrawPlan(const Mixture& mixture, int64_t batch_size, int64_t steps);
  std::array<Draw, kDataClasses> At(int64_t step) const;

 private:
  std::vector<std::array<uint64_t, kDataClasses>> before_;  // records drawn before each step
};

}  // namespace quern
