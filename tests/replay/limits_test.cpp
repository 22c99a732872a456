#include "replay/limits.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/replay/trajectories.h"

namespace quern {
namespace {

TEST(Limits, WhatActorsSendPasses) {
  EXPECT_TRUE(CheckTrajectory(MakeTrajectory("a"), {}).ok());
  EXPECT_TRUE(CheckTrajectory(MakeTrajectory("b", 0, v1::SOURCE_REAL), {}).ok());
}

TEST(Limits, EachMistakeIsNamedWithTheUid) {
  struct Case {
    const char* reason;
    std::function<void(v1::Trajectory*)> spoil;
  };
  const Case cases[] = {
      {"loss_mask has 7 entries for 8 tokens", [](auto* t) { t->mutable_loss_mask()->pop_back(); }},
      {"log_probs has 31 bytes for 8 tokens", [](auto* t) { t->mutable_log_probs()->pop_back(); }},
      {"whole number of int32", [](auto* t) { t->mutable_token_ids()->push_back('x'); }},
      {"negative id", [](auto* t) { t->mutable_token_ids()->assign(32, '\xff'); }},
      {"loss_mask[2] is neither", [](auto* t) { (*t->mutable_loss_mask())[2] = 2; }},
      {"log_probs[0] is inf",
       [](auto* t) {
         const float inf = std::numeric_limits<float>::infinity();
         std::memcpy(t->mutable_log_probs()->data(), &inf, 4);
       }},
      {"turn 1: tokens [7, 9) of 8", [](auto* t) { t->mutable_turns(1)->set_end(9); }},
      {"turn 1: tokens [8, 8)", [](auto* t) { t->mutable_turns(1)->set_begin(8); }},
      {"before the turn before it ends", [](auto* t) { t->mutable_turns(1)->set_begin(2); }},
      {"turn 0: the reward is nan", [](auto* t) { t->mutable_turns(0)->set_reward(NAN); }},
      {"policy 1 of 1", [](auto* t) { t->mutable_turns(0)->set_policy(1); }},
      {"episode_return is 5 but the rewards add up to -1", [](auto* t) { t->set_episode_return(5); }},
      {"source is neither", [](auto* t) { t->clear_source(); }},
      {"generation depth 0", [](auto* t) { t->set_generation_depth(0); }},
      {"must be 0", [](auto* t) { t->set_source(v1::SOURCE_REAL); }},
      {"unknown role 'robot'", [](auto* t) { t->add_messages()->set_role("robot"); }},
      {"a tag of 0 bytes", [](auto* t) { t->add_tags(""); }},
      {"unknown verdict 99", [](auto* t) { t->set_verdict(static_cast<v1::Verdict>(99)); }},
      {"chain stage 0: log_probs has 5 bytes for 2 tokens",
       [](auto* t) {
         t->mutable_chain()->add_stages()->set_token_ids(std::string(8, '\0'));
         t->mutable_chain()->mutable_stages(0)->set_log_probs("12345");
       }},
      {"chain stage 0: token ids", [](auto* t) { t->mutable_chain()->add_stages()->set_prompt_token_ids("12345"); }},
      {"run of 600 bytes", [](auto* t) { t->set_run(std::string(600, 'r')); }},
  };
  for (const Case& one : cases) {
    v1::Trajectory t = MakeTrajectory("the-uid");
    one.spoil(&t);
    const Status status = CheckTrajectory(t, {});
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << one.reason;
    EXPECT_NE(status.message().find("trajectory the-uid: "), std::string::npos) << status.message();
    EXPECT_NE(status.message().find(one.reason), std::string::npos) << status.message() << " lacks " << one.reason;
  }
  v1::Trajectory nameless = MakeTrajectory("");
  EXPECT_NE(CheckTrajectory(nameless, {}).message().find("no uid"), std::string::npos);
}

TEST(Limits, HostileBytesAreRefusedBeforeParsing) {
  v1::Trajectory parsed;
  EXPECT_FALSE(ParseTrajectory("not a protobuf at all", {}, &parsed).ok());
  EXPECT_FALSE(ParseTrajectory(std::string(9 << 20, 'x'), {}, &parsed).ok());
  // A million empty turns: two bytes each on the wire, a whole object each when parsed.
  std::string many;
  for (int i = 0; i < 1000000; ++i) many += std::string("\x2a\x00", 2);
  const Status status = ParseTrajectory(many, {}, &parsed);
  EXPECT_NE(status.message().find("more than 65536 turns"), std::string::npos) << status.message();
  EXPECT_EQ(parsed.turns_size(), 0);
  EXPECT_EQ(CountField(many, 5, 10), 11u);
  // The same of stages, in one chain and spread over many.
  v1::Trajectory staged = MakeTrajectory("a");
  for (int i = 0; i < 1024; ++i) staged.mutable_chain()->add_stages();
  const std::string fits = staged.SerializeAsString();
  EXPECT_TRUE(ParseTrajectory(fits, {}, &parsed).ok());
  v1::Trajectory one_more;
  one_more.mutable_chain()->add_stages();
  const Status spread = ParseTrajectory(fits + one_more.SerializeAsString(), {}, &parsed);
  EXPECT_NE(spread.message().find("more than 1024 chain stages"), std::string::npos) << spread.message();
  EXPECT_EQ(CountField(MakeTrajectory("a").SerializeAsString(), 5, 10), 2u);
}

TEST(Limits, ANameInAnErrorStaysOnItsLine) {
  EXPECT_EQ(ShownName("a\nb\x7f"), "a?b?");
  EXPECT_EQ(ShownName(std::string(300, 'n')).size(), 100u);
  v1::Trajectory record = MakeTrajectory("one\ntwo");
  record.set_loss_mask("");
  const Status refused = CheckTrajectory(record, RecordLimits());
  EXPECT_EQ(refused.message().find('\n'), std::string::npos) << refused.message();
  EXPECT_TRUE(refused.message().starts_with("trajectory one?two: ")) << refused.message();
}

}  // namespace
}  // namespace quern
