#include "service/page.h"

#include <cmath>
#include <future>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/strings.h"
#include "replay/store.h"
#include "service/event_log.h"
#include "service/journal.h"
#include "service/metrics_log.h"
#include "tests/replay/trajectories.h"
#include "tests/service/test_jobs.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

using Json = nlohmann::json;

class HeldReply : public HttpReply {
 public:
  struct Answer {
    int status = 0;
    std::string type, body;
  };
  explicit HeldReply(std::promise<Answer>* promise) : promise_(promise) {}
  void Send(int status, std::string_view type, std::string body) override {
    promise_->set_value({status, std::string(type), std::move(body)});
  }
  void Begin(int, std::string_view) override {}
  void Write(std::string) override {}
  void End() override {}
  bool closed() const override { return false; }

 private:
  std::promise<Answer>* promise_;
};

class PageTest : public ::testing::Test {
 protected:
  void SetUp() override {
    run_.directory = folder_.path();
    run_.job = SmallJob();
    auto store = Store::Open(run_.Path("replay"));
    ASSERT_TRUE(store.ok()) << store.status().message();
    store_ = std::move(*store);
  }
  // The page gets the store for itself.
  void MakePage() { page_ = std::make_unique<RunPage>(run_, std::move(store_)); }
  HeldReply::Answer Get(const std::string& path, const std::string& query = "") {
    std::promise<HeldReply::Answer> promise;
    page_->Handle({.method = "GET", .path = path, .query = query, .content_type = "", .body = ""},
                  std::make_shared<HeldReply>(&promise));
    return promise.get_future().get();
  }
  Json GetJson(const std::string& path, const std::string& query = "") {
    const auto answer = Get(path, query);
    EXPECT_EQ(answer.status, 200) << answer.body;
    EXPECT_EQ(answer.type, "application/json");
    return Json::parse(answer.body);
  }
  static const Json* Find(const Json& list, const char* key, const std::string& value) {
    for (const Json& entry : list)
      if (entry.at(key) == value) return &entry;
    ADD_FAILURE() << "none with " << key << " " << value << " in " << list.dump(1);
    return nullptr;
  }

  TemporaryFolder folder_;
  quern::Run run_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<RunPage> page_;
};

TEST_F(PageTest, ThePageIsOneFileThatAsksForNothingOutside) {
  MakePage();
  const auto answer = Get("/");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.type, "text/html; charset=utf-8");
  EXPECT_EQ(answer.body, std::string(PageHtml()));
  EXPECT_TRUE(answer.body.starts_with("<!doctype html>"));
  EXPECT_TRUE(answer.body.ends_with("</html>\n"));
  // Names of XML, not addresses to load from.
  std::string rest = answer.body;
  for (const std::string name : {"http://www.w3.org/2000/svg"})
    for (size_t at; (at = rest.find(name)) != std::string::npos;) rest.erase(at, name.size());
  for (const char* outside : {"http://", "https://", "src=", "@import", "url(", "innerHTML"})
    EXPECT_EQ(rest.find(outside), std::string::npos) << outside;
  EXPECT_NE(rest.find("default-src 'none'"), std::string::npos);
}

TEST_F(PageTest, ARunThatNeverBegan) {
  MakePage();
  const Json run = GetJson("/api/run");
  EXPECT_EQ(run["state"], "not started");
  EXPECT_EQ(run["live"], false);
  EXPECT_EQ(run["job"], "small");
  EXPECT_GT(run["stages"].size(), 3u);
  for (const Json& stage : run["stages"]) EXPECT_EQ(stage["state"], "pending");
  EXPECT_EQ(GetJson("/api/curves")["stages"].size(), 0u);
  EXPECT_EQ(GetJson("/api/events")["events"].size(), 0u);
  EXPECT_EQ(GetJson("/api/replay")["records"], 0);
  EXPECT_EQ(GetJson("/api/samples")["samples"].size(), 0u);
  EXPECT_EQ(GetJson("/api/returns")["policies"].size(), 0u);
  EXPECT_EQ(GetJson("/api/job")["evaluate"]["episodes"], 30);
  EXPECT_EQ(Get("/api/none").status, 404);
  EXPECT_EQ(Get("/etc/passwd").status, 404);
}

