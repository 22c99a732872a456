#include "learner/stage_state.h"

#include <nlohmann/json.hpp>

#include "learner/trainer_state.h"

namespace quern {

Status SaveStage(StageCheckpoints& checkpoints, Ops& ops, Trainer& trainer, const StageState& state) {
  const nlohmann::json json = {{"tokens", state.tokens},
                               {"seconds", state.seconds},
                               {"metrics", state.metrics},
                               {"sigma2d", state.mixture.sigma2d},
                               {"n", state.mixture.n},
                               {"c2", state.mixture.c2},
                               {"halvings", state.progress.halvings},
                               {"checked", state.progress.checked},
                               {"best_check", state.progress.best_check}};
  TrainerState arrays(ops, trainer);
  arrays.Read();
  const Status saved = checkpoints.Save({.step = state.step, .state = json.dump()}, arrays.arrays());
  trainer.ReleaseState();
  return saved;
}

Result<std::optional<StageState>> LoadStage(StageCheckpoints& checkpoints, Ops& ops, Trainer& trainer) {
  TrainerState arrays(ops, trainer);
  QUERN_ASSIGN_OR_RETURN(const std::optional<CheckpointMark> mark, checkpoints.Load(arrays.arrays()));
  if (!mark) return std::optional<StageState>();
  arrays.Write();
  const nlohmann::json json = nlohmann::json::parse(mark->state);
  StageState state;
  state.step = mark->step;
  state.tokens = json.at("tokens");
  state.seconds = json.at("seconds");
  for (const auto& [name, value] : json.at("metrics").items())
    if (value.is_number()) state.metrics[name] = value;
  state.mixture.sigma2d = json.at("sigma2d");
  state.mixture.n = json.at("n");
  state.mixture.c2 = json.at("c2");
  state.progress = {json.at("halvings"), json.at("checked"), json.at("best_check")};
  QUERN_RETURN_IF_ERROR(trainer.Resume(state.step));
  return std::optional<StageState>(state);
}

}  // namespace quern
