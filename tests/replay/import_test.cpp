#include "replay/import.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "base/file.h"
#include "replay/store.h"
#include "tests/replay/trajectories.h"
#include "tests/shared_data.h"
#include "tests/transport/temporary_folder.h"

namespace quern {
namespace {

class ImportTest : public ::testing::Test {
 protected:
  void SetUp() override { store_ = *Store::Open(Path("replay")); }
  std::string Path(const std::string& name) { return JoinPath(folder_.path(), name); }
  ImportReport Import(const std::string& contents, const ImportOptions& options = {}) {
    EXPECT_TRUE(WriteFileAtomic(Path("in.jsonl"), contents).ok());
    auto report = ImportFile(*store_, Path("in.jsonl"), options);
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
  EXPECT_EQ(ImportFile(*store_, Path("nowhere.jsonl"), {}).status().code(), StatusCode::kNotFound);
}

// A path as the actors send it, with everything set.
v1::Trajectory MakeChain(const std::string& uid) {
  v1::Trajectory t = MakeTrajectory(uid, 1);
  t.set_generation_depth(2);
  t.set_verdict(v1::VERDICT_HINTED);
  for (const auto& [role, content] : {std::pair("user", "2 + 2?"), std::pair("assistant", "1. Add.\n\\boxed{4}")}) {
    t.add_messages()->set_role(role);
    t.mutable_messages(t.messages_size() - 1)->set_content(content);
  }
  v1::Chain* chain = t.mutable_chain();
  chain->set_question("2 + 2?");
  chain->set_answer("4");
  chain->set_extracted("4");
  chain->set_guideline(7);
  chain->set_guideline_text("Break it \"down\".");
  chain->set_hinted(true);
  chain->set_rejected("over the cap");
  v1::ChainStage* stage = chain->add_stages();
  stage->set_name("adapt");
  stage->set_text("Add\nthem.");
  for (const int id : {1, 2, 300000}) AppendInt(stage->mutable_prompt_token_ids(), id);
  for (const int id : {5, 6}) AppendInt(stage->mutable_token_ids(), id);
  for (const float log_prob : {-0.1f, std::numeric_limits<float>::quiet_NaN()})
    AppendFloat32(stage->mutable_log_probs(), log_prob);
  stage->mutable_sampling()->set_temperature(0.85f);
  chain->add_stages();  // an empty one
  return t;
}

TEST_F(ImportTest, ChainsWithLittleInThemComeBackAsTheyAre) {
  v1::Trajectory empty = MakeTrajectory("empty");
  empty.mutable_chain();
  v1::Trajectory failed = MakeTrajectory("failed");
  failed.set_verdict(v1::VERDICT_FAILED);
  failed.mutable_chain()->add_stages()->mutable_sampling();
  for (const v1::Trajectory& t : {empty, failed, MakeChain("full")}) {
    const auto back = ParseRow(FormatRow(t), {});
    ASSERT_TRUE(back.ok()) << back.status().message();
    EXPECT_EQ(back->SerializeAsString(), t.SerializeAsString());
  }
  const std::string row = FormatRow(MakeChain("full"));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = row;
    text.replace(text.find(from), from.size(), to);
    return ParseRow(text, {}).status().message();
  };
  EXPECT_NE(with("\"verdict\":\"hinted\"", "\"verdict\":\"good\"").find("none of verified, hinted"), std::string::npos);
  EXPECT_NE(with("\"guideline\":7", "\"guideline\":-7").find("'chain.guideline' is not an integer in range"),
            std::string::npos);
  EXPECT_NE(with("[1,2,300000]", "[1,2,3e9]").find("prompt_token_ids"), std::string::npos);
  EXPECT_NE(with("\"hinted\":true", "\"hinted\":1").find("'chain.hinted'"), std::string::npos);
}

TEST_F(ImportTest, MessagesAreExportedForOtherPrograms) {
  ASSERT_TRUE(store_->Insert(MakeInsert({MakeTrajectory("only tokens"), MakeChain("chain")})).ok());
  const auto report = ExportJsonl(*store_, {}, Path("m.jsonl"), ExportFormat::kMessages);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->rows, 1u);
  EXPECT_EQ(report->without_messages, 1u);
  EXPECT_EQ(*ReadFile(Path("m.jsonl")),
            R"({"messages":[{"role":"user","content":"2 + 2?"},{"role":"assistant","content":"1. Add.\n\\boxed{4}"}],)"
            R"("rewards":[0,1],"reward":1,"done":true,"success":false,"task":"task-chain","source":"generated",)"
            R"("generation_depth":2,"verdict":"hinted","guideline":7,"answer":"4","extracted":"4","policy":"q_sft",)"
            R"("version":3,"tags":["online"],"run":"run-1","uid":"chain"})"
            "\n");
}

TEST_F(ImportTest, GeneratedMessagesStayGenerated) {
  v1::Trajectory t = MakeChain("chain");
  t.mutable_turns(0)->set_end(8);  // one utterance, as of a path
  t.mutable_turns(0)->set_reward(1);
  t.mutable_turns()->RemoveLast();
  const auto back = ParseRow(FormatMessagesRow(t), {});
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(back->source(), v1::SOURCE_GENERATED);
  EXPECT_EQ(back->generation_depth(), 2u);
  EXPECT_EQ(back->verdict(), v1::VERDICT_HINTED);
  EXPECT_EQ(back->uid(), "chain");
  EXPECT_EQ(back->messages(1).content(), "1. Add.\n\\boxed{4}");
  const auto other =
      ParseRow(R"({"messages":[{"role":"assistant","content":"x"}],"rewards":[1],"source":"web","verdict":5})", {});
  ASSERT_TRUE(other.ok()) << other.status().message();
  EXPECT_EQ(other->source(), v1::SOURCE_REAL);
  EXPECT_EQ(other->extra_json(), R"({"source":"web","verdict":5})");
}

TEST_F(ImportTest, FilesOfQuestionsAreKnownByTheirFirstRecord) {
  const ImportReport sums = Import("2+2=4\n\n2+2=4\n2+3=\n12+30=42\n");
  EXPECT_EQ(sums.rows, 4u);
  EXPECT_EQ(sums.inserted, 2u);
  EXPECT_EQ(sums.duplicates, 1u);
  ASSERT_EQ(sums.bad_lines.size(), 1u);
  EXPECT_EQ(sums.bad_lines[0].number, 4u);
  EXPECT_NE(sums.bad_lines[0].reason.find("not a sum"), std::string::npos);
  const ImportReport list = Import(
      "[\n{\"ID\":\"c1\",\"Body\":\"Two.\",\"Question\":\"Three?\",\"Equation\":\"( 1.0 + 2.0 )\","
      "\n\"Answer\":3.0},\n {\"ID\":\"c2\"},\n{\"ID\":\"c3\",\"Body\":\"If so\",\"Question\":\"why?\","
      "\"Equation\":\"1\",\"Answer\":0.5}]");
  EXPECT_EQ(list.inserted, 2u);
  ASSERT_EQ(list.bad_lines.size(), 1u);
  EXPECT_EQ(list.bad_lines[0].number, 4u);
  EXPECT_EQ(list.bad_lines[0].reason, "has no \"Body\"");
  const auto all = All();
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[1].messages(0).content(), "12+30=");
  EXPECT_EQ(all[1].messages(1).content(), "42");
  EXPECT_EQ(all[1].task(), "12+30");
  EXPECT_EQ(all[1].episode_return(), 1);
  EXPECT_TRUE(all[1].success());
  EXPECT_EQ(all[1].source(), v1::SOURCE_REAL);
  EXPECT_EQ(all[1].extra_json(), R"({"format":"sums","answer":"42"})");
  EXPECT_EQ(all[2].messages(0).content(), "Two. Three?");
  EXPECT_EQ(all[2].messages(1).content(), "( 1.0 + 2.0 ) = 3");
  EXPECT_EQ(all[3].messages(0).content(), "If so, why?");
  ImportOptions options;
  options.format = ImportFormat::kGsm8k;
  EXPECT_EQ(Import("{\"question\":\"q\",\"answer\":\"no mark\"}\n", options).bad, 1u);
  EXPECT_TRUE(WriteFileAtomic(Path("cut.json"), "[{\"ID\":1},\n{\"ID\"").ok());
  options.format = ImportFormat::kSvamp;
  EXPECT_NE(ImportFile(*store_, Path("cut.json"), options).status().message().find("cut.json:2: what begins here"),
            std::string::npos);
}

