#pragma once

#include <memory>
#include <string>
#include <vector>

#include "methods/policy_head.h"
#include "model/compression.h"
#include "model/transformer.h"

namespace quern {

// A model ready to generate: one immutable weight version with its forward pass.
struct ServedModel {
  ServedModel(Ops& ops, const ModelConfig& config, const Recipe& recipe, int64_t max_positions)
      : transformer(ops, config, recipe.act, max_positions), weights(ops, config, recipe, false) {}
  Transformer transformer;
  Weights weights;
  std::string content;  // hash of the weights; empty: not known, equal to nothing but itself
};

// Versions replace each other: an actor keeps a few recent ones for policies that play in turn.
inline constexpr int64_t kRecentModels = 4;

// Loads a Hugging Face directory. max_positions: 0 takes the configuration's. `ops` must outlive the model.
Result<std::shared_ptr<ServedModel>> LoadServedModel(Ops& ops, const std::string& directory, const Recipe& recipe,
                                                     int64_t max_positions = 0);

// What the engine samples from: models and how their logits become one distribution. Models of one policy share the
// vocabulary. Immutable; `label` names it in errors.
struct Policy {
  std::string label;
  std::vector<std::shared_ptr<const ServedModel>> models;
  std::shared_ptr<const PolicyHead> head;
  Compression compression;  // of every model, which it must fit
};

}  // namespace quern
