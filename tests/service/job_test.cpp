#include "service/job.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"

namespace quern {
namespace {

constexpr char kMinimal[] =
    "name: small\n"
    "model:\n"
    "  config: {hidden_size: 32, num_attention_heads: 4}\n"
    "environment: {name: wordle, words: words.txt}\n"
    "data:\n"
    "  collect:\n"
    "    - {player: random, episodes: 10, noise: 0.3}\n"
    "compare: [sft, filtered_sft]\n"
    "require:\n"
    "  - {better: q_sft, than: sft}\n";

Result<Job> Parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return ParseJob(text, "jobs/small.yaml", "/jobs", overrides);
}

std::string ErrorOf(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const Result<Job> job = Parse(text, overrides);
  return job.ok() ? "no error" : job.status().message();
}

TEST(Job, FillsDefaultsAndReadsValues) {
  const Result<Job> job = Parse(kMinimal);
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  EXPECT_EQ(job->name, "small");
  EXPECT_EQ(job->model_config.hidden_size, 32);
  EXPECT_EQ(job->environment_options.at("words"), "words.txt");
  ASSERT_EQ(job->collect.size(), 1u);
  EXPECT_EQ(job->collect[0].options.at("noise"), "0.3");
  EXPECT_EQ(job->collect[0].options.size(), 1u);
  EXPECT_EQ(job->qsft.gamma_turn, 0.99);
  EXPECT_EQ(job->require[0].by_standard_errors, 2);
}

TEST(Job, ResolvedJobReadsBackTheSame) {
  const Result<Job> job = Parse(kMinimal, {"qsft.beta=4", "seed=7", "data.import=[a.jsonl]"});
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  const std::string json = JobToJson(*job);
  const Result<Job> again = ParseJob(json, "job.json", "/elsewhere", {});
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_EQ(JobToJson(*again), json);
  EXPECT_EQ(again->qsft.beta, 4);
  EXPECT_EQ(again->seed, 7u);
}

TEST(Job, OverridesReachEveryLevel) {
  const Result<Job> job =
      Parse(kMinimal, {"data.collect.0.episodes=99", "environment.words=other.txt", "sft.max_steps=3", "q_sft.beta=2.5",
                       "online.q_sft.max_steps=8", "compare=[sft]", "name=a=b"});
  EXPECT_EQ(job.ok(), false);  // the name is not allowed
  const Result<Job> good =
      Parse(kMinimal, {"data.collect.0.episodes=99", "environment.words=other.txt", "sft.max_steps=3", "q_sft.beta=2.5",
                       "online.q_sft.max_steps=8", "compare=[sft]"});
  ASSERT_TRUE(good.ok()) << good.status().ToString();
  EXPECT_EQ(good->collect[0].episodes, 99);
  EXPECT_EQ(good->environment_options.at("words"), "other.txt");
  EXPECT_EQ(good->sft.max_steps, 3);
  EXPECT_EQ(good->qsft.beta, 2.5);
  EXPECT_EQ(good->online.qsft.max_steps, 8);
  EXPECT_EQ(good->compare, std::vector<std::string>{"sft"});
}

TEST(Job, CompressionIsOffUnlessAskedFor) {
  const Result<Job> plain = Parse(kMinimal);
  ASSERT_TRUE(plain.ok());
  EXPECT_TRUE(plain->compression.off());
  const Result<Job> job = Parse(kMinimal, {"compression.budgets=[64,32]", "compression.key_channels=20"});
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  EXPECT_EQ(job->compression.budgets, (std::vector<int64_t>{64, 32}));
  EXPECT_EQ(job->compression.key_channels, 20);
  EXPECT_NE(ErrorOf(kMinimal, {"compression.budgets=[64,1]"}).find("compression.budgets"), std::string::npos);
}

TEST(Job, UnknownKeyNamesLineAndNearest) {
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "sft: {learnin_rate: 1}\n"),
            "jobs/small.yaml:11: unknown key 'sft.learnin_rate'; did you mean 'sft.learning_rate'?");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "evaluat:\n  episodes: 3\n"),
            "jobs/small.yaml:11: unknown key 'evaluat'; did you mean 'evaluate'?");
  EXPECT_EQ(ErrorOf(kMinimal, {"qsft.bta=3"}), "'qsft.bta=3': unknown key 'qsft.bta'; did you mean 'qsft.beta'?");
}

TEST(Job, AnErrorIsOneLineWhateverItQuotes) {
  for (const char* text : {"name: \"\\\n\"", "\"a\\nb\": 1", "seed: \"1\\n2\"", "name: x\n\"model\\r\": {"}) {
    const auto job = ParseJob(text, "job.yaml", "/", {});
    ASSERT_FALSE(job.ok()) << text;
    EXPECT_EQ(job.status().message().find_first_of("\r\n"), std::string::npos) << job.status().message();
  }
}

TEST(Job, WrongTypeNamesLineKeyAndValue) {
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "sft:\n  max_steps: many\n"),
            "jobs/small.yaml:12: 'sft.max_steps' must be a whole number, not 'many'");
  EXPECT_EQ(ErrorOf(kMinimal, {"seed=-1"}), "'seed=-1': 'seed' must be a whole number, 0 or more, not '-1'");
  EXPECT_EQ(ErrorOf(kMinimal, {"sft=3"}), "'sft=3': 'sft' must be a section, not '3'");
  EXPECT_EQ(ErrorOf(kMinimal, {"qsft.beta=.inf"}), "'qsft.beta=.inf': 'qsft.beta' must be a number, not '.inf'");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "sampling: [1]\n"),
            "jobs/small.yaml:11: 'sampling' must be a section, not a list");
  EXPECT_EQ(ErrorOf(std::string(kMinimal) + "seed:\n"), "jobs/small.yaml:11: 'seed' has no value");
}

