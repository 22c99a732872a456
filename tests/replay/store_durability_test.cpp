#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>
#include <thread>

#include "base/random.h"
#include "replay/import.h"
#include "replay/store.h"
#include "tests/transport/temporary_folder.h"

extern char** environ;

namespace quern {
namespace {

struct Child {
  pid_t pid = -1;
  int output = -1;
};

Child StartInserting(const std::string& directory, const std::string& prefix) {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  std::string program = QUERN_INSERT_CHILD;
  std::string first = directory;
  std::string second = prefix;
  char* arguments[] = {program.data(), first.data(), second.data(), nullptr};
  Child child;
  EXPECT_EQ(posix_spawn(&child.pid, program.c_str(), &actions, nullptr, arguments, environ), 0);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  child.output = ends[0];
  return child;
}

TEST(StoreDurability, NothingAcknowledgedIsLostOrDoubledWhenTheProcessIsKilled) {
  TemporaryFolder folder;
  const std::string directory = JoinPath(folder.path(), "replay");
  Random random(11);
  std::set<std::string> acknowledged;
  for (int round = 0; round < 6; ++round) {
    const Child child = StartInserting(directory, "r" + std::to_string(round));
    ASSERT_GT(child.pid, 0);
    std::string text;
    char buffer[4096];
    // The first acknowledgement, so that the kill falls into the inserting, then a little longer.
    ssize_t got = read(child.output, buffer, sizeof(buffer));
    ASSERT_GT(got, 0) << "the child did not insert anything";
    text.append(buffer, static_cast<size_t>(got));
    std::this_thread::sleep_for(std::chrono::milliseconds(5 + random.Below(120)));
    kill(child.pid, SIGKILL);
    while ((got = read(child.output, buffer, sizeof(buffer))) > 0) text.append(buffer, static_cast<size_t>(got));
    close(child.output);
    int status = 0;
    ASSERT_EQ(waitpid(child.pid, &status, 0), child.pid);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";
    for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
      acknowledged.insert(text.substr(begin, end - begin));
  }
  auto store = Store::Open(directory);
  ASSERT_TRUE(store.ok()) << store.status().message();
  std::set<std::string> stored;
  const Status status = ForEachRecord(**store, v1::Filter(), 0, [&](uint64_t, const v1::Trajectory& trajectory) {
    EXPECT_TRUE(stored.insert(trajectory.uid()).second) << trajectory.uid() << " is stored twice";
    return Status();
  });
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_GE(acknowledged.size(), 12u);
  for (const std::string& uid : acknowledged)
    EXPECT_EQ(stored.count(uid), 1u) << uid << " was acknowledged and is lost";
  // At most the batch under way at each kill is there without having been acknowledged.
  EXPECT_LE(stored.size(), acknowledged.size() + 6 * 4);
  const auto report = (*store)->Verify();
  EXPECT_EQ(report->records, stored.size());
  for (const std::string& problem : report->problems) ADD_FAILURE() << problem;
}

}  // namespace
}  // namespace quern
