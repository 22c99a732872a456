// Whole jobs and commands with `device: cuda`: through the binary whose GPU is the emulator (quern_emulated), and
// through the real one where there is a GPU.
#include <map>
#include <nlohmann/json.hpp>

#include "tests/e2e/tiny_job.h"

namespace quern {
namespace {

using Json = nlohmann::json;

// SFT, Q-SFT with its target model, an online round; small, because emulation is slow.
std::vector<std::string> JobArguments(const QuernProcess::Folder& folder, const std::vector<std::string>& overrides) {
  std::vector<std::string> all = {
      "device=cuda",
      "precision=bf16",
      "compare=[sft]",
      "actors=1",
      "data.collect.0.episodes=12",
      "data.collect.1.episodes=12",
      "sft={max_steps: 3, batch_size: 4}",
      "qsft={max_steps: 4, batch_size: 4}",
      "online={rounds: 1, episodes: 4, max_staleness: 0, sft: {max_steps: 2}, qsft: {max_steps: 2}}",
      "evaluate.episodes=4",
      "rollout.task_episodes=4",
      "checkpoint.every_steps=1"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  std::vector<std::string> arguments = RunArguments(folder, all);
  arguments.push_back("--in-process");
  return arguments;
}

// Content hash of what each stage published.
std::map<std::string, std::string> Weights(const QuernProcess::Folder& folder) {
  std::map<std::string, std::string> weights;
  for (const std::string& line : StrSplit(*ReadFile(folder.File("run/journal.jsonl")), '\n')) {
    const Json event = Json::parse(line, nullptr, false);
    if (event.is_object() && event["event"] == "published") weights[event["stage"]] = event["weights"]["content_hash"];
  }
  return weights;
}

class GpuJobTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto doctor = QuernProcess::Run(folder_, {"doctor", "--dir", folder_.path()});
    if (doctor.out.find("compute capability") == std::string::npos) GTEST_SKIP() << doctor.out;
  }
  QuernProcess::Ended Quern(const std::vector<std::string>& arguments) {
    return QuernProcess(folder_, arguments).Wait(std::chrono::seconds(300));
  }
  void ExpectOneLine(const QuernProcess::Ended& ended, const std::string& text) {
    EXPECT_EQ(ended.code, 1) << ended.err;
    EXPECT_EQ(CountLines(ended.err), 1u) << ended.err;
    EXPECT_NE(ended.err.find(text), std::string::npos) << ended.err;
  }

