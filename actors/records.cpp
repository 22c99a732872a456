#include "actors/records.h"

#include <chrono>
#include <limits>

#include "base/strings.h"

namespace quern {

v1::Trajectory NewRecord(const v1::RolloutTask& task, const RolloutOptions& options) {
  using std::chrono::duration_cast;
  v1::Trajectory record;
  record.set_uid(StrCat(options.run, "/", task.stage(), "/"));
  record.set_run(options.run);
  record.set_source(task.source());
  record.set_generation_depth(task.generation_depth());
  *record.mutable_tags() = task.tags();
  *record.mutable_sampling() = task.policy().sampling();
  if (task.policy().weights().empty()) record.add_policies()->set_name(task.policy().name());
  for (const v1::WeightVersion& weights : task.policy().weights()) {
    v1::PolicyVersion& policy = *record.add_policies();
    policy.set_name(weights.name());
    policy.set_version(weights.version());
    policy.set_content_hash(weights.content_hash());
  }
  record.set_created_unix_ms(
      duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count());
  return record;
}

Result<std::vector<uint64_t>> EpisodesToPlay(const v1::RolloutTask& task, const RolloutOptions& options,
                                             const std::string& suffix) {
  std::vector<uint64_t> episodes;
  std::vector<std::string> uids;
  const std::string prefix = NewRecord(task, options).uid();
  for (uint64_t i = 0; i < task.episodes(); ++i) {
    const uint64_t episode = task.first_episode() + i;
    if (std::find(task.skip().begin(), task.skip().end(), episode) != task.skip().end()) continue;
    episodes.push_back(episode);
    uids.push_back(StrCat(prefix, episodes.back(), suffix));
  }
  if (!options.stored || episodes.empty()) return episodes;
  QUERN_ASSIGN_OR_RETURN(const std::vector<bool> stored, options.stored(uids));
  std::vector<uint64_t> left;
  for (size_t i = 0; i < episodes.size(); ++i)
    if (i >= stored.size() || !stored[i]) left.push_back(episodes[i]);
  return left;
}

void AppendTokens(std::span<const int32_t> ids, std::span<const float> log_probs, bool agent, v1::Trajectory& record) {
  for (size_t i = 0; i < ids.size(); ++i) {
    const float log_prob = i < log_probs.size() ? log_probs[i] : std::numeric_limits<float>::quiet_NaN();
    record.mutable_token_ids()->append(reinterpret_cast<const char*>(&ids[i]), 4);
    record.mutable_loss_mask()->push_back(agent ? 1 : 0);
    record.mutable_log_probs()->append(reinterpret_cast<const char*>(&log_prob), 4);
  }
}

void AddMessage(const char* role, const std::string& text, v1::Trajectory& record) {
  v1::Message& message = *record.add_messages();
  message.set_role(role);
  message.set_content(text);
}

void SetInt32s(std::span<const int32_t> values, std::string* bytes) {
  bytes->assign(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

void SetFloats(std::span<const float> values, std::string* bytes) {
  bytes->assign(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

Compression CompressionOf(const v1::SamplingParams& sampling) {
  if (!sampling.has_compression()) return {};
  const v1::Compression& c = sampling.compression();
  return {.budgets = {c.budgets().begin(), c.budgets().end()},
          .key_channels = c.key_channels(),
          .query_window = c.query_window(),
          .recent = c.recent()};
}

SamplingOptions SamplingOf(const v1::SamplingParams& params) {
  SamplingOptions out;
  out.temperature = params.temperature();
  out.top_k = static_cast<int32_t>(params.top_k());
  out.top_p = params.top_p() > 0 ? params.top_p() : 1.0f;
  out.min_p = params.min_p();
  out.repetition_penalty = params.repetition_penalty() > 0 ? params.repetition_penalty() : 1.0f;
  return out;
}

std::function<bool(std::span<const int32_t>)> StopAt(const Tokenizer& tokenizer, const std::string& closing) {
  if (closing.empty()) return {};
  return [&tokenizer, closing](std::span<const int32_t> ids) {
    return tokenizer.Decode(ids, true).find(closing) != std::string::npos;
  };
}

}  // namespace quern
