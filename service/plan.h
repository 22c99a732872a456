#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "service/job.h"

namespace quern {

inline constexpr char kBaseModel[] = "base";      // in place of a train stage's name: the untrained model
inline constexpr char kEvaluationTag[] = "eval";  // carried by every record that training must not see
// Arms of method regenesis: the same rounds with other chains. star: one stage, labels; majority: one stage, none.
inline constexpr const char* kArms[] = {"star", "majority", "regenesis"};

// One step of a job. Stages start when everything in `after` is done; independent stages run side by side.
struct PlannedStage {
  enum class Kind { kImport, kRollout, kTrain, kScore };
  Kind kind = Kind::kRollout;
  std::string name;  // unique: "collect:random", "sft", "eval:q_sft", "online-1"
  std::vector<std::string> after;

  // kImport
  std::vector<std::string> files;  // their records carry `tags`

  // kRollout. Who plays: a scripted player, or the models that `weights` (train stages) published; with `newest` the
  // last entry of Plan.policy_line whose stages are done when a task is handed out.
  std::string policy;
  std::string player;
  OptionMap player_options;
  std::vector<std::string> weights;
  bool newest = false;
  bool evaluation = false;
  uint64_t episodes = 0;
  uint64_t seed = 0;
  std::vector<std::string> tags;
  std::string arm;  // the episodes are reasoning chains of this arm's program; empty: they are played
  uint64_t first_question = 0;
  std::string set;  // of evaluate.sets; empty: the job's environment

  // kTrain; kScore: the learner scores `initial` on held-out records, or what they played, and publishes nothing
  std::string method;
  std::string weights_name;          // what the learner publishes under
  std::vector<std::string> initial;  // train stages (or kBaseModel), in the order of TrainStage.initial
  std::string options_json;          // TrainStage.options_json without the watermark
  uint64_t steps = 0;
};

// A row of the final table: the records that carry `tag`, and what a kScore stage measured.
struct PlannedRow {
  std::string policy;  // "data", "sft", "q_sft_online", "player:best"
  std::string label;   // "Q-SFT after the online phase"
  std::string tag;     // empty: only the loss
  std::string set;     // of evaluate.sets
  std::string arm;     // of rounds: the arm ...
  int64_t round = 0;   // ... and how many rounds of it the policy has had
  std::string score;   // the kScore stage; empty: none
  // Of `collapse`: the rule, its train stage, and how many real records it trained on.
  std::string rule;
  std::string trained;
  int64_t real_records = 0;
};

struct Plan {
  std::vector<PlannedStage> stages;  // in an order that respects `after`
  std::vector<PlannedRow> rows;
  // Versions of the policy that the online phase improves, oldest first: the train stages of each.
  std::vector<std::vector<std::string>> policy_line;
};

Plan MakePlan(const Job& job);

}  // namespace quern
