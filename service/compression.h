#pragma once

#include <string>

#include "base/status.h"
#include "model/compression.h"
#include "model/config.h"
#include "proto/record.pb.h"

namespace quern {

// A file that `quern budget` wrote: {"budgets": [one a layer], ...}.
Result<std::vector<int64_t>> LoadBudgets(const std::string& path);

v1::Compression ToProto(const Compression& compression);

// Whether a model can be served like that; the error says why not.
Status CheckCompression(const Compression& compression, const ModelConfig& config);

// What to compute on under a compression, which GPUs do not have yet: `auto` means the CPU then, a GPU is an error.
Result<std::string> DeviceFor(const std::string& device, const Compression& compression);

}  // namespace quern
