// Q-SFT's loss, targets and policies against the numbers of docs/methods.md, through the ops and objective that train.
#include "methods/q_sft.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/thread_pool.h"
#include "compute/cpu/cpu_ops.h"

namespace quern {
namespace {

using Vector = std::vector<double>;

// A table of logits, one row a state, trained with the real objective and ops.
class Table {
 public:
  Table(int64_t states, int64_t vocab) : pool_(1), ops_(NewCpuOps(&pool_)), logits_(DType::kF32, states, vocab) {}

  Ops& ops() { return *ops_; }
  const Tensor& logits() const { return logits_; }
  float& At(int64_t state, int64_t id) { return logits_.Row<float>(state)[id]; }

  Vector Probabilities(int64_t state) const {
    Vector out;
    double total = 0;
    for (int64_t i = 0; i < logits_.cols(); ++i) {
      out.push_back(std::exp(static_cast<double>(logits_.Row<float>(state)[i])));
      total += out.back();
    }
    for (double& p : out) p /= total;
    return out;
  }

  // The row of its state for every loss row.
  Tensor Gathered(std::span<const LossRow> rows) const {
    Tensor out(DType::kF32, static_cast<int64_t>(rows.size()), logits_.cols());
    for (size_t i = 0; i < rows.size(); ++i) {
      std::copy_n(logits_.Row<float>(rows[i].row), logits_.cols(), out.Row<float>(static_cast<int64_t>(i)));
    }
    return out;
  }

 private:
  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  Tensor logits_;
};

std::vector<int32_t> TargetsOf(std::span<const LossRow> rows) {
  std::vector<int32_t> out;
  for (const LossRow& row : rows) out.push_back(row.target);
  return out;
}

TensorView Vec(std::vector<float>& values) {
  if (values.empty()) return {};
  const auto n = static_cast<int64_t>(values.size());
  return {values.data(), DType::kF32, 1, n, n};
}

std::vector<float> MaxRatios(Table& value, Table& behaviour, std::span<const LossRow> rows, const QSftOptions& o) {
  const Tensor v = value.Gathered(rows);
  const Tensor b = behaviour.Gathered(rows);
  std::vector<float> out(rows.size());
  value.ops().MaxRatio({.value_logits = v,
                        .behaviour_logits = b,
                        .epsilon = o.support_epsilon,
                        .top_p = o.support_top_p,
                        .reserved = o.reserved_token,
                        .max_ratio = Vec(out)});
  return out;
}

struct Gradient {
  double loss = 0;
  Tensor dlogits;  // a row per loss row
};

Gradient LossAndGradient(Table& value, std::span<const LossRow> rows, RowCoefficients& c, int32_t reserved) {
  Gradient out;
  out.dlogits = value.Gathered(rows);
  const std::vector<int32_t> targets = TargetsOf(rows);
  std::vector<float> lse(rows.size()), log_prob(rows.size()), mean(rows.size());
  value.ops().LogSoftmax({.logits = out.dlogits,
                          .targets = targets,
                          .lse = Vec(lse),
                          .log_prob = Vec(log_prob),
                          .mean_log_prob = Vec(mean),
                          .entropy = {}});
  for (size_t i = 0; i < rows.size(); ++i) {
    out.loss += static_cast<double>(c.a[i] * log_prob[i]);
    if (!c.b.empty()) out.loss += static_cast<double>(c.b[i] * mean[i]);
    if (!c.c.empty()) {
      out.loss += static_cast<double>(c.c[i] * (out.dlogits.Row<float>(static_cast<int64_t>(i))[reserved] - lse[i]));
    }
  }
  value.ops().LogSoftmaxBackward({.logits = out.dlogits,
                                  .lse = Vec(lse),
                                  .targets = targets,
                                  .a = Vec(c.a),
                                  .b = Vec(c.b),
                                  .c = Vec(c.c),
                                  .reserved = reserved,
                                  .dlogits = out.dlogits});
  return out;
}

// Gradient descent on the expected loss until the table stands still; the target is the table itself.
void Train(Table& value, Table& behaviour, const std::vector<LossRow>& rows, const QSftOptions& o, int64_t vocab) {
  const QSftObjective objective(o, vocab);
  for (int step = 0; step < 12000; ++step) {
    const std::vector<float> ratios = MaxRatios(value, behaviour, rows, o);
    RowCoefficients c;
    MethodMetrics metrics;
    objective.Coefficients(rows, ratios, 1.0, c, metrics);
    const Gradient g = LossAndGradient(value, rows, c, o.reserved_token);
    for (size_t i = 0; i < rows.size(); ++i) {
      for (int64_t id = 0; id < value.logits().cols(); ++id) {
        value.At(rows[i].row, id) -= 0.8f * g.dlogits.Row<float>(static_cast<int64_t>(i))[id];
      }
    }
  }
}

void ExpectNear(const Vector& got, const Vector& want, double tolerance) {
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], tolerance) << "entry " << i;
}

