#include "base/check.h"
#include "base/log.h"
#include "service/job.h"
#include "service/plan.h"

// Any text is one line of error, or a job that survives being written and read, and has a plan.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quern;
  SetLogLevel(LogLevel::kError);
  const auto job = ParseJob(std::string(reinterpret_cast<const char*>(data), size), "job.yaml", "/", {});
  if (!job.ok()) {
    QUERN_CHECK(job.status().message().find('\n') == std::string::npos, job.status().message());
    return 0;
  }
  const std::string text = JobToJson(*job);
  const auto again = ParseJob(text, "job.json", "/", {});
  QUERN_CHECK(again.ok(), again.status().ToString() + text);
  QUERN_CHECK(JobToJson(*again) == text, text);
  if (job->online.rounds < 100 && job->regenesis.rounds < 100) QUERN_CHECK(!MakePlan(*job).stages.empty());
  return 0;
}
