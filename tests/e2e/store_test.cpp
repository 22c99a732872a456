// The store as its users see it: looked into, drawn from, checked and copied while a job uses it, damaged, pruned.
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tests/e2e/tiny_job.h"

namespace quern {
namespace {

using Json = nlohmann::json;
using Ended = QuernProcess::Ended;

class StoreCommands : public ::testing::Test {
 protected:
  Ended Replay(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "replay");
    return QuernProcess::Run(folder_, arguments);
  }
  // Of a command that must succeed: its standard output. Nothing but `notes` lines on stderr.
  std::string Good(const std::vector<std::string>& arguments, size_t notes = 0) {
    const Ended ended = Replay(arguments);
    EXPECT_EQ(ended.code, 0) << StrJoin(arguments, " ") << "\n" << ended.err;
    EXPECT_EQ(CountLines(ended.err), notes) << StrJoin(arguments, " ") << "\n" << ended.err;
    return ended.out;
  }
  int Count(const std::vector<std::string>& filter) {
    std::vector<std::string> arguments = {"query", "--store", "run", "--count"};
    arguments.insert(arguments.end(), filter.begin(), filter.end());
    return std::atoi(Good(arguments).c_str());
  }
  bool Running() { return PathExists(folder_.File("run/replay/server.address")); }
  bool HasRecords(int least) {
    if (!Running()) return false;
    const Ended ended = Replay({"query", "--store", "run", "--count"});
    return ended.code == 0 && std::atoi(ended.out.c_str()) >= least;
  }
  static std::string Numbers(const std::string& out) { return StrJoin(StrSplit(out, '\n'), " "); }