TEST_F(PageTest, StagesEventsAndReturnsComeFromTheFiles) {
  std::vector<v1::Trajectory> played;
  for (int i = 0; i < 10; ++i) {
    played.push_back(MakeTrajectory(StrCat("u", i), static_cast<float>(i % 2 ? -1 : -3), v1::SOURCE_REAL));
    played.back().clear_tags();
    played.back().add_tags("offline");
    played.back().add_tags("player:random");
  }
  ASSERT_TRUE(store_->Insert(MakeInsert(played)).ok());
  auto journal = *Journal::Open(run_.Path("journal.jsonl"));
  journal->StageStarted("collect:random", 0);
  journal->TaskGiven("collect:random", 0, {.episodes = 20, .actor = 0, .weights = {}, .done = false});
  journal->TaskGiven("collect:random", 20, {.episodes = 20, .actor = 1, .weights = {}, .done = false});
  journal->TaskDone("collect:random", 0, 0, 0.5);
  MakePage();
  Json run = GetJson("/api/run");
  EXPECT_EQ(run["state"], "interrupted");
  const Json* stage = Find(run["stages"], "name", "collect:random");
  ASSERT_NE(stage, nullptr);
  EXPECT_EQ((*stage)["done"], 20);
  EXPECT_EQ((*stage)["total"], 100);
  EXPECT_EQ((*stage)["state"], "interrupted");
  EXPECT_FALSE(GetJson("/api/returns")["policies"][0]["done"]);

  journal->StageDone("collect:random", {{"elapsed_seconds", 2.5}}, "2.5 s");
  journal->StageStarted("sft", 10);
  journal->StageGiven("sft", 1);
  v1::WeightVersion weights;
  weights.set_name("sft");
  weights.set_version(1);
  weights.set_content_hash("0011");
  weights.set_path("/w");
  journal->Published("sft", weights);
  journal->Ended("failed", "stage sft: a disk <b>full</b>");
  AppendEvent(run_, "supervisor", "learner died: signal 9");
  run = GetJson("/api/run");
  EXPECT_EQ(run["state"], "failed");
  EXPECT_EQ(run["error"], "stage sft: a disk <b>full</b>");
  stage = Find(run["stages"], "name", "collect:random");
  EXPECT_EQ((*stage)["state"], "done");
  EXPECT_EQ((*stage)["done"], 100);
  EXPECT_EQ((*stage)["metrics"]["elapsed_seconds"], 2.5);
  EXPECT_EQ((*Find(run["stages"], "name", "sft"))["state"], "interrupted");

  const Json events = GetJson("/api/events")["events"];
  ASSERT_EQ(events.size(), 7u);
  EXPECT_EQ(events[0]["text"], "supervisor: learner died: signal 9");
  EXPECT_EQ(events[0]["kind"], "problem");
  EXPECT_EQ(events[2]["kind"], "weights");
  EXPECT_EQ(events[6]["text"], "the job began");
  for (size_t i = 1; i < events.size(); ++i) EXPECT_LE(events[i]["time"], events[i - 1]["time"]);

  const Json row = GetJson("/api/returns")["policies"][0];
  EXPECT_EQ(row["episodes"], 10);
  EXPECT_EQ(row["mean_return"], -2);
  EXPECT_EQ(row["done"], true);
}

TEST_F(PageTest, ARunningCoordinatorIsShownOverTheFiles) {
  auto journal = *Journal::Open(run_.Path("journal.jsonl"));
  journal->StageStarted("collect:random", 0);
  MakePage();
  page_->ShowLive([] {
    v1::StatusReply status;
    status.set_state("running");
    v1::StageStatus& stage = *status.add_stages();
    stage.set_name("collect:random");
    stage.set_state("running");
    stage.set_done(37);
    stage.set_total(100);
    v1::Member& member = *status.add_members();
    member.set_role("actor");
    member.set_index(3);
    (*member.mutable_gauges())["tokens"] = 5;
    (*member.mutable_gauges())["broken"] = std::nan("");
    return status;
  });
  const Json run = GetJson("/api/run");
  EXPECT_EQ(run["state"], "running");
  EXPECT_EQ(run["live"], true);
  EXPECT_EQ((*Find(run["stages"], "name", "collect:random"))["done"], 37);
  EXPECT_EQ((*Find(run["stages"], "name", "collect:random"))["state"], "running");
  EXPECT_EQ(run["members"][0]["index"], 3);
  EXPECT_EQ(run["members"][0]["gauges"]["broken"], nullptr);
  page_->ShowLive(nullptr);
  EXPECT_EQ(GetJson("/api/run")["live"], false);
}

