#include "replay/import.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/file.h"
#include "replay/store.h"
#include "tests/replay/trajectories.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

class ImportTest : public ::testing::Test {
 protected:
  void SetUp() override { store_ = *Store::Open(Path("replay")); }
  std::string Path(const std::string& name) { return JoinPath(folder_.path(), name); }
  ImportReport Import(const std::string& contents, const ImportOptions& options = {}) {
    EXPECT_TRUE(WriteFileAtomic(Path("in.jsonl"), contents).ok());
    auto report = ImportJsonl(*store_, Path("in.jsonl"), options);
    EXPECT_TRUE(report.ok()) << report.status().message();
    return *report;
  }
  std::vector<v1::Trajectory> All() {
    std::vector<v1::Trajectory> all;
    const Status status = ForEachRecord(*store_, {}, 0, [&](uint64_t, const v1::Trajectory& t) {
      all.push_back(t);
      return Status();
    });
    EXPECT_TRUE(status.ok()) << status.message();
    return all;
  }
  TemporaryFolder folder_;
  std::unique_ptr<Store> store_;
};

TEST_F(ImportTest, MessagesWithRewards) {
  const ImportReport report =
      Import(R"({"messages":[{"role":"user","content":"Guess."},{"role":"assistant","content":"42"},)"
             R"({"role":"user","content":"No."},{"role":"assistant","content":"43"}],"rewards":[-1,0.5],"done":true,)"
             R"("task":"number","colour":"blue","nested":{"a":[1,2]}})");
  EXPECT_EQ(report.inserted, 1u);
  const v1::Trajectory t = All()[0];
  EXPECT_EQ(t.messages_size(), 4);
  EXPECT_EQ(t.messages(3).content(), "43");
  ASSERT_EQ(t.turns_size(), 2);
  EXPECT_EQ(t.turns(0).reward(), -1);
  EXPECT_EQ(t.turns(1).reward(), 0.5f);
  EXPECT_EQ(t.episode_return(), -0.5);
  EXPECT_TRUE(t.done());
  EXPECT_EQ(t.task(), "number");
  EXPECT_EQ(t.source(), v1::SOURCE_REAL);
  EXPECT_EQ(t.extra_json(), R"({"colour":"blue","nested":{"a":[1,2]}})");
  EXPECT_EQ(t.uid().substr(0, 4), "row-");
}

TEST_F(ImportTest, PromptAndCompletionAsTextOrMessages) {
  Import(R"({"prompt":"1+1=","completion":"2","reward":1.0})"
         "\n"
         R"({"prompt":[{"role":"system","content":"Be brief."},{"role":"user","content":"Hi"}],)"
         R"("completion":[{"role":"assistant","content":"Yo"}],"reward":0,"tags":["chat"]})"
         "\n");
  const auto all = All();
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].messages(1).role(), "assistant");
  EXPECT_EQ(all[0].episode_return(), 1);
  EXPECT_EQ(all[1].messages(0).role(), "system");
  EXPECT_EQ(all[1].tags(0), "chat");
}

TEST_F(ImportTest, LmrlSequencesAndDialogues) {
  Import(R"({"sequence":[["Wordle:\n",false],["c r a n e\n",true],["b b b b b\n",0.0],["h o u s e\n",1.0]],)"
         R"("reward":[0,-1,0,0],"done":true})"
         "\n"
         R"({"conversation":["Is it big? Yes.","Is it Paris? Yes, it is Paris."],"done":true,"word":"paris,france"})"
         "\n"
         R"({"conversation":["Is it big? No."],"done":false,"word":"rome"})"
         "\n");
  const auto all = All();
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].messages(0).role(), "user");
  EXPECT_EQ(all[0].messages(3).role(), "assistant");
  EXPECT_EQ(all[0].episode_return(), -1);
  EXPECT_EQ(all[1].messages(2).content(), "Is it Paris?");
  EXPECT_EQ(all[1].messages(3).content(), "Yes, it is Paris.");
  EXPECT_EQ(all[1].turns(0).reward(), -1);
  EXPECT_EQ(all[1].turns(1).reward(), 0);
  EXPECT_TRUE(all[1].success());
  EXPECT_EQ(all[1].task(), "paris,france");
  EXPECT_EQ(all[2].episode_return(), -1);
  EXPECT_FALSE(all[2].success());
}

