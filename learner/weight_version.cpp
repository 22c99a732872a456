#include "learner/weight_version.h"

#include <optional>

#include "base/file.h"
#include "model/hf/content_hash.h"

namespace quern {

Result<std::string> WriteVersion(const std::string& dir, const ModelConfig& config, const TensorSource& tensors,
                                 const std::string& source_dir) {
  const std::string unfinished = dir + ".unfinished";
  QUERN_RETURN_IF_ERROR(RemoveTree(unfinished));
  QUERN_RETURN_IF_ERROR(SaveModelDirectory(
      unfinished, config, tensors, {.dtype = DType::kF32, .source_dir = source_dir, .generation = std::nullopt}));
  QUERN_ASSIGN_OR_RETURN(const std::string hash, DirectoryContentHash(unfinished));
  if (const Result<std::string> there = DirectoryContentHash(dir); there.ok() && *there == hash) {
    QUERN_RETURN_IF_ERROR(RemoveTree(unfinished));
  } else {
    QUERN_RETURN_IF_ERROR(RemoveTree(dir));
    QUERN_RETURN_IF_ERROR(RenamePath(unfinished, dir));
  }
  return hash;
}

}  // namespace quern
