#pragma once

#include <string>

#include "service/job.h"

namespace quern {

// The first value that cannot be meant: sets `key` to its path and returns what is wrong ("must be one of bf16, fp32,
// not 'fp17'"), or returns "" for a job that can run. Looks at nothing but the job: no files.
std::string FindProblem(const Job& job, std::string& key);

}  // namespace quern