TEST_F(ImportTest, TagsRunAndSourceComeFromTheOptions) {
  ImportOptions options;
  options.tags = {"offline", "set-a"};
  options.run = "r9";
  options.source = v1::SOURCE_GENERATED;
  const std::string row = R"({"prompt":"p","completion":"c","reward":1,"tags":["offline"]})";
  Import(row, options);
  const v1::Trajectory t = All()[0];
  EXPECT_EQ(std::vector<std::string>(t.tags().begin(), t.tags().end()), (std::vector<std::string>{"offline", "set-a"}));
  EXPECT_EQ(t.run(), "r9");
  EXPECT_EQ(t.source(), v1::SOURCE_GENERATED);
  EXPECT_EQ(t.generation_depth(), 1u);
}

TEST_F(ImportTest, TheSameRowIsStoredOnce) {
  const std::string row = R"({"prompt":"p","completion":"c","reward":1})";
  const ImportReport first = Import(row + "\n" + row + "\n");
  EXPECT_EQ(first.inserted, 1u);
  EXPECT_EQ(first.duplicates, 1u);
  ImportOptions tagged;
  tagged.tags = {"again"};
  EXPECT_EQ(Import(row, tagged).duplicates, 1u);
  EXPECT_EQ(Import(R"({"prompt":"p","completion":"c","reward":2})").inserted, 1u);
}

TEST_F(ImportTest, BadLinesAreNumberedAndGoodOnesKept) {
  ImportOptions options;
  options.max_line_bytes = 1000;
  const std::string good = R"({"prompt":"p","completion":"c","reward":)";
  const std::string file =
      good + "1}\n" +      // 1
      "{\"prompt\": \n" +  // 2
      "\n" +               // 3: blank, no row
      R"({"prompt":"p","completion":"c"})"
      "\n" +  // 4
      R"({"messages":[{"role":"assistant","content":"x"}],"rewards":[1,2]})"
      "\n" +  // 5
      R"({"hello":"world"})"
      "\n" +       // 6
      "[1,2]\n" +  // 7
      std::string(2000, 'x') +
      "\n" +  // 8
      R"({"prompt":"p","completion":"c","reward":1e99})"
      "\n" +                                                         // 9
      "{\"prompt\":\"\xff\",\"completion\":\"c\",\"reward\":1}\n" +  // 10
      R"({"prompt":"p","completion":"c","x":)" +
      std::string(200, '[') + "\n" +  // 11
      R"({"messages":[{"role":"alien","content":"x"},{"role":"assistant","content":"x"}],"rewards":[1]})"
      "\n" +  // 12
      good +
      "2}";  // 13, no newline at the end
  const ImportReport report = Import(file, options);
  EXPECT_EQ(report.rows, 12u);
  EXPECT_EQ(report.inserted, 2u);
  EXPECT_EQ(report.bad, 10u);
  const std::pair<uint64_t, const char*> expected[] = {
      {2, "not JSON: stopped at byte"}, {4, "'reward' is missing"}, {5, "2 rewards for 1 assistant messages"},
      {6, "none of the known formats"}, {7, "not a JSON object"},   {8, "longer than the limit"},
      {9, "'reward' is out of range"},  {10, "not JSON"},           {11, "nested more than 100 deep"},
      {12, "unknown role 'alien'"}};
  ASSERT_EQ(report.bad_lines.size(), std::size(expected));
  for (size_t i = 0; i < std::size(expected); ++i) {
    EXPECT_EQ(report.bad_lines[i].number, expected[i].first);
    EXPECT_NE(report.bad_lines[i].reason.find(expected[i].second), std::string::npos)
        << expected[i].first << ": " << report.bad_lines[i].reason;
  }
  EXPECT_EQ(All().size(), 2u);
  EXPECT_EQ(ImportJsonl(*store_, Path("nowhere.jsonl"), {}).status().code(), StatusCode::kNotFound);
}

