#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "actors/rollout.h"
#include "model/compression.h"
#include "model/sampler.h"

namespace quern {

// What a task's records have in common. The uid is only begun: "RUN/STAGE/".
v1::Trajectory NewRecord(const v1::RolloutTask& task, const RolloutOptions& options);
// The task's episodes whose records, named PREFIX + episode + `suffix`, are not stored yet.
Result<std::vector<uint64_t>> EpisodesToPlay(const v1::RolloutTask& task, const RolloutOptions& options,
                                             const std::string& suffix);
// log_probs: one a token, or none: NaN.
void AppendTokens(std::span<const int32_t> ids, std::span<const float> log_probs, bool agent, v1::Trajectory& record);
void AddMessage(const char* role, const std::string& text, v1::Trajectory& record);
void SetInt32s(std::span<const int32_t> values, std::string* bytes);
void SetFloats(std::span<const float> values, std::string* bytes);

SamplingOptions SamplingOf(const v1::SamplingParams& params);
Compression CompressionOf(const v1::SamplingParams& params);
// GenerateOptions::stop for a closing text; none for an empty one.
std::function<bool(std::span<const int32_t>)> StopAt(const Tokenizer& tokenizer, const std::string& closing);

}  // namespace quern