TEST(QSftKernel, LossAndGradientOfBothRemainders) {
  Table value(1, 4);
  const float z[4] = {0.5f, -0.2f, 0.1f, 0.0f};
  std::copy_n(z, 4, &value.At(0, 0));
  std::vector<LossRow> rows(1);
  rows[0].target = 0;
  rows[0].reward = 0.7f;
  const std::vector<float> ratios(1, 0.0f);
  MethodMetrics metrics;
  for (const auto remainder : {QSftOptions::Remainder::kUniform, QSftOptions::Remainder::kDummy}) {
    QSftOptions o;
    o.remainder = remainder;
    o.reserved_token = 3;
    RowCoefficients c;
    QSftObjective(o, 4).Coefficients(rows, ratios, 1.0, c, metrics);
    const Gradient g = LossAndGradient(value, rows, c, 3);
    const bool uniform = remainder == QSftOptions::Remainder::kUniform;
    EXPECT_NEAR(g.loss, uniform ? 1.180087 : 1.170087, 2e-6);
    const Vector want =
        uniform ? Vector{-0.339436, 0.079051, 0.141693, 0.118693} : Vector{-0.339436, 0.179051, 0.241693, -0.081307};
    for (int i = 0; i < 4; ++i)
      EXPECT_NEAR(static_cast<double>(g.dlogits.Row<float>(0)[i]), want[static_cast<size_t>(i)], 1e-6);
  }
}

// The MDP of methods 1e: gamma 0.9; s0: a0 -> s1, a1 -> end 0.3, a2 -> end 0; s1: a0 -> end 1, a1 -> end 0.2, a2 -> s0.
struct Mdp {
  const double pi[2][3] = {{0.2, 0.5, 0.3}, {0.1, 0.6, 0.3}};
  const double reward[2][3] = {{0, 0.3, 0}, {1, 0.2, 0}};
  const int next[2][3] = {{1, -1, -1}, {-1, -1, 0}};

  // Every (state, action) pair weighted by the behaviour: the expected loss.
  std::vector<LossRow> Rows() const {
    std::vector<LossRow> rows;
    for (int s = 0; s < 2; ++s) {
      for (int a = 0; a < 3; ++a) {
        LossRow row;
        row.row = s;
        row.target = a;
        row.closes_turn = true;
        row.reward = static_cast<float>(reward[s][a]);
        row.weight = static_cast<float>(pi[s][a]);
        row.next = next[s][a] < 0 ? -1 : next[s][a] * 3;  // any row of that state
        rows.push_back(row);
      }
    }
    return rows;
  }

  Vector Value(const double policy[2][3]) const {
    double v[2] = {0, 0};
    for (int sweep = 0; sweep < 5000; ++sweep) {
      double w[2] = {0, 0};
      for (int s = 0; s < 2; ++s) {
        for (int a = 0; a < 3; ++a) {
          w[s] += policy[s][a] * (reward[s][a] + (next[s][a] < 0 ? 0 : 0.9 * v[next[s][a]]));
        }
      }
      v[0] = w[0];
      v[1] = w[1];
    }
    return {v[0], v[1]};
  }
};

QSftOptions MdpOptions(QSftOptions::Remainder remainder) {
  QSftOptions o;
  o.remainder = remainder;
  o.gamma_turn = 0.9f;
  o.support_epsilon = 0.01f;
  o.reserved_token = 3;
  return o;
}

void SetBehaviour(Table& behaviour, const Mdp& mdp) {
  for (int s = 0; s < 2; ++s) {
    for (int a = 0; a < 3; ++a) behaviour.At(s, a) = static_cast<float>(std::log(mdp.pi[s][a]));
    if (behaviour.logits().cols() > 3) behaviour.At(s, 3) = -30.0f;
  }
}

TEST(QSftTabular, DummyFixedPointIsBehaviourTimesOptimalValue) {
  const Mdp mdp;
  Table value(2, 4), behaviour(2, 4);
  SetBehaviour(behaviour, mdp);
  Train(value, behaviour, mdp.Rows(), MdpOptions(QSftOptions::Remainder::kDummy), 4);
  ExpectNear(value.Probabilities(0), {0.18, 0.15, 0.0, 0.67}, 2e-3);
  ExpectNear(value.Probabilities(1), {0.10, 0.12, 0.243, 0.537}, 2e-3);
}

TEST(QSftTabular, UniformFixedPointLeaksAsComputed) {
  const Mdp mdp;
  Table value(2, 3), behaviour(2, 3);
  SetBehaviour(behaviour, mdp);
  QSftOptions o = MdpOptions(QSftOptions::Remainder::kUniform);
  o.reserved_token = -1;
  Train(value, behaviour, mdp.Rows(), o, 3);
  ExpectNear(value.Probabilities(0), {0.505, 0.310, 0.185}, 2e-3);
  ExpectNear(value.Probabilities(1), {0.355, 0.135, 0.510}, 2e-3);
}

