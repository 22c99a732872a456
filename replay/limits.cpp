#include "replay/limits.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <cmath>
#include <cstring>

#include "base/strings.h"

namespace quern {

namespace {

using google::protobuf::internal::WireFormatLite;

// "turn 3: ..." as the reason, or empty.
std::string CheckTokens(const v1::Trajectory& t, size_t tokens) {
  if (t.token_ids().size() % 4 != 0) return "token_ids is not a whole number of int32";
  if (t.loss_mask().size() != tokens)
    return StrCat("loss_mask has ", t.loss_mask().size(), " entries for ", tokens, " tokens");
  if (!t.log_probs().empty() && t.log_probs().size() != 4 * tokens)
    return StrCat("log_probs has ", t.log_probs().size(), " bytes for ", tokens, " tokens (4 each, or none)");
  for (size_t i = 0; i < tokens; ++i) {
    int32_t id;
    std::memcpy(&id, t.token_ids().data() + 4 * i, 4);
    if (id < 0) return StrCat("token ", i, " has the negative id ", id);
    if (static_cast<unsigned char>(t.loss_mask()[i]) > 1) return StrCat("loss_mask[", i, "] is neither 0 nor 1");
    if (t.log_probs().empty()) continue;
    float log_prob;
    std::memcpy(&log_prob, t.log_probs().data() + 4 * i, 4);
    if (std::isinf(log_prob) || log_prob > 1e-3f) return StrCat("log_probs[", i, "] is ", log_prob);
  }
  return {};
}

std::string CheckTurns(const v1::Trajectory& t, size_t tokens) {
  uint32_t end = 0;
  double sum = 0;
  double magnitude = 1;
  for (int i = 0; i < t.turns_size(); ++i) {
    const v1::Turn& turn = t.turns(i);
    if (!std::isfinite(turn.reward())) return StrCat("turn ", i, ": the reward is ", turn.reward());
    sum += turn.reward();
    magnitude += std::abs(turn.reward());
    if (turn.policy() != 0 && turn.policy() >= static_cast<uint32_t>(t.policies_size()))
      return StrCat("turn ", i, ": policy ", turn.policy(), " of ", t.policies_size());
    if (tokens == 0) {
      if (turn.begin() != 0 || turn.end() != 0) return StrCat("turn ", i, ": tokens of a record without tokens");
      continue;
    }
    if (turn.begin() >= turn.end() || turn.end() > tokens)
      return StrCat("turn ", i, ": tokens [", turn.begin(), ", ", turn.end(), ") of ", tokens);
    if (turn.begin() < end) return StrCat("turn ", i, ": begins at ", turn.begin(), ", before the turn before it ends");
    end = turn.end();
  }
  if (!std::isfinite(t.episode_return())) return StrCat("episode_return is ", t.episode_return());
  if (std::abs(t.episode_return() - sum) > 1e-4 * magnitude)
    return StrCat("episode_return is ", t.episode_return(), " but the rewards add up to ", sum);
  return {};
}

std::string CheckMessages(const v1::Trajectory& t, size_t tokens) {
  int assistant = 0;
  for (int i = 0; i < t.messages_size(); ++i) {
    const std::string& role = t.messages(i).role();
    if (role != "system" && role != "user" && role != "assistant" && role != "tool")
      return StrCat("message ", i, ": unknown role '", role.substr(0, 40), "' (system, user, assistant or tool)");
    assistant += role == "assistant" ? 1 : 0;
  }
  if (tokens > 0) return {};
  if (t.messages_size() == 0) return "neither tokens nor messages";
  if (assistant != t.turns_size())
    return StrCat(t.turns_size(), " rewarded turns for ", assistant, " assistant messages");
  return {};
}

std::string CheckChain(const v1::Chain& chain) {
  for (int i = 0; i < chain.stages_size(); ++i) {
    const v1::ChainStage& stage = chain.stages(i);
    const std::string name = StrCat("chain stage ", i);
    if (stage.prompt_token_ids().size() % 4 != 0 || stage.token_ids().size() % 4 != 0)
      return name + ": token ids are not a whole number of int32";
    if (!stage.log_probs().empty() && stage.log_probs().size() != stage.token_ids().size())
      return StrCat(name, ": log_probs has ", stage.log_probs().size(), " bytes for ", stage.token_ids().size() / 4,
                    " tokens (4 each, or none)");
    for (size_t at = 0; at < stage.log_probs().size(); at += 4) {
      float log_prob;
      std::memcpy(&log_prob, stage.log_probs().data() + at, 4);
      if (std::isinf(log_prob) || log_prob > 1e-3f) return StrCat(name, ": log_probs[", at / 4, "] is ", log_prob);
    }
  }
  return {};
}

std::string Reason(const v1::Trajectory& t, const RecordLimits& limits) {
  const size_t tokens = t.token_ids().size() / 4;
  if (t.uid().empty()) return "no uid";
  for (const auto& [name, text] : {std::pair("uid", &t.uid()), std::pair("run", &t.run())})
    if (text->size() > limits.name_bytes)
      return StrCat(name, " of ", text->size(), " bytes, over the limit of ", limits.name_bytes);
  for (const std::string& tag : t.tags())
    if (tag.empty() || tag.size() > limits.name_bytes)
      return StrCat("a tag of ", tag.size(), " bytes (1 to ", limits.name_bytes, ")");
  if (tokens > limits.tokens) return StrCat(tokens, " tokens, over the limit of ", limits.tokens);
  if (t.source() != v1::SOURCE_REAL && t.source() != v1::SOURCE_GENERATED)
    return "source is neither real nor generated";
  if (!v1::Verdict_IsValid(t.verdict())) return StrCat("unknown verdict ", static_cast<int>(t.verdict()));
  if (t.source() == v1::SOURCE_REAL && t.generation_depth() != 0)
    return StrCat("real data with generation depth ", t.generation_depth(), " (must be 0)");
  if (t.source() == v1::SOURCE_GENERATED && t.generation_depth() == 0)
    return "generated data with generation depth 0 (must be 1 or more)";
  if (std::string reason = CheckTokens(t, tokens); !reason.empty()) return reason;
  if (std::string reason = CheckTurns(t, tokens); !reason.empty()) return reason;
  if (std::string reason = CheckChain(t.chain()); !reason.empty()) return reason;
  return CheckMessages(t, tokens);
}

// Of every chain in the message: when there are several, parsing merges them.
size_t CountStages(std::string_view trajectory, size_t limit) {
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(trajectory.data()),
                                            static_cast<int>(trajectory.size()));
  size_t count = 0;
  while (const uint32_t tag = in.ReadTag()) {
    const bool chain = WireFormatLite::GetTagFieldNumber(tag) == v1::Trajectory::kChainFieldNumber &&
                       WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_LENGTH_DELIMITED;
    if (!chain) {
      if (!WireFormatLite::SkipField(&in, tag)) break;
      continue;
    }
    uint32_t size = 0;
    if (!in.ReadVarint32(&size)) break;
    const auto at = static_cast<size_t>(in.CurrentPosition());
    if (size > trajectory.size() - at) break;
    count += CountField(trajectory.substr(at, size), v1::Chain::kStagesFieldNumber, limit);
    if (count > limit || !in.Skip(static_cast<int>(size))) break;
  }
  return count;
}

}  // namespace

