#include "learner/probes.h"

#include <algorithm>

#include "base/strings.h"
#include "methods/sft.h"

namespace quern {

namespace {

struct ProbeSizes {
  std::vector<int64_t> sizes;  // ascending
  int64_t reference = 0;       // the size that probe_steps belongs to
};

// What the options ask for and the real records allow; where that leaves no two, half, a quarter and an eighth of them.
ProbeSizes SizesOf(const MixtureOptions& options, int64_t real) {
  ProbeSizes out;
  const auto take = [&](const std::vector<int64_t>& wanted) {
    out.sizes.clear();
    for (const int64_t size : wanted) {
      if (size > 0 && size <= real) out.sizes.push_back(size);
    }
    std::sort(out.sizes.begin(), out.sizes.end());
    out.sizes.erase(std::unique(out.sizes.begin(), out.sizes.end()), out.sizes.end());
  };
  take(options.probe_sizes);
  if (out.sizes.size() < 2) take({real / 8, real / 4, real / 2});
  if (!options.probe_sizes.empty()) {
    out.reference = *std::max_element(options.probe_sizes.begin(), options.probe_sizes.end());
  } else if (!out.sizes.empty()) {
    out.reference = out.sizes.back();
  }
  return out;
}

Result<double> RunProbe(const ProbeContext& context, size_t data_class, int64_t size, int64_t steps) {
  QUERN_RETURN_IF_ERROR(context.reset());
  OptimizerOptions optimizer = context.optimizer;
  optimizer.max_steps = steps;
  optimizer.warmup_steps = std::min(optimizer.warmup_steps, steps / 4);
  QUERN_RETURN_IF_ERROR(context.trainer->Begin(optimizer, std::nullopt));
  DrawOptions draw = context.draw;
  draw.limits[data_class] = static_cast<uint64_t>(size);
  MixtureState alone;
  alone.n[data_class] = static_cast<double>(size);
  BatchSource source(draw, DrawPlan(Mixture({}, alone), context.batch_size, steps), steps);
  const SftObjective objective;
  for (int64_t step = 0; step < steps; ++step) {
    QUERN_ASSIGN_OR_RETURN(const TrainingBatch batch, source.Next(step));
    QUERN_RETURN_IF_ERROR(context.trainer->Step(batch, objective, nullptr).status());
    QUERN_RETURN_IF_ERROR(context.alive(StrCat("probe on ", size, " ", kDataClassNames[data_class], " records")));
  }
  return context.heldout->Measure(*context.trainer).loss;
}

}  // namespace

Status MeasureMixture(const ProbeContext& context, const MixtureOptions& options, const DataSummary& data,
                      MixtureState& state, std::map<std::string, double>& metrics) {
  const auto records = [&](size_t q) { return static_cast<int64_t>(data[q].records()); };
  // Sizes count records, the controller's n unique ones.
  const double unique_share =
      records(kRealData) > 0 ? state.n[kRealData] / static_cast<double>(records(kRealData)) : 1.0;
  const ProbeSizes probe_sizes = SizesOf(options, records(kRealData));
  const std::vector<int64_t>& sizes = probe_sizes.sizes;
  bool shift_wanted = false;
  for (size_t q = kVerifiedData; q < kDataClasses; ++q) shift_wanted |= records(q) > 0 && options.c2[q] < 0;
  const bool probes_wanted = options.sigma2d < 0 || shift_wanted;
  if (probes_wanted) {
    if (context.heldout->empty()) {
      return FailedPrecondition(
          "the mixture's probes need held-out real records: give data.heldout, or mixture.sigma2d and mixture.c2");
    }
    if (options.probe_steps <= 0 || sizes.empty() || (options.sigma2d < 0 && sizes.size() < 2)) {
      return FailedPrecondition(StrCat("the mixture has no ", options.sigma2d < 0 ? "sigma2d" : "c2",
                                       " and no probes of at least two sizes to measure it: set mixture.probe_steps and"
                                       " mixture.probe_sizes (up to the ",
                                       records(kRealData), " real records), or mixture.sigma2d and mixture.c2"));
    }
  }
  std::map<int64_t, double> real_loss;
  const auto probe = [&](size_t q, int64_t size) -> Result<double> {
    if (q == kRealData && real_loss.contains(size)) return real_loss[size];
    const int64_t steps = std::max<int64_t>(1, options.probe_steps * size / probe_sizes.reference);
    QUERN_ASSIGN_OR_RETURN(const double loss, RunProbe(context, q, size, steps));
    metrics[StrCat("probe_", kDataClassNames[q], "_", size)] = loss;
    if (q == kRealData) real_loss[size] = loss;
    return loss;
  };

  state.sigma2d = options.sigma2d;
  if (options.sigma2d < 0) {
    std::vector<LossPoint> points;
    for (const int64_t size : sizes) {
      QUERN_ASSIGN_OR_RETURN(const double loss, probe(kRealData, size));
      points.push_back({static_cast<double>(size) * unique_share, loss});
    }
    const ExcessFit fit = FitExcess(points);
    state.sigma2d = fit.sigma2d;
    metrics["e0"] = fit.e0;
  }
  metrics["sigma2d"] = state.sigma2d;
  for (size_t q = kVerifiedData; q < kDataClasses; ++q) {
    if (records(q) == 0) continue;
    state.c2[q] = options.c2[q];
    if (options.c2[q] < 0) {
      int64_t size = std::min(sizes.front(), records(q));
      for (const int64_t larger : sizes) size = larger <= records(q) ? larger : size;
      QUERN_ASSIGN_OR_RETURN(const double shifted, probe(q, size));
      QUERN_ASSIGN_OR_RETURN(const double real, probe(kRealData, size));
      state.c2[q] = std::max(0.0, shifted - real);
    }
    metrics[StrCat("c2_", kDataClassNames[q])] = state.c2[q];
  }
  return {};
}

}  // namespace quern