  QuernProcess::Folder folder_;
};

TEST_F(GpuJobTest, AJobThatIsKilledAndResumedEndsWithTheWeightsOfOneThatIsNot) {
  const auto ended = Quern(JobArguments(folder_, {}));
  ASSERT_EQ(ended.code, 0) << ended.err;
  EXPECT_NE(ended.err.find("the job computes on GPU 0"), std::string::npos) << ended.err;
  const Json result = Json::parse(*ReadFile(folder_.File("run/result.json")));
  EXPECT_EQ(result["state"], "succeeded");
  EXPECT_EQ(result["table"].size(), 5u) << result["table"];
  // Actors and the learner agree to the bit.
  bool compared = false;
  for (const Json& stage : result["stages"]) {
    if (!stage["metrics"].contains("rollout_logprob_diff")) continue;
    compared = true;
    EXPECT_EQ(stage["metrics"]["rollout_logprob_diff"], 0) << stage;
    EXPECT_GT(stage["metrics"]["rollout_logprobs_checked"], 10);
  }
  EXPECT_TRUE(compared);

  const QuernProcess::Folder other;
  QuernProcess killed(other, JobArguments(other, {}));
  ASSERT_TRUE(Eventually([&] { return PathExists(other.File("run/checkpoints/q_sft/step-2")); }, 200));
  killed.Signal(SIGKILL);
  killed.Wait();
  EXPECT_LT(Weights(other).size(), Weights(folder_).size());
  const auto resumed = QuernProcess(other, {"resume", "run", "--in-process"}).Wait(std::chrono::seconds(300));
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(Weights(other), Weights(folder_));
  EXPECT_EQ(Weights(folder_).size(), 4u);
}

// Each process takes the next GPU; only the emulator has as many as one likes.
TEST_F(GpuJobTest, Fp8WithSmallMomentsInProcesses) {
  setenv("QUERN_EMULATED_GPUS", "3", 1);
  const auto doctor = Quern({"doctor", "--dir", folder_.path()});
  const bool three = doctor.out.find("GPU emulated") != std::string::npos;
  std::vector<std::string> arguments =
      JobArguments(folder_, {"precision=fp8", "optimizer.moments=fp8", "actors=2", "method=sft", "compare=[]",
                             "qsft={}", "online={rounds: 1, episodes: 4, max_staleness: 0, sft: {max_steps: 2}}"});
  arguments.pop_back();
  if (three) arguments.push_back("device=cuda:1");
  const auto ended = Quern(arguments);
  unsetenv("QUERN_EMULATED_GPUS");
  ASSERT_EQ(ended.code, 0) << ended.err;
  const std::vector<std::pair<std::string, int>> processes = {{"learner-0", 1}, {"actor-0", 2}, {"actor-1", 0}};
  for (const auto& [process, number] : processes) {
    const std::string log = *ReadFile(folder_.File(StrCat("run/logs/", process, ".0.log")));
    EXPECT_NE(log.find(three ? StrCat("computing on GPU ", number) : "computing on GPU "), std::string::npos) << log;
  }
  const Json result = Json::parse(*ReadFile(folder_.File("run/result.json")));
  bool compared = false;
  for (const Json& stage : result["stages"]) {
    if (!stage["metrics"].contains("rollout_logprob_diff")) continue;
    compared = true;
    EXPECT_EQ(stage["metrics"]["rollout_logprob_diff"], 0) << stage;
  }
  EXPECT_TRUE(compared);
}

// The stand-in for NCCL knows ranks that are threads of one process, and only the emulator has two GPUs.
TEST_F(GpuJobTest, TwoRanksOnTwoGpusTrainWhatOneDoes) {
  const char* const nccl = getenv("QUERN_FAKE_NCCL");
  if (nccl == nullptr) GTEST_SKIP() << "needs the stand-in for NCCL";
  setenv("QUERN_EMULATED_GPUS", "2", 1);
  const auto train = [&](const QuernProcess::Folder& folder, int ranks, int shards) {
    return QuernProcess(folder,
                        JobArguments(folder, {StrCat("learner.ranks=", ranks), StrCat("learner.shards=", shards),
                                              "method=sft", "compare=[]", "qsft={}", "online.rounds=0"}))
        .Wait(std::chrono::seconds(300));
  };
  const QuernProcess::Folder alone, too_many;
  ASSERT_EQ(train(alone, 1, 2).code, 0);
  ExpectOneLine(train(too_many, 4, 4), "learner.ranks 4: each needs a GPU of its own, and there are 2");
  setenv("LD_LIBRARY_PATH", nccl, 1);
  const auto together = train(folder_, 2, 2);
  unsetenv("LD_LIBRARY_PATH");
  unsetenv("QUERN_EMULATED_GPUS");
  ASSERT_EQ(together.code, 0) << together.err;
  EXPECT_EQ(Weights(folder_), Weights(alone));
  EXPECT_GE(Weights(alone).size(), 1u);
}

TEST_F(GpuJobTest, CommandsTakeTheGpuAndSayWhatItCannot) {
  ASSERT_EQ(
      QuernProcess::Run(folder_, RunArguments(folder_, {"device=cpu", "compare=[]", "method=sft", "sft.max_steps=1",
                                                        "online.rounds=0", "evaluate.episodes=0"}))
          .code,
      0);
  const std::string model = folder_.File("run/model");
  const std::vector<std::string> generate = {"generate",     "--model", model,          "--token-ids", "1,2,3",
                                             "--max-tokens", "5",       "--ignore-eos", "-o",          "json"};
  const auto with = [](std::vector<std::string> arguments, const std::vector<std::string>& more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  };
  const auto generated = Quern(generate);  // auto
  ASSERT_EQ(generated.code, 0) << generated.err;
  EXPECT_NE(generated.err.find("computing on GPU 0"), std::string::npos) << generated.err;
  EXPECT_EQ(CountLines(generated.err), 1u) << generated.err;
  Json line = Json::parse(generated.out);
  ASSERT_EQ(line["token_ids"].size(), 5u);

  // The same numbers from a score of the whole text, near those of the CPU.
  Json ids = line["prompt_token_ids"];
  ids.insert(ids.end(), line["token_ids"].begin(), line["token_ids"].end());
  ASSERT_TRUE(WriteFileAtomic(folder_.File("texts.jsonl"), Json({{"token_ids", ids}}).dump() + "\n").ok());
  const std::vector<std::string> score = {"score", "--model", model, "--input", folder_.File("texts.jsonl")};
  const auto scored = Quern(with(score, {"--device", "cuda:0"}));
  ASSERT_EQ(scored.code, 0) << scored.err;
  const Json on_gpu = Json::parse(scored.out)["logprobs"];
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(on_gpu[i + 3], line["logprobs"][i]);
  const auto host = Quern(with(score, {"--device", "cpu"}));
  const Json on_cpu = Json::parse(host.out)["logprobs"];
  EXPECT_EQ(host.err, "");
  for (size_t i = 1; i < ids.size(); ++i) EXPECT_NEAR(on_gpu[i].get<double>(), on_cpu[i].get<double>(), 1e-3);

  ExpectOneLine(Quern(with(generate, {"--device", "cuda:99"})), "device cuda:99: the last GPU is cuda:");
  // A cache that keeps everything.
  const auto decoded = Quern(with(score, {"--device", "cuda", "--prompt-tokens", "2"}));
  ASSERT_EQ(decoded.code, 0) << decoded.err;
  EXPECT_EQ(Json::parse(decoded.out)["logprobs"], on_gpu);
  const auto compressed = Quern(with(generate, {"--key-channels", "4", "--device", "cuda"}));
  EXPECT_EQ(compressed.code, 0) << compressed.err;
  EXPECT_EQ(Json::parse(compressed.out)["token_ids"], line["token_ids"]) << "all of it is recent";

  const auto evaluated = Quern({"eval", "--run", "run", "--policy", "sft", "--episodes", "2", "--device", "cuda"});
  EXPECT_EQ(evaluated.code, 0) << evaluated.err;
}

// Through the real binary where there is none.
TEST(NoGpu, CudaIsRefusedInOneLine) {
  const QuernProcess::Folder folder;
  const auto doctor = QuernProcess::Run(folder, {"doctor", "--dir", folder.path()});
  if (doctor.out.find("no GPU: ") == std::string::npos) GTEST_SKIP() << doctor.out;
  const std::string why = doctor.out.substr(doctor.out.find("no GPU: "));
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"run", WriteTinyJob(folder), "device=cuda"},
        std::vector<std::string>{"run", WriteTinyJob(folder), "device=cuda:1", "--dry-run"}}) {
    const auto ended = QuernProcess::Run(folder, arguments);
    EXPECT_EQ(ended.code, 1);
    EXPECT_EQ(ended.out, "");
    EXPECT_EQ(CountLines(ended.err), 1u) << ended.err;
    EXPECT_NE(ended.err.find(why.substr(0, why.find('\n'))), std::string::npos) << ended.err << why;
  }
  EXPECT_EQ(QuernProcess::Run(folder, {"run", WriteTinyJob(folder), "device=tpu"}).code, 1);
  EXPECT_EQ(QuernProcess::Run(folder, {"generate", "--model", "m", "--prompt", "a", "--device", "tpu"}).code, 2);
  EXPECT_EQ(QuernProcess::Run(folder, RunArguments(folder, {"device=auto", "--dry-run"})).code, 0);
}

}  // namespace
}  // namespace quern
