#pragma once

#include <map>
#include <string>
#include <vector>

#include "proto/coordinator.pb.h"
#include "replay/replay.h"
#include "service/job.h"

namespace quern {

// What the chains of an arm (service/plan.h, kArms) do, with the job's guidelines and templates read. Stages without a
// first question.
Result<v1::ChainProgram> MakeChainProgram(const Job& job, const std::string& arm);
// The arms that the job has rounds of, in order.
std::vector<std::string> ArmsOf(const Job& job);

// The job's environment with what `from` changes.
v1::EnvironmentSpec EnvironmentWith(const Job& job, const QuestionsSection& from);

// What a stage of chains came to, from the records that carry its tag: chains, pass_rate, unsolved_share (of the
// questions), hinted_chains, hinted_pass_rate, kept, kept_hinted_share, path_tokens (mean, of the first 1000 kept), and
// guideline_K_pass_rate. A pass: an answer that is right, or the majority's; hinted chains apart.
Result<std::map<std::string, double>> MeasureChains(Replay& store, const std::string& tag, uint64_t questions,
                                                    uint32_t guidelines, Deadline deadline);
// "31.2 % pass, 12.0 % unsolved, 85 kept (4.7 % hinted)".
std::string ChainsSummary(const std::map<std::string, double>& metrics);
// Why chains were not kept, the most frequent reasons first, from a sample: "180 wrong answer, 20 no answer found".
Result<std::string> RejectionReasons(Replay& store, const std::string& tag, Deadline deadline);

}  // namespace quern