TEST_F(PageTest, CurvesAreThinnedAndStepsOfAResumptionCountOnce) {
  std::string lines = R"({"time": 1, "role": "stage", "stage": "collect:random", "loss": 9, "step": 1})"
                      "\n";
  for (int step = 1; step <= 1000; ++step)
    lines += StrFormat("{\"stage\":\"sft\",\"step\":%d,\"loss\":%g}\n", step, 1.0 / step);
  for (int step = 900; step <= 950; ++step)
    lines +=
        StrFormat("{\"stage\":\"sft\",\"step\":%d,\"loss\":-1,\"heldout_loss\":2,\"time\":%d.5}\n", step, 1000 + step);
  lines += "not json\n{\"stage\":\"q_sft\",\"step\":1,\"loss\":null}\n{\"stage\":\"sft\",\"step\":951,\"lo";
  ASSERT_TRUE(WriteFileAtomic(run_.Path("metrics.jsonl"), lines).ok());
  MakePage();
  const Json all = GetJson("/api/curves", "points=5000");
  const Json& curve = all["stages"][0];
  EXPECT_EQ(curve["stage"], "sft");
  ASSERT_EQ(curve["steps"].size(), 950u);
  EXPECT_EQ(curve["steps"][899], 900);
  EXPECT_EQ(curve["numbers"]["loss"][899], -1);
  EXPECT_NEAR(curve["numbers"]["loss"][898].get<double>(), 1.0 / 899, 1e-8);
  EXPECT_EQ(curve["numbers"]["heldout_loss"][0], nullptr);
  EXPECT_FALSE(curve["numbers"].contains("time"));
  EXPECT_EQ(curve["seconds"][0], nullptr);
  ASSERT_EQ(curve["seconds"].size(), 950u);
  EXPECT_EQ(curve["seconds"][949].get<double>() - curve["seconds"][899].get<double>(), 50);
  EXPECT_EQ(curve["numbers"]["heldout_loss"][949], 2);
  EXPECT_TRUE(all["stages"][1]["numbers"].empty());
  const Json few = GetJson("/api/curves", "points=50")["stages"][0];
  EXPECT_LE(few["steps"].size(), 51u);
  EXPECT_EQ(few["steps"].back(), 950);
  EXPECT_EQ(few["logged"], 950);
}

TEST_F(PageTest, SamplesNewestFirstFilteredAndByPages) {
  std::vector<v1::Trajectory> records;
  for (int i = 1; i <= 600; ++i) {
    v1::Trajectory t =
        MakeTrajectory(StrCat("u", i), static_cast<float>(i), i % 3 ? v1::SOURCE_GENERATED : v1::SOURCE_REAL);
    v1::Message* prompt = t.add_messages();
    prompt->set_role("user");
    prompt->set_content(StrCat("question ", i));
    v1::Message* said = t.add_messages();
    said->set_role("assistant");
    said->set_content(i == 7 ? "a needle & <script>" : i == 8 ? std::string(30000, 'x') : "hay");
    records.push_back(std::move(t));
  }
  for (size_t i = 0; i < records.size(); i += 100)
    ASSERT_TRUE(store_
                    ->Insert(MakeInsert({records.begin() + static_cast<std::ptrdiff_t>(i),
                                         records.begin() + static_cast<std::ptrdiff_t>(i + 100)}))
                    .ok());
  MakePage();
  Json page = GetJson("/api/samples", "limit=2");
  ASSERT_EQ(page["samples"].size(), 2u);
  EXPECT_EQ(page["samples"][0]["number"], 600);
  EXPECT_EQ(page["samples"][0]["messages"][0]["content"], "question 600");
  EXPECT_EQ(page["samples"][0]["rewards"], Json::array({0, 600}));
  EXPECT_EQ(page["before"], 599);
  EXPECT_EQ(GetJson("/api/samples", "limit=2&before=599")["samples"][0]["number"], 598);
  page = GetJson("/api/samples", "source=real&limit=100&before=10");
  ASSERT_EQ(page["samples"].size(), 3u);
  EXPECT_EQ(page["samples"][2]["number"], 3);
  EXPECT_EQ(page["before"], nullptr);
  page = GetJson("/api/samples", "text=needle+%26%20%3Cs");
  ASSERT_EQ(page["samples"].size(), 1u);
  EXPECT_EQ(page["samples"][0]["number"], 7);
  EXPECT_EQ(page["samples"][0]["policies"][0]["version"], 3);
  EXPECT_EQ(GetJson("/api/samples", "text=nowhere")["samples"].size(), 0u);
  EXPECT_EQ(GetJson("/api/samples", "min_return=10&max_return=12")["samples"].size(), 3u);
  EXPECT_EQ(GetJson("/api/samples", "tag=online&max_return=6")["samples"].size(), 4u);
  const std::string cut = GetJson("/api/samples", "min_return=8&max_return=8")["samples"][0]["messages"][1]["content"];
  EXPECT_LT(cut.size(), 21000u);
  EXPECT_NE(cut.find("more bytes]"), std::string::npos);
  EXPECT_EQ(GetJson("/api/replay")["records"], 600);
  for (const char* wrong : {"min_return=x", "limit=-1", "limit=1.5", "source=robots", "verdict=fine", "min_return=nan"})
    EXPECT_EQ(Get("/api/samples", wrong).status, 400) << wrong;
}

TEST_F(PageTest, WithoutAStoreTheRestIsThere) {
  store_.reset();
  MakePage();
  EXPECT_EQ(GetJson("/api/run")["job"], "small");
  EXPECT_EQ(Get("/api/replay").status, 404);
  EXPECT_EQ(Get("/api/samples").status, 404);
  EXPECT_EQ(GetJson("/api/returns")["policies"].size(), 0u);
}

}  // namespace
}  // namespace quern
