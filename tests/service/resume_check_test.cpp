#include "service/resume_check.h"

#include "replay/store.h"
#include "tests/replay/trajectories.h"
#include "tests/service/test_jobs.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

JournalState::Task Task(uint32_t episodes, bool done) {
  JournalState::Task task;
  task.episodes = episodes;
  task.done = done;
  return task;
}

TEST(ResumeCheck, TheStoreMustHoldWhatTheJournalSays) {
  const TemporaryFolder folder;
  const auto store = *Store::Open(folder.path() + "/replay");
  const auto insert = [&](const std::string& name, int records, const std::vector<std::string>& tags) {
    std::vector<v1::Trajectory> all;
    for (int i = 0; i < records; ++i) {
      v1::Trajectory t = MakeTrajectory(StrCat(name, i));
      t.clear_tags();
      for (const std::string& tag : tags) t.add_tags(tag);
      all.push_back(t);
    }
    ASSERT_TRUE(store->Insert(MakeInsert(all)).ok());
  };
  insert("a", 40, {"offline", "player:random"});
  insert("b", 20, {"online", "online-1"});

  const Plan plan = MakePlan(SmallJob({"method=sft", "compare=[]", "online.rounds=1", "online.episodes=30"}));
  JournalState journal;
  const auto check = [&] {
    return CheckStoreHolds(journal, plan, *store, Deadline::After(std::chrono::seconds(10))).message();
  };
  EXPECT_EQ(check(), "");
  journal.stages["collect:random"].tasks[0] = Task(20, true);
  journal.stages["collect:random"].tasks[20] = Task(20, true);
  journal.stages["sft"].watermark = 60;
  journal.stages["online-1"].tasks[0] = Task(20, true);
  journal.stages["online-1"].tasks[20] = Task(10, false);
  EXPECT_EQ(check(), "");
  journal.stages["sft"].watermark = 61;
  EXPECT_NE(check().find("60 of 61 records of stage sft"), std::string::npos) << check();
  journal.stages["sft"].watermark = 60;
  journal.stages["online-1"].tasks[20].done = true;
  EXPECT_NE(check().find("20 of 30 records of stage online-1"), std::string::npos) << check();
  for (uint64_t episode = 20; episode < 30; ++episode) journal.stages["online-1"].quarantined.insert(episode);
  EXPECT_EQ(check(), "") << "episodes that were left out are not expected";
  ASSERT_TRUE(store->Prune({.max_bytes = 0}).ok());
  EXPECT_EQ(check(), "") << "neither is what retention took";
}

}  // namespace
}  // namespace quern