TEST_F(ImportTest, ImportOfAnExportIsTheIdentity) {
  std::vector<v1::Trajectory> records;
  records.push_back(MakeTrajectory("plain"));
  records.push_back(MakeTrajectory("real", 0, v1::SOURCE_REAL, 64));
  v1::Trajectory odd = MakeTrajectory("odd \"quoted\" \\ \n\t\x01 \xc3\xa9\xf0\x9f\x8e\xb2", 0.1f);
  odd.mutable_turns(0)->set_reward(-0.0f);
  odd.mutable_turns(1)->set_reward(0.1f + 1e-8f);
  odd.set_episode_return(static_cast<double>(odd.turns(1).reward()));
  odd.set_extra_json("{ \"kept\" : [ 1,  2 ] }");
  odd.set_created_unix_ms(-5);
  odd.mutable_sampling()->set_rule("paper");
  odd.mutable_sampling()->set_top_p(0.95f);
  v1::Message* message = odd.add_messages();
  message->set_role("user");
  message->set_content(std::string("zero\0byte", 9));
  records.push_back(odd);
  v1::Trajectory bare = MakeTrajectory("bare");
  bare.clear_log_probs();
  bare.clear_sampling();
  bare.clear_policies();
  bare.clear_run();
  bare.set_done(false);
  bare.clear_tags();
  records.push_back(bare);
  v1::Trajectory empty_sampling = bare;
  empty_sampling.set_uid("empty sampling");
  empty_sampling.mutable_sampling();
  records.push_back(empty_sampling);
  ASSERT_TRUE(store_->Insert(MakeInsert(records)).ok());
  Import(R"({"prompt":"p","completion":"c","reward":1,"other":3.25,"zebra":1,"ant":null})");

  const auto rows = ExportJsonl(*store_, {}, Path("out.jsonl"));
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  EXPECT_EQ(*rows, 6u);
  auto copy = *Store::Open(Path("copy"));
  const auto report = ImportJsonl(*copy, Path("out.jsonl"), {});
  ASSERT_TRUE(report.ok());
  for (const BadLine& line : report->bad_lines) ADD_FAILURE() << line.number << ": " << line.reason;
  const auto before = *store_->Query(v1::QueryRequest());
  const auto after = *copy->Query(v1::QueryRequest());
  ASSERT_EQ(after.trajectories_size(), 6);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(after.trajectories(i), before.trajectories(i)) << i;
  EXPECT_EQ(*ExportJsonl(*copy, {}, Path("again.jsonl")), 6u);
  EXPECT_EQ(*ReadFile(Path("out.jsonl")), *ReadFile(Path("again.jsonl")));
}

TEST_F(ImportTest, FormatsAreFoundByNameWithAHint) {
  EXPECT_EQ(*ParseImportFormat("prompt-completion"), ImportFormat::kPromptCompletion);
  EXPECT_NE(ParseImportFormat("mesages").status().message().find("did you mean 'messages'"), std::string::npos);
}

TEST_F(ImportTest, TheGuessCityDialoguesAreOfflineData) {
  const char* shared = getenv("QUERN_SHARED_DATA");
  const char* source = getenv("QUERN_SOURCE_DIR");
  const std::string data = shared != nullptr ? shared : JoinPath(source != nullptr ? source : ".", "../shared/data");
  const std::string file = JoinPath(data, "environments/guess_city/episodes_700.jsonl");
  if (!PathExists(file)) GTEST_SKIP() << file << " is not here";
  const auto report = ImportJsonl(*store_, file, {});
  ASSERT_TRUE(report.ok()) << report.status().message();
  EXPECT_EQ(report->rows, 700u);
  EXPECT_EQ(report->bad, 0u);
  EXPECT_EQ(report->inserted + report->duplicates, 700u);
  const auto stats = *store_->Stats({});
  // Counted with another program: 445 of 700 are solved; 13,019 questions, each -1 but the solving ones.
  EXPECT_NEAR(stats.success_rate() * static_cast<double>(stats.records()), 445, 0.01);
  EXPECT_NEAR(stats.mean_return() * static_cast<double>(stats.records()), -(13019.0 - 445.0), 0.01);
}

}  // namespace
}  // namespace quern
