#pragma once

#include <string>

#include "base/status.h"
#include "model/compression.h"
#include "model/config.h"
#include "proto/record.pb.h"

namespace quern {

// A file that `quern budget` wrote: {"budgets": [one a layer], ...}.
Result<std::vector<int64_t>> LoadBudgets(const std::string& path);

// The channels that a share of `head_dim` in (0, 1] keeps, rounded up: of 128 and 0.6 77, as ThinK's code has it.
int64_t KeyChannels(double ratio, int64_t head_dim);

v1::Compression ToProto(const Compression& compression);

// Whether a model can be served like that; the error says why not.
Status CheckCompression(const Compression& compression, const ModelConfig& config);

}  // namespace quern
