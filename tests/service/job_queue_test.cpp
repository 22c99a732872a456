#include "service/job_queue.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/strings.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

class JobQueueTest : public testing::Test {
 protected:
  Job MakeJob(const std::string& name, int64_t seed = 0) {
    Result<Job> job =
        ParseJob(StrCat("name: ", name, "\nseed: ", seed,
                        "\nmodel: {config: {hidden_size: 32}}\nenvironment: {name: digits}\nonline: {rounds: 1}\n"),
                 "job.yaml", folder_.path(), {});
    EXPECT_TRUE(job.ok()) << job.status().message();
    return *job;
  }
  std::string Submit(const Job& job, const std::string& submission_id = "") {
    const Result<std::string> id = queue_.Submit(job, submission_id, &again_);
    EXPECT_TRUE(id.ok()) << id.status().message();
    return id.ok() ? *id : "";
  }

  TemporaryFolder folder_;
  JobQueue queue_ = *JobQueue::OpenAt(folder_.path());
  bool again_ = false;
};

TEST_F(JobQueueTest, JobsAreNumberedAndListedInTheOrderOfSubmission) {
  EXPECT_TRUE(queue_.List()->empty());
  EXPECT_EQ(Submit(MakeJob("b")), "b-1");
  EXPECT_EQ(Submit(MakeJob("b")), "b-2");
  EXPECT_EQ(Submit(MakeJob("a")), "a-1");
  const auto jobs = queue_.List();
  ASSERT_TRUE(jobs.ok());
  ASSERT_EQ(jobs->size(), 3u);
  EXPECT_EQ(jobs->at(0).id, "b-1");
  for (const QueuedJob& job : *jobs) {
    EXPECT_EQ(job.state, "queued");
    EXPECT_EQ(job.attempts, 0);
    const Result<Job> resolved = LoadJob(job.Path("job.json"), {});
    ASSERT_TRUE(resolved.ok()) << resolved.status().message();
    EXPECT_EQ(resolved->output_dir, job.run_directory);
    EXPECT_EQ(resolved->base_dir, folder_.path());
  }
  EXPECT_EQ(queue_.Find("c-1").status().code(), StatusCode::kNotFound);
  EXPECT_EQ(queue_.Find("../x").status().code(), StatusCode::kInvalidArgument);
}

TEST_F(JobQueueTest, ASubmissionIdIsTakenOnce) {
  EXPECT_EQ(Submit(MakeJob("a"), "nightly"), "nightly");
  EXPECT_FALSE(again_);
  EXPECT_EQ(Submit(MakeJob("a"), "nightly"), "nightly");
  EXPECT_TRUE(again_);
  EXPECT_EQ(queue_.Submit(MakeJob("a", 1), "nightly", &again_).status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(queue_.List()->size(), 1u);
  for (const std::string& id : std::vector<std::string>{"a/b", "..", "with space", std::string(65, 'a')})
    EXPECT_EQ(queue_.Submit(MakeJob("a"), id, &again_).status().code(), StatusCode::kInvalidArgument) << id;
}

TEST_F(JobQueueTest, ASubmissionThatWasBrokenOffIsNoJobAndCanBeMadeAgain) {
  ASSERT_TRUE(MakeDirectories(JoinPath(folder_.path(), "jobs/x")).ok());
  EXPECT_TRUE(queue_.List()->empty());
  EXPECT_EQ(Submit(MakeJob("a"), "x"), "x");
  EXPECT_FALSE(again_);
  EXPECT_EQ(queue_.List()->size(), 1u);
}

TEST_F(JobQueueTest, CancelRequeueAndDelete) {
  Submit(MakeJob("a"));
  EXPECT_EQ(queue_.Delete(*queue_.Find("a-1")).code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(queue_.Requeue(*queue_.Find("a-1")).code(), StatusCode::kFailedPrecondition);
  ASSERT_TRUE(queue_.Cancel(*queue_.Find("a-1"), false).ok());
  EXPECT_EQ(queue_.Find("a-1")->state, "cancelled");
  ASSERT_TRUE(queue_.Requeue(*queue_.Find("a-1")).ok());
  EXPECT_EQ(queue_.Find("a-1")->state, "queued");
  ASSERT_TRUE(queue_.RecordEnd(*queue_.Find("a-1"), "failed", "no disk").ok());
  const auto failed = queue_.Find("a-1");
  EXPECT_EQ(failed->state, "failed");
  EXPECT_EQ(failed->error, "no disk");
  EXPECT_GT(failed->ended_unix_ms, 0);
  ASSERT_TRUE(queue_.RecordEnd(*failed, "succeeded", "").ok());
  EXPECT_EQ(queue_.Requeue(*queue_.Find("a-1")).code(), StatusCode::kFailedPrecondition);
  ASSERT_TRUE(queue_.Delete(*queue_.Find("a-1")).ok());
  EXPECT_EQ(queue_.Find("a-1").status().code(), StatusCode::kNotFound);
}

TEST_F(JobQueueTest, Slots) {
  EXPECT_EQ(queue_.slots(), 1);
  EXPECT_FALSE(queue_.SetSlots(0).ok());
  ASSERT_TRUE(queue_.SetSlots(3).ok());
  EXPECT_EQ(queue_.slots(), 3);
}

TEST_F(JobQueueTest, DamageIsNamed) {
  Submit(MakeJob("a"));
  ASSERT_TRUE(WriteFileAtomic(queue_.Find("a-1")->Path("ended.json"), "{\"sta").ok());
  const auto job = queue_.Find("a-1");
  EXPECT_EQ(job.status().code(), StatusCode::kDataLoss);
  EXPECT_NE(job.status().message().find("ended.json"), std::string::npos) << job.status().message();
}

}  // namespace
}  // namespace quern
