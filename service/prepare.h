#pragma once

#include <memory>

#include "actors/environment.h"
#include "base/status.h"
#include "model/chat_template/chat_template.h"
#include "model/config.h"
#include "model/tokenizer/tokenizer.h"
#include "service/job.h"
#include "service/run_directory.h"

namespace quern {

// The job's environment, or that of one of evaluate.sets.
Result<std::shared_ptr<const EnvironmentFactory>> EnvironmentOf(const Job& job, const std::string& set = {});
Result<std::shared_ptr<const EnvironmentFactory>> EnvironmentOf(const Job& job, const QuestionsSection& from);

// Everything that can be wrong with a job before any process starts: the environment and its options, the players,
// files to import, the model directory and its tokenizer. Writes nothing. An environment without any player gets none
// to evaluate; regenesis.questions becomes the number of questions where it is 0, compression.key_ratio a number of
// channels.
Status CheckJob(Job& job);

// Whether this host has what job.device names, and whether that can do what the job asks for; `auto` becomes `cpu`
// where a GPU could not. Says in one line of the log when it is a GPU. Starts nothing on it.
Status SettleDevice(Job& job);

// What a run's texts go through on their way to the model: its chat template, or null.
Result<std::shared_ptr<const ChatTemplate>> ChatTemplateOf(const Job& job, const std::string& model_directory);

// The model that training starts from: job.model_name_or_path, or a self-made one written to RUN/model.
Result<BaseModel> PrepareModel(const Run& run);

// The same model without its weights, for `quern plan`. A tokenizer that is made of the environment's vocabulary is
// written to `scratch`.
struct PlannedModel {
  ModelConfig config;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::string directory;  // where its chat template would be
};
Result<PlannedModel> PlanModel(const Job& job, const std::string& scratch);

// An id that no text uses, for Q-SFT's dummy action: the self-made "<dummy>", an id beyond the tokenizer's, or a
// special token other than the begin and end of text. -1: none.
int32_t FindReservedToken(const ModelConfig& config, const Tokenizer& tokenizer);

}  // namespace quern
