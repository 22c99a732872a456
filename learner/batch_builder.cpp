#include "learner/batch_builder.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "base/strings.h"
#include "replay/filter.h"

namespace quern {

namespace {
void AppendTokens(v1::Trajectory& t, const std::vector<int32_t>& ids, bool agent) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const int32_t id : ids) {
    t.mutable_token_ids()->append(reinterpret_cast<const char*>(&id), 4);
    t.mutable_loss_mask()->push_back(agent ? 1 : 0);
    t.mutable_log_probs()->append(reinterpret_cast<const char*>(&nan), 4);
  }
}
}  // namespace

Status TokenizeTrajectory(const Tokenizer& tokenizer, const BatchOptions& options, v1::Trajectory& trajectory) {
  if (!trajectory.token_ids().empty()) return {};
  if (trajectory.messages().empty()) return InvalidArgument(trajectory.uid() + ": neither token ids nor messages");
  trajectory.clear_loss_mask();
  trajectory.clear_log_probs();
  std::vector<float> rewards;
  for (const v1::Turn& turn : trajectory.turns()) rewards.push_back(turn.reward());
  trajectory.clear_turns();
  QUERN_ASSIGN_OR_RETURN(const Dialogue dialogue, Dialogue::Make(tokenizer, options.chat_template, options.end_ids));
  std::vector<ChatMessage> messages;
  std::vector<int32_t> record;
  size_t known = 0;  // messages up to the agent's last turn, which is in the record
  size_t turn_index = 0;
  const auto append = [&](const std::vector<int32_t>& ids, bool agent) {
    record.insert(record.end(), ids.begin(), ids.end());
    AppendTokens(trajectory, ids, agent);
  };
  const auto others = [&]() -> Status {
    Result<std::vector<int32_t>> ids = known == 0 ? dialogue.Opening(messages) : dialogue.Next(messages, known, record);
    if (!ids.ok()) return ids.status().Annotate(trajectory.uid());
    append(*ids, false);
    return {};
  };
  for (const v1::Message& message : trajectory.messages()) {
    if (message.role() == "assistant") {
      QUERN_RETURN_IF_ERROR(others());
      const auto begin = static_cast<uint32_t>(record.size());
      const bool closed = !options.action_end.empty() && message.content().ends_with(options.action_end);
      append(dialogue.Utterance(message.content(), closed), true);
      v1::Turn& turn = *trajectory.add_turns();
      turn.set_begin(begin);
      turn.set_end(static_cast<uint32_t>(record.size()));
      turn.set_reward(turn_index < rewards.size() ? rewards[turn_index] : 0.0f);
      ++turn_index;
    }
    messages.push_back({message.role(), message.content()});
    if (message.role() == "assistant") known = messages.size();
  }
  return messages.size() > known ? others() : Status();
}

Result<TrainingBatch> BuildBatch(std::span<const v1::Trajectory> trajectories, const BatchOptions& options) {
  TrainingBatch batch;
  std::vector<int32_t> ids;
  for (const v1::Trajectory& t : trajectories) {
    const size_t size = t.loss_mask().size();
    if (t.token_ids().size() != 4 * size || size == 0) {
      return DataLoss(StrCat(t.uid(), ": ", t.token_ids().size() / 4, " token ids, ", size, " loss mask entries"));
    }
    ids.resize(size);
    std::memcpy(ids.data(), t.token_ids().data(), 4 * size);
    // Whole turns that fit; what follows the last of them teaches nothing.
    size_t turns = static_cast<size_t>(t.turns_size());
    while (turns > 0 && t.turns(static_cast<int>(turns) - 1).end() > static_cast<uint64_t>(options.max_positions)) {
      --turns;
    }
    if (turns == 0) continue;
    const uint32_t length = t.turns(static_cast<int>(turns) - 1).end();
    if (length > size) return DataLoss(StrCat(t.uid(), ": a turn ends at ", length, " of ", size, " tokens"));
    std::vector<float> rewards;
    for (const v1::Turn& turn : t.turns()) rewards.push_back(turn.reward());
    const std::vector<ScaledReward> scaled = ScaleRewards(rewards, t.done(), options.rewards);
    const bool whole = turns == static_cast<size_t>(t.turns_size());
    uint64_t version = 0;
    for (const v1::PolicyVersion& policy : t.policies()) version = std::max(version, policy.version());
    batch.versions.push_back(version);
    const bool sampled = t.log_probs().size() == 4 * size;

    const auto data_class = static_cast<uint8_t>(ClassOf(t.source(), t.verdict()) - 1);
    const int64_t row0 = batch.tokens.rows();
    batch.tokens.Add(ids.data(), length, 0, nullptr);
    ++batch.episodes;
    int64_t previous = -1;  // loss row of the agent's previous token in this episode
    for (size_t k = 0; k < turns; ++k) {
      const v1::Turn& turn = t.turns(static_cast<int>(k));
      for (uint32_t i = std::max(1u, turn.begin()); i < turn.end(); ++i) {
        const auto index = static_cast<int64_t>(batch.rows.size());
        if (previous >= 0) batch.rows[static_cast<size_t>(previous)].next = index;
        previous = index;
        LossRow row;
        row.row = row0 + i - 1;
        row.target = ids[i];
        row.data_class = data_class;
        row.closes_turn = i + 1 == turn.end();
        if (row.closes_turn) {
          row.reward = scaled[k].reward;
          row.discount = scaled[k].discount;
          // The last token of an episode without an end has neither a reward for it nor a state after it.
          row.has_target = k + 1 < turns || (whole && t.done());
        }
        batch.rows.push_back(row);
        float log_prob = std::numeric_limits<float>::quiet_NaN();
        if (sampled) std::memcpy(&log_prob, t.log_probs().data() + 4 * size_t{i}, 4);
        batch.behaviour_log_probs.push_back(log_prob);
      }
    }
  }
  return batch;
}

}  // namespace quern
