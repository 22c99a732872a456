#pragma once

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/strings.h"
#include "proto/replay.pb.h"

namespace quern {

inline void AppendInt(std::string* bytes, int32_t value) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}
inline void AppendFloat32(std::string* bytes, float value) {
  bytes->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// A two-turn record of `tokens` tokens (at least 4), as an actor would send it.
inline v1::Trajectory MakeTrajectory(const std::string& uid, float reward = -1,
                                     v1::Source source = v1::SOURCE_GENERATED, uint32_t tokens = 8) {
  v1::Trajectory t;
  t.set_uid(uid);
  const uint32_t half = tokens / 2;
  for (uint32_t i = 0; i < tokens; ++i) {
    const bool agent = i == half - 1 || i + 1 == tokens;
    AppendInt(t.mutable_token_ids(), static_cast<int32_t>(i * 7 % 1000));
    t.mutable_loss_mask()->push_back(agent ? 1 : 0);
    AppendFloat32(t.mutable_log_probs(),
                  agent ? -0.1f * static_cast<float>(i) : std::numeric_limits<float>::quiet_NaN());
  }
  for (const uint32_t end : {half, tokens}) {
    v1::Turn* turn = t.add_turns();
    turn->set_begin(end - 1);
    turn->set_end(end);
  }
  t.mutable_turns(1)->set_reward(reward);
  t.set_episode_return(reward);
  t.set_done(true);
  t.set_source(source);
  t.set_run("run-1");
  t.set_task("task-" + uid);
  if (source == v1::SOURCE_GENERATED) {
    t.set_generation_depth(1);
    v1::PolicyVersion* policy = t.add_policies();
    policy->set_name("q_sft");
    policy->set_version(3);
    policy->set_content_hash("00112233445566778899aabbccddeeff");
    t.mutable_sampling()->set_temperature(0.7f);
    t.mutable_sampling()->set_seed(0xfedcba9876543210);
    t.add_tags("online");
  }
  t.set_episode_seed(0x8000000000000001);
  t.set_created_unix_ms(1700000000123);
  return t;
}

inline v1::InsertRequest MakeInsert(const std::vector<v1::Trajectory>& trajectories) {
  v1::InsertRequest request;
  for (const v1::Trajectory& t : trajectories) request.add_trajectories(t.SerializeAsString());
  return request;
}

}  // namespace quern
