#include "base/check.h"
#include "learner/batch_builder.h"
#include "replay/limits.h"

// A record as an actor sends it: refused in one line, or whole enough to build a batch of.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  RecordLimits limits;
  limits.tokens = 4096;
  (void)CountField(bytes, 1, 100);
  v1::Trajectory trajectory;
  const Status parsed = ParseTrajectory(bytes, limits, &trajectory);
  if (!parsed.ok()) {
    QUERN_CHECK(parsed.message().find('\n') == std::string::npos, parsed.message());
    return 0;
  }
  QUERN_CHECK(trajectory.token_ids().size() == 4 * trajectory.loss_mask().size());
  v1::Trajectory again;
  QUERN_CHECK(ParseTrajectory(trajectory.SerializeAsString(), limits, &again).ok());
  const auto batch = BuildBatch({&trajectory, 1}, BatchOptions());
  if (!batch.ok()) QUERN_CHECK(batch.status().message().find('\n') == std::string::npos, batch.status().message());
  return 0;
}