size_t CountField(std::string_view message, int number, size_t limit) {
  google::protobuf::io::CodedInputStream in(reinterpret_cast<const uint8_t*>(message.data()),
                                            static_cast<int>(message.size()));
  size_t count = 0;
  while (const uint32_t tag = in.ReadTag()) {
    if (WireFormatLite::GetTagFieldNumber(tag) == number && ++count > limit) return count;
    if (!WireFormatLite::SkipField(&in, tag)) break;
  }
  return count;
}

Status CheckTrajectory(const v1::Trajectory& trajectory, const RecordLimits& limits) {
  const std::string reason = Reason(trajectory, limits);
  if (reason.empty()) return {};
  return InvalidArgument("trajectory " + (trajectory.uid().empty() ? "without uid" : ShownName(trajectory.uid())) +
                         ": " + reason);
}

Status ParseTrajectory(std::string_view bytes, const RecordLimits& limits, v1::Trajectory* trajectory) {
  if (bytes.size() > limits.record_bytes)
    return InvalidArgument(StrCat("a trajectory of ", HumanBytes(static_cast<double>(bytes.size())),
                                  " is over the limit of ", HumanBytes(static_cast<double>(limits.record_bytes))));
  // Small messages grow thirtyfold by parsing: they are counted first.
  struct Counted {
    int field;
    size_t limit;
    const char* name;
  };
  const Counted counted[] = {{v1::Trajectory::kTurnsFieldNumber, limits.turns, "turns"},
                             {v1::Trajectory::kMessagesFieldNumber, limits.messages, "messages"},
                             {v1::Trajectory::kPoliciesFieldNumber, limits.policies, "policies"},
                             {v1::Trajectory::kTagsFieldNumber, limits.tags, "tags"}};
  for (const Counted& one : counted)
    if (CountField(bytes, one.field, one.limit) > one.limit)
      return InvalidArgument(StrCat("a trajectory has more than ", one.limit, " ", one.name));
  if (CountStages(bytes, limits.chain_stages) > limits.chain_stages)
    return InvalidArgument(StrCat("a trajectory has more than ", limits.chain_stages, " chain stages"));
  if (!trajectory->ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return InvalidArgument(StrCat("a trajectory of ", bytes.size(), " bytes does not parse"));
  return CheckTrajectory(*trajectory, limits);
}

std::string ShownName(const std::string& name) {
  std::string shown = name.substr(0, 100);
  for (char& c : shown)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return shown;
}

}  // namespace quern
