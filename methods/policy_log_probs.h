#pragma once

#include <span>
#include <vector>

#include "methods/policy_head.h"
#include "model/transformer.h"

namespace quern {

struct PolicyModel {
  const Transformer* transformer = nullptr;
  const Weights* weights = nullptr;
};

// Raw log-probabilities of tokens under a policy of one or more models, from one forward over whole sequences: the
// numbers that sampling them gave, to the bit. `batch`: sequences from their beginning, whose `pages` are set here;
// rows: ascending, targets[i] is the token after row rows[i]. Temporaries come from `arena` and are given back.
std::vector<float> PolicyLogProbs(Ops& ops, std::span<const PolicyModel> models, const PolicyHead& head,
                                  TokenBatch& batch, std::span<const int64_t> rows, std::span<const int32_t> targets,
                                  Arena& arena);

}  // namespace quern
