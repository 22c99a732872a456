#include "actors/served_model.h"

#include "model/hf/model_directory.h"

namespace quern {

Result<std::shared_ptr<ServedModel>> LoadServedModel(Ops& ops, const std::string& directory, const Recipe& recipe,
                                                     int64_t max_positions) {
  QUERN_ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(directory));
  QUERN_ASSIGN_OR_RETURN(const std::shared_ptr<const Checkpoint> checkpoint, Checkpoint::Open(directory));
  if (Status matches = checkpoint->CheckMatches(config); !matches.ok()) return matches.Annotate(directory);
  if (max_positions <= 0 || max_positions > config.max_positions) max_positions = config.max_positions;
  auto model = std::make_shared<ServedModel>(ops, config, recipe, max_positions);
  if (Status loaded = model->weights.Load(checkpoint->Source()); !loaded.ok()) return loaded.Annotate(directory);
  return model;
}

}  // namespace quern