TEST(QSftTabular, ExtractionRules) {
  const Mdp mdp;
  const double fixed_point[2][4] = {{0.18, 0.15, 1e-12, 0.67}, {0.10, 0.12, 0.243, 0.537}};
  struct Case {
    float beta;
    double paper[2], ratio[2];
  };
  const Case cases[] = {{1, {0.2077, 0.2713}, {0.2394, 0.3357}},
                        {4, {0.2289, 0.2649}, {0.5064, 0.6377}},
                        {16, {0.2609, 0.2471}, {0.8760, 0.9734}},
                        {64, {0.1976, 0.1779}, {0.9000, 1.0000}},
                        {1000, {0, 0}, {0.9, 1.0}}};
  for (const Case& c : cases) {
    for (const auto rule : {QSftOptions::Rule::kPaper, QSftOptions::Rule::kRatio}) {
      QSftOptions o = MdpOptions(QSftOptions::Remainder::kDummy);
      o.rule = rule;
      o.beta = c.beta;
      const QSftHead head(o);
      double policy[2][3];
      for (int s = 0; s < 2; ++s) {
        std::vector<float> behaviour(4), value(4), out(4);
        for (int a = 0; a < 4; ++a) {
          behaviour[static_cast<size_t>(a)] = a < 3 ? static_cast<float>(std::log(mdp.pi[s][a])) : -30.0f;
          value[static_cast<size_t>(a)] = static_cast<float>(std::log(fixed_point[s][a]));
        }
        const std::span<const float> inputs[2] = {behaviour, value};
        head.Combine(inputs, out);
        EXPECT_TRUE(std::isinf(out[3])) << "the dummy is never sampled";
        const float largest = *std::max_element(out.begin(), out.end());
        double total = 0;
        for (int a = 0; a < 3; ++a) total += std::exp(static_cast<double>(out[static_cast<size_t>(a)] - largest));
        for (int a = 0; a < 3; ++a) {
          policy[s][a] = std::exp(static_cast<double>(out[static_cast<size_t>(a)] - largest)) / total;
        }
      }
      const double* want = rule == QSftOptions::Rule::kPaper ? c.paper : c.ratio;
      ExpectNear(mdp.Value(policy), {want[0], want[1]}, 2e-3);
    }
  }
}

// Two-token utterances over {A, B}; states: 0 = start, 1 = after A, 2 = after B; id 2 is the dummy.
TEST(QSftTokens, DummyFixedPointInsideAnUtterance) {
  Table value(3, 3), behaviour(3, 3);
  const double pi[3][2] = {{0.25, 0.75}, {0.4, 0.6}, {0.5, 0.5}};
  const double returns[2][2] = {{1, 0.2}, {0.5, 0}};
  std::vector<LossRow> rows;
  for (int s = 0; s < 3; ++s) {
    for (int a = 0; a < 2; ++a) {
      behaviour.At(s, a) = static_cast<float>(std::log(pi[s][a]));
      LossRow row;
      row.row = s;
      row.target = a;
      row.weight = static_cast<float>(pi[s][a]);
      row.closes_turn = s > 0;
      row.next = s == 0 ? 2 * (a + 1) : -1;
      row.reward = s == 0 ? 0.0f : static_cast<float>(returns[s - 1][a]);
      rows.push_back(row);
    }
    behaviour.At(s, 2) = -30.0f;
  }
  QSftOptions o;
  o.reserved_token = 2;
  o.gamma_token = 1.0f;
  Train(value, behaviour, rows, o, 3);
  ExpectNear(value.Probabilities(0), {0.25, 0.375, 0.375}, 2e-3);
  ExpectNear(value.Probabilities(1), {0.40, 0.12, 0.48}, 2e-3);
  ExpectNear(value.Probabilities(2), {0.25, 0.0, 0.75}, 2e-3);
}

TEST(QSftObjective, CountsHowOftenTheClipActs) {
  QSftOptions o;
  o.reserved_token = 0;
  std::vector<LossRow> rows(3);
  rows[0].reward = -0.5f;
  rows[1].reward = 1.5f;
  rows[2].reward = 0.5f;
  RowCoefficients c;
  MethodMetrics metrics;
  QSftObjective(o, 10).Coefficients(rows, std::vector<float>(3, 0.0f), 3.0, c, metrics);
  EXPECT_EQ(metrics["clip_low"], 1);
  EXPECT_EQ(metrics["clip_high"], 1);
  EXPECT_FLOAT_EQ(c.a[0], 0.0f);
  EXPECT_FLOAT_EQ(c.a[1], -1.0f / 3);
  EXPECT_FLOAT_EQ(c.a[2], -0.5f / 3);
  EXPECT_FLOAT_EQ(c.c[2], -0.5f / 3);
}