TEST(Job, ImpossibleValuesAreRefused) {
  EXPECT_EQ(ErrorOf(kMinimal, {"precision=fp17"}),
            "'precision=fp17': 'precision' must be one of bf16, fp32, fp8, fp8_delayed, fp8_delayed_gaudi, not 'fp17'");
  EXPECT_EQ(ErrorOf(kMinimal, {"data.collect.0.episodes=0"}),
            "'data.collect.0.episodes=0': 'data.collect.0.episodes' must be between 1 and 1e+09, not 0");
  EXPECT_EQ(ErrorOf(kMinimal, {"require.0.than=nobody"}).substr(0, 75),
            "'require.0.than=nobody': 'require.0.than' must be one of sft, filtered_sft,");
  EXPECT_NE(ErrorOf("environment: {name: wordle}\n").find("'model_name_or_path' is missing"), std::string::npos);
  EXPECT_NE(ErrorOf("").find("'model_name_or_path' is missing"), std::string::npos);
}

TEST(Job, MixturesAreReadAndCheckedWhereverTheyStand) {
  const Result<Job> job =
      Parse(kMinimal, {"mixture={policy: controller, c2: {unverified: 0.4}, probe_sizes: [64, 128], sigma2d: 3}",
                       "mixture.sigma2d=30"});
  ASSERT_TRUE(job.ok()) << job.status().ToString();
  EXPECT_EQ(job->mixture.c2.unverified, 0.4);
  EXPECT_LT(job->mixture.c2.hinted, 0);
  EXPECT_EQ(job->mixture.probe_sizes, (std::vector<int64_t>{64, 128}));
  const Result<Job> again = ParseJob(JobToJson(*job), "again.json", "/jobs", {});
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_EQ(JobToJson(*again).substr(50), JobToJson(*job).substr(50));
  EXPECT_EQ(ErrorOf(kMinimal, {"mixture.share=2"}),
            "'mixture.share=2': 'mixture.share' must be between 0 and 1, not 2");
  EXPECT_EQ(ErrorOf(kMinimal, {"mixture.probe_sizes=[some]"}),
            "'mixture.probe_sizes=[some]': 'mixture.probe_sizes' must be a list of whole numbers, not 'some'");
  EXPECT_NE(ErrorOf(kMinimal, {"mixture.policy=scheduled"}).find("'mixture.schedule' is empty"), std::string::npos);
  EXPECT_NE(ErrorOf(kMinimal, {"mixture={policy: scheduled, schedule: [{at: 0.5, share: 0}, {at: 0.2, share: 1}]}"})
                .find("'mixture.schedule.1.at' must be more than the one before"),
            std::string::npos);
  EXPECT_NE(ErrorOf(kMinimal, {"collapse={real_records: [10], rules: [{policy: fixed}]}"}).find("goes with method sft"),
            std::string::npos);
  EXPECT_NE(ErrorOf(kMinimal, {"method=sft", "compare=[]", "require=[]", "data.heldout=[{player: random, episodes: 9}]",
                               "collapse={real_records: [10], rules: [{policy: fixed}, {policy: fixed}]}"})
                .find("is there twice: fixed_0.5"),
            std::string::npos);
}

TEST(Job, BrokenTextIsOneLine) {
  for (const char* text :
       {"a: [1\n", "- 1\n- 2\n", "just words", "seed: 1\nseed: 2\n", "\t\tx", "a: &x [*x]", "{", "%"}) {
    const std::string error = ErrorOf(text);
    EXPECT_NE(error, "no error") << text;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    EXPECT_EQ(error.substr(0, 16), "jobs/small.yaml:") << error;
  }
  EXPECT_EQ(ErrorOf(kMinimal, {"=3"}), "'=3': an override is written key.path=value");
  EXPECT_EQ(ErrorOf(kMinimal, {"data.collect.7.episodes=3"}),
            "'data.collect.7.episodes=3': the list has 1 entries, counted from 0");
}

TEST(Job, PathsAreAnchoredWhereTheyWereWritten) {
  const Result<Job> from_file =
      Parse("model_name_or_path: ../models/a\nenvironment: {name: x}\ndata: {import: [d.jsonl]}\n");
  ASSERT_TRUE(from_file.ok()) << from_file.status().ToString();
  EXPECT_EQ(from_file->model_name_or_path, "/models/a");
  EXPECT_EQ(from_file->import_files[0], "/jobs/d.jsonl");
  const Result<Job> typed = Parse(kMinimal, {"model_name_or_path=models/a", "data.import=[d.jsonl]"});
  ASSERT_TRUE(typed.ok()) << typed.status().ToString();
  EXPECT_EQ(typed->model_name_or_path, std::filesystem::current_path() / "models/a");
  EXPECT_EQ(typed->import_files[0], std::filesystem::current_path() / "d.jsonl");
}

TEST(Job, MissingFileIsOneLine) {
  const Result<Job> job = LoadJob("/nowhere/job.yaml", {});
  ASSERT_FALSE(job.ok());
  EXPECT_EQ(job.status().message(), "/nowhere/job.yaml: No such file or directory");
}

}  // namespace
}  // namespace quern
