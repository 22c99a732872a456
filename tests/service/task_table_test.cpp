#include "service/task_table.h"

#include <gtest/gtest.h>

namespace quern {
namespace {

using std::chrono::seconds;

class TaskTableTest : public testing::Test {
 protected:
  TaskTable table_{seconds(10), 3};
  Clock::time_point now_ = Clock::now();
};

TEST_F(TaskTableTest, CutsAStageIntoChunks) {
  table_.Add(0, 0, 50, 20);
  const auto a = table_.Lease(0, now_), b = table_.Lease(1, now_), c = table_.Lease(2, now_);
  ASSERT_TRUE(a && b && c);
  EXPECT_EQ(a->first_episode, 0u);
  EXPECT_EQ(b->first_episode, 20u);
  EXPECT_EQ(c->first_episode, 40u);
  EXPECT_EQ(c->episodes, 10u);
  EXPECT_FALSE(table_.Lease(3, now_));
}

TEST_F(TaskTableTest, AnActorThatAsksTwiceGetsItsTaskAgain) {
  table_.Add(0, 0, 40, 20);
  EXPECT_EQ(table_.Lease(0, now_)->id, table_.Lease(0, now_)->id);
}

TEST_F(TaskTableTest, AnExpiredLeaseGoesToAnother) {
  table_.Add(0, 0, 20, 20);
  const uint64_t id = table_.Lease(0, now_)->id;
  EXPECT_TRUE(table_.Expire(now_ + seconds(9)).empty());
  const auto expired = table_.Expire(now_ + seconds(10));
  ASSERT_EQ(expired.size(), 1u);
  EXPECT_FALSE(expired[0].final);
  EXPECT_EQ(table_.Lease(1, now_ + seconds(11))->id, id);
  EXPECT_TRUE(table_.Complete(id));
  EXPECT_FALSE(table_.Complete(id));
}

TEST_F(TaskTableTest, ALateCompletionCounts) {
  table_.Add(0, 0, 20, 20);
  const uint64_t id = table_.Lease(0, now_)->id;
  (void)table_.Expire(now_ + seconds(20));
  EXPECT_TRUE(table_.Complete(id));
  EXPECT_FALSE(table_.Lease(1, now_ + seconds(30)));
}

TEST_F(TaskTableTest, GivesUpAfterThreeFailures) {
  table_.Add(0, 0, 20, 20);
  for (uint32_t actor = 0; actor < 3; ++actor) {
    const auto at = now_ + seconds(5) * (actor + 1);
    const auto task = table_.Lease(actor, at);
    ASSERT_TRUE(task);
    const auto failure = table_.Fail(task->id, actor, "broken", at);
    ASSERT_TRUE(failure);
    EXPECT_EQ(failure->final, actor == 2);
    EXPECT_EQ(failure->failures, actor + 1);
  }
  EXPECT_FALSE(table_.Lease(4, now_ + seconds(60)));
}

TEST_F(TaskTableTest, OnlyTheHolderCanFailATask) {
  table_.Add(0, 0, 20, 20);
  const uint64_t id = table_.Lease(0, now_)->id;
  EXPECT_FALSE(table_.Fail(id, 1, "not mine", now_));
  EXPECT_FALSE(table_.Fail(99, 0, "no such task", now_));
  EXPECT_EQ(table_.FailAll(0, false, "died", now_).size(), 1u);
  EXPECT_FALSE(table_.HasLeases());
}

TEST_F(TaskTableTest, AnActorThatDiedAtAnEpisodeItNamedDoesNotCountAgainstTheTask) {
  table_.Add(0, 0, 20, 20);
  EXPECT_FALSE(table_.Lease(0, now_)->killed);
  for (int i = 0; i < 10; ++i) {
    const auto failures = table_.FailAll(0, i > 0, "died", now_);
    ASSERT_EQ(failures.size(), 1u);
    EXPECT_TRUE(failures[0].killed);
    EXPECT_FALSE(failures[0].final);
    const auto again = table_.Lease(0, now_ + seconds(1));
    ASSERT_TRUE(again);
    EXPECT_TRUE(again->killed);  // to be played one at a time
  }
}

}  // namespace
}  // namespace quern
