#pragma once

#include <memory>
#include <span>
#include <string>

#include "methods/training_batch.h"
#include "model/chat_template/dialogue.h"
#include "model/tokenizer/tokenizer.h"
#include "proto/record.pb.h"

namespace quern {

struct BatchOptions {
  int64_t max_positions = 512;  // longer episodes are cut at the end: whole turns that do not fit are left out
  RewardScale rewards;
  std::vector<int32_t> end_ids;  // as RolloutOptions has them, for text that is tokenised here
  std::shared_ptr<const ChatTemplate> chat_template;
  std::string action_end;  // the environment's closing text of an utterance
};

// Gives a record that has only messages (imported text) its token ids, loss mask and turns: the same rules as rollouts,
// one message at a time, so that both kinds of data look alike to the model. Records with token ids are left alone.
Status TokenizeTrajectory(const Tokenizer& tokenizer, const BatchOptions& options, v1::Trajectory& trajectory);

// Packs trajectories and marks where their loss lies and which class of data (DataClassIndex) each token is of. A
// record that fails to parse or disagrees with itself is an error that names its uid.
Result<TrainingBatch> BuildBatch(std::span<const v1::Trajectory> trajectories, const BatchOptions& options);

}  // namespace quern
