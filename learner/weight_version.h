#pragma once

#include <string>

#include "base/status.h"
#include "model/hf/model_directory.h"

namespace quern {

// Writes what is published: `dir` becomes a model directory of fp32 weights (what the learner goes on from is what it
// had) with the tokenizer's files of `source_dir`; seen whole or not at all. Returns its content hash. Where `dir`
// holds the same already, of a learner that died after it had published, it stays.
Result<std::string> WriteVersion(const std::string& dir, const ModelConfig& config, const TensorSource& tensors,
                                 const std::string& source_dir);

}  // namespace quern