  QuernProcess::Folder folder_;
};

TEST_F(StoreCommands, WhileAJobTrains) {
  QuernProcess run(folder_, RunArguments(folder_, {"method=filtered_sft", "compare=[]", "online.rounds=300",
                                                   "evaluate.episodes=0"}));
  ASSERT_TRUE(Eventually([&] { return HasRecords(200); }, 60));
  // Every filter of the index. The offline records are all there.
  const std::vector<std::string> offline = {"--tag", "offline"};
  const auto both = [&](std::vector<std::string> more) {
    more.insert(more.end(), offline.begin(), offline.end());
    return Count(more);
  };
  EXPECT_EQ(both({}), 120);
  EXPECT_EQ(both({"--run", "run"}), 120);
  EXPECT_EQ(both({"--run", "walk"}), 0);
  EXPECT_EQ(both({"--source", "real"}), 120);
  EXPECT_EQ(both({"--source", "generated"}), 0);
  EXPECT_EQ(both({"--version", "0"}), 120);
  EXPECT_EQ(both({"--version", "1.."}), 0);
  EXPECT_EQ(both({"--depth", "0"}), 120);
  EXPECT_EQ(both({"--depth", "1..3"}), 0);
  EXPECT_EQ(both({"--prompt", "Wordle:"}), 120);
  EXPECT_EQ(both({"--prompt", "Wordle"}), 0);
  EXPECT_EQ(both({"--prompt-contains", "Word"}), 120);
  EXPECT_EQ(both({"--min-return", "-5.5"}) + both({"--max-return", "-5.5"}), 120);
  EXPECT_EQ(both({"--tokens", "..30"}) + both({"--tokens", "31.."}), 120);
  EXPECT_GT(both({"--task", "crane"}), 0);
  EXPECT_EQ(
      both({"--task", "crane", "--without-tag", "player:random"}) + both({"--task", "crane", "--tag", "player:random"}),
      both({"--task", "crane"}));
  const Json stats = Json::parse(Good({"stats", "--store", "run", "--tag", "offline", "-o", "json"}));
  EXPECT_EQ(stats["runs"]["run"], 120);
  EXPECT_EQ(stats["versions"]["0"], 120);
  EXPECT_EQ(stats["depths"]["0"], 120);
  int returns = 0;
  for (const Json& bucket : stats["returns"]) returns += bucket["records"].get<int>();
  EXPECT_EQ(returns, 120);

  // What is drawn is a function of the watermark, the seed and the step: the same now and when the job is over.
  const std::vector<std::vector<std::string>> draws = {{"--selector", "uniform"},
                                                       {"--selector", "uniform", "--step", "3"},
                                                       {"--selector", "uniform", "--seed", "3"},
                                                       {"--selector", "uniform", "--window", "20"},
                                                       {"--selector", "uniform", "--top-fraction", "0.2"},
                                                       {"--selector", "prioritised"},
                                                       {"--selector", "fifo"},
                                                       {"--selector", "fifo", "--window", "10"}};
  std::vector<std::string> drawn;
  const auto draw = [&] {
    std::vector<std::string> all;
    for (std::vector<std::string> how : draws) {
      how.insert(how.begin(), {"sample", "--store", "run", "--watermark", "100", "-o", "numbers", "--count", "5"});
      all.push_back(Numbers(Good(how, 1)));
    }
    return all;
  };
  drawn = draw();
  EXPECT_EQ(drawn[6], "1 2 3 4 5 ");
  EXPECT_EQ(drawn[7], "91 92 93 94 95 ");
  EXPECT_EQ(std::set<std::string>(drawn.begin(), drawn.end()).size(), drawn.size());

  const Json sound = Json::parse(Good({"verify", "--store", "run", "-o", "json"}));
  EXPECT_GE(sound["records"].get<int>(), 120);
  EXPECT_TRUE(sound["problems"].empty());
  Good({"backup", "--store", "run", "--to", "copy"});
  EXPECT_EQ(Replay({"prune", "--store", "run", "--max-bytes", "0"}).code, 1) << "the job has it";
  ASSERT_TRUE(Running());
  run.Signal(SIGINT);
  EXPECT_EQ(run.Wait().code, 103);
  EXPECT_EQ(draw(), drawn);
  const auto left = *ListDirectory(folder_.File("run"));
  for (const std::string& name : left) EXPECT_FALSE(name.starts_with("replay.")) << name << " was left behind";

  // What is read changes nothing.
  const auto files = *ListDirectory(folder_.File("run/replay"));
  Good({"stats", "--store", "run"});
  Good({"verify", "--store", "run"});
  EXPECT_EQ(*ListDirectory(folder_.File("run/replay")), files);

  Good({"verify", "--store", "copy"});
  Good({"restore", "--from", "copy", "--to", "restored"});
  // Import of an export is the identity, with the log-probabilities and versions of the online records.
  Good({"export", "--store", "run", "--to", "a.jsonl"});
  Good({"import", "--store", "again", "--input", "a.jsonl"});
  Good({"export", "--store", "again", "--to", "b.jsonl"});
  EXPECT_EQ(*ReadFile(folder_.File("a.jsonl")), *ReadFile(folder_.File("b.jsonl")));
  EXPECT_EQ(Good({"export", "--store", "again", "--to", "-"}, 1), *ReadFile(folder_.File("a.jsonl")));
  // The copy is the store as it was.
  const std::string restored = Good({"export", "--store", "restored", "--to", "-"}, 1);
  EXPECT_EQ(ReadFile(folder_.File("a.jsonl"))->substr(0, restored.size()), restored);
  EXPECT_GE(CountLines(restored), 120u);
}

// The whole machine stops, and the disk with the store is lost: a copy of it that is recent enough will do.
TEST_F(StoreCommands, ARunGoesOnWithARestoredStore) {
  const std::vector<std::string> job = {"qsft.max_steps=700", "checkpoint.every_steps=20", "qsft.selector=prioritised"};
  {
    QuernProcess run(folder_, RunArguments(folder_, job));
    const auto saved = [&] {
      const auto checkpoints = ListDirectory(folder_.File("run/checkpoints/q_sft"));
      return checkpoints.ok() && checkpoints->size() > 1;
    };
    ASSERT_TRUE(Eventually(saved, 60));
    Good({"backup", "--store", "run", "--to", "copy"});
    for (const pid_t pid : ProcessesWith({folder_.path(), "quern"})) kill(pid, SIGKILL);
    run.Wait();
  }
  ASSERT_TRUE(Eventually([&] { return ProcessesWith({folder_.path(), "quern"}).empty(); }));
  ASSERT_TRUE(RemoveTree(folder_.File("run/replay")).ok());
  Good({"restore", "--from", "copy", "--to", "run/replay"});
  const Ended resumed = QuernProcess(folder_, {"resume", "run"}).Wait(std::chrono::seconds(120));
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  Good({"verify", "--store", "run"});
  // The same weights as a job that nothing happened to.
  const QuernProcess::Folder other;
  const Ended whole = QuernProcess(other, RunArguments(other, job)).Wait(std::chrono::seconds(120));
  ASSERT_EQ(whole.code, 0) << whole.err;
  const auto published = [](const QuernProcess::Folder& folder) {
    std::map<std::string, std::string> hashes;
    const Json all = Json::parse(*ReadFile(folder.File("run/weights.json")));
    for (const auto& [stage, weights] : all.items()) hashes[stage] = weights["content_hash"].get<std::string>();
    return hashes;
  };
  EXPECT_EQ(published(folder_), published(other));
}

// A copy that is older than what the run has done since is not gone on with.
TEST_F(StoreCommands, ARunNoticesThatItsStoreIsTooOld) {
  {
    QuernProcess run(folder_, RunArguments(folder_, {"method=filtered_sft", "compare=[]", "online.rounds=300",
                                                     "evaluate.episodes=0"}));
    ASSERT_TRUE(Eventually([&] { return HasRecords(200); }, 60));
    Good({"backup", "--store", "run", "--to", "copy"});
    ASSERT_TRUE(Eventually([&] { return HasRecords(400); }, 60));
    for (const pid_t pid : ProcessesWith({folder_.path(), "quern"})) kill(pid, SIGKILL);
    run.Wait();
  }
  ASSERT_TRUE(Eventually([&] { return ProcessesWith({folder_.path(), "quern"}).empty(); }));
  ASSERT_TRUE(RemoveTree(folder_.File("run/replay")).ok());
  Good({"restore", "--from", "copy", "--to", "run/replay"});
  const Ended resumed = QuernProcess(folder_, {"resume", "run"}).Wait(std::chrono::seconds(60));
  EXPECT_EQ(resumed.code, 100) << resumed.err;
  EXPECT_NE(resumed.err.find("or a copy that was made before them; put back a newer one"), std::string::npos)
      << resumed.err;
}

// Retention takes generated records, and of those none that the table is made of.
TEST_F(StoreCommands, RetentionWhileAJobRuns) {
  const std::vector<std::string> job = {"method=filtered_sft",
                                        "compare=[]",
                                        "online.rounds=12",
                                        "online.episodes=200",
                                        "filtered_sft.samples_per_insert=1",
                                        "online.filtered_sft.max_steps=8"};
  std::vector<std::string> pruning = job;
  pruning.insert(pruning.end(), {"replay.max_bytes=100000", "replay.prune_every_s=0.1"});
  const Ended ended = QuernProcess(folder_, RunArguments(folder_, pruning)).Wait(std::chrono::seconds(120));
  ASSERT_EQ(ended.code, 0) << ended.err;
  const Json pruned = Json::parse(*ReadFile(folder_.File("run/result.json")))["table"];
  const QuernProcess::Folder other;
  const Ended whole = QuernProcess(other, RunArguments(other, job)).Wait(std::chrono::seconds(120));
  ASSERT_EQ(whole.code, 0) << whole.err;
  const Json kept = Json::parse(*ReadFile(other.File("run/result.json")))["table"];
  ASSERT_EQ(pruned.size(), kept.size());
  for (size_t i = 0; i < kept.size(); ++i) {
    EXPECT_EQ(pruned[i]["policy"], kept[i]["policy"]);
    EXPECT_EQ(pruned[i]["episodes"], kept[i]["episodes"]);
  }
  EXPECT_EQ(Count({"--source", "real", "--tag", "offline"}), 120);
  EXPECT_LT(Count({"--tag", "online"}), 2400);
  EXPECT_GE(Count({"--tag", "online"}), 400) << "what a stage may be training on stays: of max_staleness + 2 rounds";
  Good({"verify", "--store", "run"});
  // By hand: real data and what is asked for stays, unless told.
  const int evaluations = Count({"--tag", "eval", "--source", "generated"});
  EXPECT_GT(evaluations, 0);
  const std::vector<std::string> prune = {"prune",      "--store", "run", "--max-age", "0s",
                                          "--keep-tag", "eval",    "-o",  "json"};
  std::vector<std::string> dry = prune;
  dry.push_back("--dry-run");
  const int online = Count({"--tag", "online"});
  EXPECT_EQ(Json::parse(Good(dry, 1))["records"], online);
  EXPECT_EQ(Count({"--tag", "online"}), online);
  EXPECT_EQ(Json::parse(Good(prune, 1))["records"], online);
  EXPECT_EQ(Count({"--source", "generated"}), evaluations);
  EXPECT_EQ(Count({"--tag", "offline"}), 120);
  Good({"prune", "--store", "run", "--max-age", "0s", "--real"});
  EXPECT_EQ(Count({}), 0);
  Good({"verify", "--store", "run"});
}

TEST_F(StoreCommands, EveryDamageIsFound) {
  const Ended made = QuernProcess(folder_, RunArguments(folder_, {"online.rounds=0", "compare=[]", "qsft.max_steps=1"}))
                         .Wait(std::chrono::seconds(60));
  ASSERT_EQ(made.code, 0) << made.err;
  const std::string store = folder_.File("run/replay"), damaged = folder_.File("damaged");
  const auto expect_found = [&](const std::string& what, const std::string& name,
                                const std::function<void(std::string&)>& damage) {
    ASSERT_TRUE(RemoveTree(damaged).ok());
    std::error_code error;
    std::filesystem::copy(store, damaged, error);
    ASSERT_FALSE(error) << error.message();
    const std::string path = JoinPath(damaged, name);
    std::string bytes = *ReadFile(path);
    damage(bytes);
    ASSERT_TRUE(bytes.empty() ? RemoveTree(path).ok() : WriteFileAtomic(path, bytes).ok());
    const Ended ended = Replay({"verify", "--store", "damaged", "-o", "json"});
    EXPECT_EQ(ended.code, 1) << what << "\n" << ended.out << ended.err;
    const Json found = Json::parse(ended.out, nullptr, false);
    EXPECT_TRUE(found.is_object() && !found["problems"].empty()) << what << "\n" << ended.out;
    EXPECT_GE(CountLines(ended.err), found["problems"].size()) << what << "\n" << ended.err;
    EXPECT_NE(ended.err.find("damaged"), std::string::npos) << what << "\n" << ended.err;
  };
  const auto flip = [](double at) {
    return [at](std::string& bytes) {
      char& byte = bytes[static_cast<size_t>(at * static_cast<double>(bytes.size() - 1))];
      byte = static_cast<char>(byte ^ 0x20);
    };
  };
  const auto remove = [](std::string& bytes) { bytes.clear(); };
  const auto cut = [](std::string& bytes) { bytes.resize(bytes.size() - 10); };
  int kinds = 0;
  const auto names = *ListDirectory(store);
  for (const std::string& name : names) {
    const bool rocks = name == "CURRENT" || name.starts_with("MANIFEST-");
    if (!name.ends_with(".data") && !name.ends_with(".table") && !rocks) continue;
    ++kinds;
    // A file of rows that is not there may never have been written.
    if (!name.ends_with(".table")) expect_found("removed " + name, name, remove);
    if (name == "CURRENT") continue;
    for (const double at : {0.0, 0.3, 0.7, 1.0}) expect_found(StrCat("flipped at ", at, " of ", name), name, flip(at));
    if (!rocks) expect_found("cut " + name, name, cut);
  }
  EXPECT_GE(kinds, 4);
  Good({"verify", "--store", "run"});
  // A damaged copy is not restored.
  const Ended refused = Replay({"restore", "--from", "damaged", "--to", "restored"});
  EXPECT_EQ(refused.code, 1);
  EXPECT_FALSE(PathExists(folder_.File("restored")));
}

TEST_F(StoreCommands, ImportOfStandardInput) {
  const std::string rows =
      "{\"prompt\": \"2+2=\", \"completion\": \"4\", \"reward\": 1}\n"
      "{\"prompt\": \"3+3=\", \"completion\": \"6\", \"reward\": 1}\n";
  const auto import = [&](const std::string& text) {
    EXPECT_TRUE(WriteFileAtomic(folder_.File("rows"), text).ok());
    const std::string command = StrCat("cd ", folder_.path(), " && cat rows | ", QuernProcess::Binary(),
                                       " replay import --store piped --input - > out 2> err");
    const int code = WEXITSTATUS(std::system(command.c_str()));
    return StrCat(code, " ", *ReadFile(folder_.File("out")), *ReadFile(folder_.File("err")));
  };
  EXPECT_EQ(import(rows), "0 imported 2 of 2 rows (0 already there, 0 bad)\n");
  EXPECT_EQ(import(rows + "bad\n"),
            "1 imported 0 of 3 rows (2 already there, 1 bad)\nquern: -:3: not JSON: stopped at byte 1\n");
  EXPECT_EQ(import("54+87=141\n1+1=2\n"), "0 imported 2 of 2 rows (0 already there, 0 bad)\n") << "questions too";
  std::string many;  // more than is looked at to know the format
  for (int i = 0; i < 2000; ++i)
    many += StrCat("{\"prompt\": \"", i, " and a few more words, so that there is much of it=\", \"completion\": \"", i,
                   "\", \"reward\": 0}\n");
  ASSERT_GT(many.size(), 100'000u);
  EXPECT_EQ(import(many), "0 imported 2000 of 2000 rows (0 already there, 0 bad)\n");
  EXPECT_EQ(Good({"query", "--store", "piped", "--prompt", "2+2=", "--count"}), "1\n");
  const Ended folder = Replay({"import", "--store", "piped", "--input", "."});
  EXPECT_EQ(folder.code, 1);
  EXPECT_EQ(CountLines(folder.err), 1u) << folder.err;
}

TEST_F(StoreCommands, BadInputIsOneLine) {
  const auto expect = [&](const std::vector<std::string>& arguments, int code, const std::string& text) {
    const Ended ended = Replay(arguments);
    EXPECT_EQ(ended.code, code) << ended.err;
    EXPECT_EQ(ended.out, "");
    EXPECT_EQ(CountLines(ended.err), 1u) << ended.err;
    EXPECT_TRUE(ended.err.starts_with("quern: ")) << ended.err;
    EXPECT_NE(ended.err.find(text), std::string::npos) << ended.err;
  };
  expect({"stats", "--store", "nowhere"}, 1, "nowhere: no replay store there");
  expect({"query", "--store", "s", "--source", "people"}, 2, "--source: people not in {real,generated}");
  expect({"query", "--store", "s", "--version", "new"}, 2, "--version: must be A..B");
  expect({"query", "--store", "s", "--depth", "3..1"}, 2, "--depth: must be A..B");
  expect({"query", "--store", "s", "--min-return", "nan"}, 2, "--min-return: must be a number, not 'nan'");
  expect({"sample", "--store", "s", "--selector", "lifo"}, 2, "--selector: lifo not in");
  expect({"sample", "--store", "s", "--top-fraction", "2"}, 2, "--top-fraction: ");
  expect({"stats", "--store", "tcp://127.0.0.1:1"}, 1, "give --keys as well");
  expect({"verify", "--store", "ipc:///nowhere/s.sock"}, 1, "needs the store's directory");
  expect({"restore", "--from", "nowhere", "--to", "x"}, 1, "nowhere: no replay store there");
  expect({"prune", "--store", "s"}, 2, "give --max-bytes, --max-age or both");
  expect({"prune", "--store", "s", "--max-bytes", "much"}, 2, "--max-bytes 'much': expected as 10GiB");
}

// Training and play would wait for each other, or nobody plays at all: said before anything starts.
TEST_F(StoreCommands, ARateLimiterThatWouldStarveIsRefused) {
  const auto refused = [&](std::vector<std::string> job, const std::string& text) {
    const Ended ended = QuernProcess::Run(folder_, RunArguments(folder_, std::move(job)));
    EXPECT_EQ(ended.code, 1) << ended.err;
    EXPECT_EQ(CountLines(ended.err), 1u) << ended.err;
    EXPECT_NE(ended.err.find(text), std::string::npos) << ended.err;
    EXPECT_FALSE(PathExists(folder_.File("run")));
  };
  refused({"sft.min_records=121"}, "'sft.min_records' starves a stage: sft needs 121 records, but no more than 120");
  refused({"sft.samples_per_insert=0.25"},
          "'sft.samples_per_insert' starves a stage: sft needs 192 records, but no more than 120");
  refused({"sft.selector=fifo", "replay.max_bytes=1000000"}, "'sft.selector' fifo needs a window");
  // With imported data it is known at the stage's start.
  std::string rows;
  for (int i = 0; i < 12; ++i)
    rows += StrCat(
        R"({"messages": [{"role": "user", "content": "Wordle:\n"}, {"role": "assistant", "content": "crane"}], )",
        R"("rewards": [0], "done": true, "n": )", i, "}\n");
  ASSERT_TRUE(WriteFileAtomic(folder_.File("data.jsonl"), rows).ok());
  const Ended ended = QuernProcess::Run(
      folder_, RunArguments(folder_, {"data.collect=[]", "data.import=[" + folder_.File("data.jsonl") + "]",
                                      "online.rounds=0", "sft.min_records=13"}));
  EXPECT_EQ(ended.code, 100);
  EXPECT_NE(ended.err.find("stage sft: its rate limiter needs 13 records, but no more than 12"), std::string::npos)
      << ended.err;
}

// Each record once: a stage that wants more fails before its first step.
TEST_F(StoreCommands, FifoGivesNoRecordTwice) {
  const auto run = [&](const std::string& directory, const std::string& steps) {
    std::vector<std::string> job = RunArguments(
        folder_, {"method=sft", "compare=[]", "online.rounds=0", "sft.selector=fifo", "sft.max_steps=" + steps});
    job[2] = "output_dir=" + folder_.File(directory);
    return QuernProcess::Run(folder_, job);
  };
  EXPECT_EQ(run("enough", "15").code, 0) << "15 steps of 8 take 120 records";
  const Ended ended = run("run", "16");
  EXPECT_EQ(ended.code, 100);
  EXPECT_NE(ended.err.find("all 120 records up to number"), std::string::npos) << ended.err;
  const Result<std::string> metrics = ReadFile(folder_.File("run/metrics.jsonl"));
  EXPECT_TRUE(!metrics.ok() || metrics->find("\"stage\":\"sft\",\"step\"") == std::string::npos) << *metrics;
}

// Training waits for play, visibly, and goes on.
TEST_F(StoreCommands, ARateLimiterHoldsTrainingBack) {
  const Ended ended =
      QuernProcess(folder_, RunArguments(folder_, {"method=filtered_sft", "compare=[]", "online.rounds=2",
                                                   "data.collect.0.episodes=600", "online.episodes=4000",
                                                   "online.filtered_sft.max_steps=12", "filtered_sft.max_steps=1",
                                                   "filtered_sft.batch_size=64", "filtered_sft.samples_per_insert=0.1",
                                                   "online.max_staleness=1"}))
          .Wait(std::chrono::seconds(120));
  ASSERT_EQ(ended.code, 0) << ended.err;
  const Result<std::string> events = ReadFile(folder_.File("run/events.jsonl"));
  ASSERT_TRUE(events.ok()) << "no step waited";
  EXPECT_NE(events->find("online-1:filtered_sft: step "), std::string::npos) << *events;
  EXPECT_NE(events->find("were stored (samples_per_insert 0.1, min_records 0)"), std::string::npos) << *events;
}

}  // namespace
}  // namespace quern
