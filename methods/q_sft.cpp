#include "methods/q_sft.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/check.h"

namespace quern {

QSftObjective::QSftObjective(const QSftOptions& options, int64_t vocab_size)
    : options_(options), vocab_size_(vocab_size), lambda_(static_cast<double>(options.lambda_start)) {
  QUERN_CHECK(options.remainder != QSftOptions::Remainder::kDummy || options.reserved_token >= 0);
}

void QSftObjective::SetProgress(double progress) {
  const double share = std::min(1.0, progress / std::max(1e-6, static_cast<double>(options_.lambda_anneal)));
  lambda_ = std::lerp(static_cast<double>(options_.lambda_start), static_cast<double>(options_.lambda_end), share);
}

int32_t QSftObjective::reserved_token() const {
  return options_.remainder == QSftOptions::Remainder::kDummy ? options_.reserved_token : -1;
}

void QSftObjective::Coefficients(std::span<const LossRow> rows, std::span<const float> max_ratio, double normaliser,
                                 RowCoefficients& out, MethodMetrics& metrics) const {
  QUERN_CHECK(max_ratio.size() == rows.size());
  const bool dummy = options_.remainder == QSftOptions::Remainder::kDummy;
  const double k = static_cast<double>(vocab_size_);
  out.a.resize(rows.size());
  out.b.assign(dummy ? 0 : rows.size(), 0.0f);
  out.c.assign(dummy ? rows.size() : 0, 0.0f);
  // Targets from the end of each episode backwards: the agent's next token stands later in `rows`.
  std::vector<double> targets(rows.size());
  double low = 0, high = 0, sum = 0;
  for (size_t i = rows.size(); i-- > 0;) {
    const LossRow& row = rows[i];
    double target = static_cast<double>(row.reward);
    if (row.next >= 0) {
      const auto next = static_cast<size_t>(row.next);
      const float gamma = (row.closes_turn ? options_.gamma_turn : options_.gamma_token) * row.discount;
      const auto ratio = static_cast<double>(max_ratio[next]);
      const bool follows = lambda_ > 0 && next > i && rows[next].has_target;
      const double value = follows ? (1 - lambda_) * ratio + lambda_ * targets[next] : ratio;
      target += static_cast<double>(gamma) * value;
    }
    low += row.has_target && target < -1e-6 ? 1 : 0;
    high += row.has_target && target > 1 + 1e-6 ? 1 : 0;
    targets[i] = std::clamp(target, 0.0, 1.0);
    sum += targets[i];
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    const LossRow& row = rows[i];
    const double w = targets[i];
    if (!row.has_target) {
      out.a[i] = 0;
      continue;
    }
    const double scale = static_cast<double>(row.weight) / normaliser;
    if (dummy) {
      out.a[i] = static_cast<float>(-w * scale);
      out.c[i] = static_cast<float>(-(1 - w) * scale);
    } else {
      const double rest = (1 - w) / (k - 1);
      out.a[i] = static_cast<float>(-(w - rest) * scale);
      out.b[i] = static_cast<float>(-rest * k * scale);
    }
  }
  metrics["clip_low"] += low;
  metrics["clip_high"] += high;
  metrics["target"] += sum;
}

namespace {

// Probabilities of a row, without the reserved id.
void Softmax(std::span<const float> logits, int32_t reserved, std::vector<float>& out) {
  out.assign(logits.begin(), logits.end());
  if (reserved >= 0) out[static_cast<size_t>(reserved)] = -std::numeric_limits<float>::infinity();
  const float largest = *std::max_element(out.begin(), out.end());
  double total = 0;
  for (float& z : out) {
    z = std::exp(z - largest);
    total += static_cast<double>(z);
  }
  const auto inverse = static_cast<float>(1.0 / total);
  for (float& z : out) z *= inverse;
}

}  // namespace

void QSftHead::Combine(std::span<const std::span<const float>> model_logits, std::span<float> out) const {
  const int32_t reserved = options_.remainder == QSftOptions::Remainder::kDummy ? options_.reserved_token : int32_t{-1};
  thread_local std::vector<float> behaviour, value;
  thread_local std::vector<int32_t> order;
  Softmax(model_logits[0], options_.reserved_token, behaviour);
  // The value model keeps its dummy mass in the normaliser: p_value is the quantity that converged to pi * Q.
  Softmax(model_logits[1], reserved >= 0 ? int32_t{-1} : options_.reserved_token, value);
  const size_t v = behaviour.size();
  std::fill(out.begin(), out.end(), -std::numeric_limits<float>::infinity());

  const auto admit = [&](size_t id) {
    if (out[id] != -std::numeric_limits<float>::infinity()) return;
    const float pi = behaviour[id];
    const float score = options_.rule == QSftOptions::Rule::kRatio
                            ? std::min(1.0f, value[id] / std::max(pi, options_.support_epsilon))
                            : value[id];
    out[id] = std::log(std::max(pi, std::numeric_limits<float>::min())) + options_.beta * score;
  };
  double mass = 0;
  for (size_t id = 0; id < v; ++id) {
    if (static_cast<int32_t>(id) == options_.reserved_token) continue;
    if (behaviour[id] >= options_.support_epsilon) {
      admit(id);
      mass += static_cast<double>(behaviour[id]);
    }
  }
  // Every id above epsilon is more likely than every id below it, so the nucleus is extended from there.
  if (mass < static_cast<double>(options_.support_top_p)) {
    order.clear();
    for (size_t id = 0; id < v; ++id) {
      if (behaviour[id] < options_.support_epsilon && static_cast<int32_t>(id) != options_.reserved_token) {
        order.push_back(static_cast<int32_t>(id));
      }
    }
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      const float pa = behaviour[static_cast<size_t>(a)];
      const float pb = behaviour[static_cast<size_t>(b)];
      return pa != pb ? pa > pb : a < b;
    });
    for (size_t i = 0; i < order.size() && mass < static_cast<double>(options_.support_top_p); ++i) {
      admit(static_cast<size_t>(order[i]));
      mass += static_cast<double>(behaviour[static_cast<size_t>(order[i])]);
    }
  }
}

}  // namespace quern