TEST_F(ImportTest, ThePublishedQuestionsAreOfflineData) {
  const struct {
    const char* file;
    uint64_t rows;
    uint64_t inserted;
  } sets[] = {{"gsm8k_train.jsonl", 7473, 7473},
              {"SVAMP.json", 1000, 1000},
              {"aqua_dev.json", 254, 254},
              {"strategyqa_train.json", 2061, 2061},
              {"ARC-Challenge-Dev.jsonl", 294, 294},
              {"train_3digit_10000.txt", 10000, 9891},
              {"game24.csv", 1362, 1362}};
  for (const auto& set : sets) {
    const std::string file = SharedData(std::string("datasets/") + set.file);
    QUERN_NEED_SHARED_DATA(std::string("datasets/") + set.file);
    const auto report = ImportFile(*store_, file, {});
    ASSERT_TRUE(report.ok()) << report.status().message();
    EXPECT_EQ(report->rows, set.rows) << set.file;
    EXPECT_EQ(report->inserted, set.inserted) << set.file;
    EXPECT_EQ(report->bad, 0u) << set.file;
  }
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
  odd.mutable_sampling()->mutable_compression()->add_budgets(64);
  odd.mutable_sampling()->mutable_compression()->add_budgets(2);
  odd.mutable_sampling()->mutable_compression()->set_key_channels(77);
  odd.mutable_sampling()->mutable_compression()->set_query_window(32);
  odd.mutable_sampling()->mutable_compression()->set_recent(16);
  odd.set_log_prob_difference(0.0625f);
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
  records.push_back(MakeChain("chain"));
  ASSERT_TRUE(store_->Insert(MakeInsert(records)).ok());
  Import(R"({"prompt":"p","completion":"c","reward":1,"other":3.25,"zebra":1,"ant":null})");

  const auto rows = ExportJsonl(*store_, {}, Path("out.jsonl"));
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  EXPECT_EQ(rows->rows, 7u);
  auto copy = *Store::Open(Path("copy"));
  const auto report = ImportFile(*copy, Path("out.jsonl"), {});
  ASSERT_TRUE(report.ok());
  for (const BadLine& line : report->bad_lines) ADD_FAILURE() << line.number << ": " << line.reason;
  const auto before = *store_->Query(v1::QueryRequest());
  const auto after = *copy->Query(v1::QueryRequest());
  ASSERT_EQ(after.trajectories_size(), 7);
  for (int i = 0; i < 7; ++i) EXPECT_EQ(after.trajectories(i), before.trajectories(i)) << i;
  EXPECT_EQ(ExportJsonl(*copy, {}, Path("again.jsonl"))->rows, 7u);
  EXPECT_EQ(*ReadFile(Path("out.jsonl")), *ReadFile(Path("again.jsonl")));
}

TEST_F(ImportTest, FormatsAreFoundByNameWithAHint) {
  EXPECT_EQ(*ParseImportFormat("prompt-completion"), ImportFormat::kPromptCompletion);
  EXPECT_NE(ParseImportFormat("mesages").status().message().find("did you mean 'messages'"), std::string::npos);
}

TEST_F(ImportTest, TheGuessCityDialoguesAreOfflineData) {
  const std::string file = SharedData("environments/guess_city/episodes_700.jsonl");
  if (!PathExists(file)) GTEST_SKIP() << file << " is not here";
  const auto report = ImportFile(*store_, file, {});
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