TEST(QSftHead, UnsupportedTokensAreNeverTaken) {
  QSftOptions o;
  o.reserved_token = 4;
  o.support_epsilon = 0.05f;
  o.support_top_p = 0.9f;
  // 0.5, 0.3 and 0.15 fill the nucleus; 0.02 lies outside of it and below epsilon.
  std::vector<float> behaviour, value(5, 0.0f), out(5);
  for (const double p : {0.5, 0.3, 0.15, 0.02, 0.03}) behaviour.push_back(static_cast<float>(std::log(p)));
  const std::span<const float> inputs[2] = {behaviour, value};
  QSftHead(o).Combine(inputs, out);
  EXPECT_TRUE(std::isfinite(out[0]) && std::isfinite(out[1]) && std::isfinite(out[2]));
  EXPECT_TRUE(std::isinf(out[3]) && std::isinf(out[4]));
}

double Sum(const std::vector<ScaledReward>& rewards) {
  double total = 0;
  for (const ScaledReward& r : rewards) total += static_cast<double>(r.reward);
  return total;
}

TEST(ScaleRewards, LinearReturnsLieInTheUnitIntervalAndDoNotDependOnThePast) {
  RewardScale scale;
  scale.min_return = -6;
  scale.max_return = 0;
  EXPECT_NEAR(Sum(ScaleRewards({-1, -1, 0}, true, scale)), 4.0 / 6, 1e-6);
  EXPECT_NEAR(Sum(ScaleRewards({-1, -1, -1, -1, -1, -1}, true, scale)), 0, 1e-6);
  const auto cheap = ScaleRewards({0, -1, 0}, true, scale);
  const auto dear = ScaleRewards({-3, -1, 0}, true, scale);
  EXPECT_EQ(cheap[1].reward + cheap[2].reward, dear[1].reward + dear[2].reward);
  EXPECT_LT(Sum(ScaleRewards({-1, -1}, false, scale)), 0) << "no end, no payment for it";
}

TEST(ScaleRewards, ExponentialPaysOneAtTheEndAndDiscountsByCost) {
  RewardScale scale;
  scale.kind = RewardScale::Kind::kExponential;
  scale.temperature = 10;
  const auto rewards = ScaleRewards({-1, -4, 0}, true, scale);
  double value = 0;
  for (size_t i = rewards.size(); i-- > 0;) {
    value = static_cast<double>(rewards[i].reward) + static_cast<double>(rewards[i].discount) * value;
  }
  EXPECT_NEAR(value, std::exp(-0.5), 1e-6);
  EXPECT_EQ(Sum(ScaleRewards({-1, -1}, false, scale)), 0);
}

TEST(QSftObjective, LambdaMixesTheObservedOutcomeIn) {
  QSftOptions o;
  o.reserved_token = 0;
  o.gamma_token = 1.0f;
  o.lambda_start = 1.0f;
  o.lambda_end = 0.0f;
  std::vector<LossRow> rows(3);
  rows[0].next = 1;
  rows[1].next = 2;
  rows[2].reward = 0.4f;
  const std::vector<float> ratios = {0.9f, 0.8f, 0.6f};
  QSftObjective objective(o, 10);
  RowCoefficients c;
  MethodMetrics metrics;
  objective.Coefficients(rows, ratios, 1.0, c, metrics);
  EXPECT_NEAR(c.a[0], -0.4f, 1e-6f) << "lambda 1: the outcome alone";
  objective.SetProgress(0.5);
  objective.Coefficients(rows, ratios, 1.0, c, metrics);
  EXPECT_NEAR(c.a[1], -(0.5f * 0.6f + 0.5f * 0.4f), 1e-6f);
  EXPECT_NEAR(c.a[0], -(0.5f * 0.8f + 0.5f * 0.5f), 1e-6f);
  objective.SetProgress(1.0);
  objective.Coefficients(rows, ratios, 1.0, c, metrics);
  EXPECT_NEAR(c.a[0], -0.8f, 1e-6f) << "lambda 0: the bootstrap alone";
}

TEST(QSftObjective, ACutOffEpisodeTeachesNothingAboutItsLastToken) {
  QSftOptions o;
  o.reserved_token = 0;
  std::vector<LossRow> rows(1);
  rows[0].has_target = false;
  RowCoefficients c;
  MethodMetrics metrics;
  QSftObjective(o, 10).Coefficients(rows, std::vector<float>(1, 0.0f), 1.0, c, metrics);
  EXPECT_EQ(c.a[0], 0);
  EXPECT_EQ(c.c[0], 0);
}

}  // namespace
}  // namespace quern
