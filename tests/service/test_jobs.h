#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "service/job.h"

namespace quern {

// A job that only has to parse: no model or environment of it is made.
inline Job SmallJob(const std::vector<std::string>& overrides = {}) {
  const Result<Job> job = ParseJob(
      "name: small\n"
      "model: {config: {hidden_size: 32, num_attention_heads: 4}}\n"
      "environment: {name: wordle}\n"
      "data: {collect: [{player: random, episodes: 100}]}\n"
      "compare: [sft, filtered_sft]\n"
      "evaluate: {episodes: 30}\n"
      "rollout: {task_episodes: 20, lease_s: 10}\n",
      "small.yaml", "/", overrides);
  EXPECT_TRUE(job.ok()) << job.status().ToString();
  return job.ok() ? *job : Job();
}

}  // namespace quern
