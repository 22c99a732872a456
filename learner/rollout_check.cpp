#include "learner/rollout_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "methods/policy_log_probs.h"

namespace quern {

namespace {

constexpr uint32_t kMostLookedAt = 256;  // records
constexpr size_t kMostCompared = 16;     // of a policy and look

// Of one or two models, with sampled tokens (a played episode's, or those of a reasoning chain's stages).
bool IsComparable(const v1::Trajectory& record) {
  if (record.policies_size() < 1 || record.policies_size() > 2 || record.sampling().has_compression()) return false;
  return record.has_chain() ? record.chain().stages_size() > 0 : !record.log_probs().empty();
}

// A sequence, and which of its tokens were sampled.
struct Sampled {
  TokenBatch batch;
  std::vector<int64_t> rows;
  std::vector<int32_t> targets;
  std::vector<float> stored;
};

template <typename T>
std::vector<T> FromBytes(const std::string& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

// Of every token but the first that has a log-probability.
Sampled Sequence(const std::vector<int32_t>& ids, const std::vector<float>& log_probs) {
  Sampled out;
  out.batch.Add(ids.data(), std::ssize(ids), 0, nullptr);
  for (size_t i = 1; i < ids.size() && i < log_probs.size(); ++i) {
    if (std::isnan(log_probs[i])) continue;
    out.rows.push_back(static_cast<int64_t>(i) - 1);
    out.targets.push_back(ids[i]);
    out.stored.push_back(log_probs[i]);
  }
  return out;
}

std::vector<Sampled> Sequences(const v1::Trajectory& record) {
  std::vector<Sampled> out;
  if (!record.has_chain()) {
    out.push_back(Sequence(FromBytes<int32_t>(record.token_ids()), FromBytes<float>(record.log_probs())));
    return out;
  }
  for (const v1::ChainStage& stage : record.chain().stages()) {
    std::vector<int32_t> ids = FromBytes<int32_t>(stage.prompt_token_ids());
    std::vector<float> log_probs(ids.size(), std::numeric_limits<float>::quiet_NaN());
    const std::vector<int32_t> written = FromBytes<int32_t>(stage.token_ids());
    const std::vector<float> stored = FromBytes<float>(stage.log_probs());
    ids.insert(ids.end(), written.begin(), written.end());
    log_probs.insert(log_probs.end(), stored.begin(), stored.end());
    out.push_back(Sequence(ids, log_probs));
  }
  return out;
}

}  // namespace

void RolloutDifference::Add(const RolloutDifference& other) {
  // Not a number is larger than any.
  if (!(other.largest <= largest)) {
    largest = other.largest;
    worst = other.worst;
  }
  sum += other.sum;
  tokens += other.tokens;
}

Result<std::map<std::string, std::vector<v1::Trajectory>>> FindRollouts(Replay& replay, const v1::WeightVersion& last,
                                                                        const std::vector<v1::WeightVersion>& known,
                                                                        const std::vector<std::string>& without_tags,
                                                                        Deadline deadline) {
  std::map<std::string, std::vector<v1::Trajectory>> found;
  std::map<std::string, size_t> enough;  // by policy: records after this look
  std::set<std::string> seen;
  for (const bool tagged : {false, true}) {
    for (const auto& [first, records] : found) enough[first] = records.size();
    v1::QueryRequest query;
    query.mutable_filter()->set_source(v1::SOURCE_GENERATED);
    query.mutable_filter()->set_min_version(last.version());
    query.mutable_filter()->set_max_version(last.version());
    if (tagged) query.mutable_filter()->mutable_without_tags()->Add(without_tags.begin(), without_tags.end());
    query.set_limit(kMostLookedAt);
    QUERN_ASSIGN_OR_RETURN(const v1::QueryReply reply, replay.Query(query, deadline));
    for (const std::string& bytes : reply.trajectories()) {
      v1::Trajectory t;
      if (!t.ParseFromString(bytes) || !IsComparable(t) || seen.contains(t.uid())) continue;
      const std::string first = t.policies(0).content_hash();
      const bool there = std::any_of(known.begin(), known.end(),
                                     [&](const v1::WeightVersion& w) { return w.content_hash() == first; });
      if (!there || t.policies(t.policies_size() - 1).content_hash() != last.content_hash()) continue;
      const std::string key = t.policies_size() == 2 ? first : "";
      if (found[key].size() >= enough[key] + kMostCompared) continue;
      seen.insert(t.uid());
      found[key].push_back(std::move(t));
    }
  }
  return found;
}

RolloutDifference CompareRollouts(Ops& ops, const Trainer& trainer, const Weights* behaviour, const QSftOptions& q_sft,
                                  int32_t reserved, const std::vector<v1::Trajectory>& records) {
  const Transformer& transformer = trainer.transformer();
  std::vector<PolicyModel> models;
  if (behaviour != nullptr) models.push_back({&transformer, behaviour});
  models.push_back({&transformer, &trainer.weights()});
  Arena arena(ops.memory());
  RolloutDifference out;
  for (const v1::Trajectory& record : records) {
    QSftOptions q = q_sft;
    q.beta = record.sampling().q_sft_beta();
    q.rule = record.sampling().rule() == "paper" ? QSftOptions::Rule::kPaper : QSftOptions::Rule::kRatio;
    q.reserved_token = reserved;
    const SingleModelHead single(reserved);
    const QSftHead pair(q);
    const PolicyHead& head = behaviour == nullptr ? static_cast<const PolicyHead&>(single) : pair;
    for (Sampled& sequence : Sequences(record)) {
      if (sequence.batch.rows() > transformer.max_positions()) continue;
      const std::vector<float> now =
          PolicyLogProbs(ops, models, head, sequence.batch, sequence.rows, sequence.targets, arena);
      for (size_t i = 0; i < now.size(); ++i) {
        const double difference = std::abs(static_cast<double>(now[i]) - static_cast<double>(sequence.stored[i]));
        out.Add({.largest = difference, .sum = difference, .tokens = 1, .worst = record.uid()});
      }
    }
  }
  return out;
}

}  // namespace quern
