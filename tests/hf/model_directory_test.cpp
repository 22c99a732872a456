#include "model/hf/model_directory.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

std::vector<std::string> RealModels() {
  return {"stories260k/hf", "digit-completion/model", "tiny-checkpoints/tiny_llama3", "tiny-checkpoints/tiny_mistral",
          "tiny-checkpoints/tiny_qwen3"};
}

TEST(ModelDirectory, RealModelsLoad) {
  QUERN_NEED_SHARED_DATA("stories260k");
  for (const std::string& name : RealModels()) {
    const std::string dir = SharedData(name);
    const auto report = InspectModelDirectory(dir);
    ASSERT_TRUE(report.ok()) << report.status().ToString();
    EXPECT_TRUE(report->unsupported.empty()) << name << ": " << report->unsupported[0];
    EXPECT_TRUE(CheckSupported(dir).ok());
    ASSERT_TRUE(report->config.has_value());
    EXPECT_EQ(report->parameters, ParameterLayout(*report->config).size()) << name;
  }
  const auto llama3 = LoadModelConfig(SharedData("tiny-checkpoints/tiny_llama3"));
  EXPECT_EQ(llama3->rope_scaling.type, RopeScaling::Type::kLlama3);
  EXPECT_EQ(LoadModelConfig(SharedData("tiny-checkpoints/tiny_mistral"))->sliding_window, 8);
  EXPECT_TRUE(LoadModelConfig(SharedData("tiny-checkpoints/tiny_qwen3"))->qk_norm);
  EXPECT_TRUE(LoadModelConfig(SharedData("stories260k/hf"))->tie_word_embeddings);
}

TEST(ModelDirectory, QuantisedModelsAreRefusedWithTheReason) {
  QUERN_NEED_SHARED_DATA("tiny-checkpoints");
  for (const char* name : {"tiny_llama3_tied", "tiny_qwen3_sharded", "tiny_qwen3_tied"}) {
    const std::string dir = SharedData(std::string("tiny-checkpoints/") + name);
    const Status status = CheckSupported(dir);
    EXPECT_EQ(status.code(), StatusCode::kUnimplemented);
    EXPECT_NE(status.message().find("quantised by MLX to 4 bits"), std::string::npos) << status.ToString();
    EXPECT_FALSE(LoadModelConfig(dir).ok());
    const auto report = InspectModelDirectory(dir);
    ASSERT_TRUE(report.ok()) << report.status().ToString();
    EXPECT_GT(report->parameters_by_dtype.at("U32"), 0);
    EXPECT_EQ((*Checkpoint::Open(dir))->Find("model.embed_tokens.weight").status().code(), StatusCode::kUnimplemented);
  }
}

TEST(ModelDirectory, SavedModelLoadsWithIdenticalTensors) {
  QUERN_NEED_SHARED_DATA("stories260k");
  for (const std::string& name : RealModels()) {
    ScratchFolder folder;
    const std::string dir = SharedData(name), copy = folder.File("copy"), again = folder.File("again");
    const auto config = LoadModelConfig(dir);
    const auto source = Checkpoint::Open(dir);
    ASSERT_TRUE(source.ok()) << source.status().ToString();
    SaveOptions options;
    options.dtype = (*source)->Find("model.norm.weight")->dtype;
    options.source_dir = dir;
    ASSERT_TRUE(SaveModelDirectory(copy, *config, (*source)->Source(), options).ok());
    ASSERT_TRUE(CheckSupported(copy).ok()) << CheckSupported(copy).ToString();
    const auto saved = Checkpoint::Open(copy);
    ASSERT_TRUE(saved.ok());
    const ParameterLayout layout(*config);
    for (const ParameterInfo& info : layout.parameters()) {
      const TensorView a = *(*source)->Find(info.name), b = *(*saved)->Find(info.name);
      ASSERT_EQ(a.dtype, b.dtype);
      ASSERT_EQ(a.rows, b.rows);
      EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(a.rows * a.cols * DTypeSize(a.dtype))), 0) << info.name;
    }
    EXPECT_EQ(ModelConfigJson(*LoadModelConfig(copy), options.dtype), ModelConfigJson(*config, options.dtype));
    for (const char* file : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
      EXPECT_EQ(PathExists(JoinPath(copy, file)), PathExists(JoinPath(dir, file)));
    ASSERT_TRUE(SaveModelDirectory(again, *LoadModelConfig(copy), (*saved)->Source(), options).ok());
    for (const char* file : {"model.safetensors", "config.json"})
      EXPECT_EQ(*ReadFile(JoinPath(copy, file)), *ReadFile(JoinPath(again, file)));
  }
}

TEST(ModelDirectory, SaveRefusesMisshapenTensors) {
  ScratchFolder folder;
  ModelConfig config;
  config.vocab_size = 8;
  config.hidden_size = config.intermediate_size = config.head_dim = 4;
  config.layers = config.heads = config.kv_heads = 1;
  const Parameters parameters(config);
  Tensor wrong(DType::kF32, 4, 4);
  const auto source = [&](const std::string& name) -> Result<TensorView> {
    return name == "lm_head.weight" ? wrong.view() : parameters.View(name);
  };
  const Status status = SaveModelDirectory(folder.File("m"), config, source);
  EXPECT_NE(status.message().find("tensor lm_head.weight is [4, 4]"), std::string::npos) << status.ToString();
  EXPECT_FALSE(PathExists(folder.File("m/model.safetensors")));
}

TEST(GenerationConfig, ReadsListsAndFallsBackToTheModel) {
  ScratchFolder folder;
  ASSERT_TRUE(WriteFileAtomic(folder.File("config.json"), R"({"eos_token_id": 7})").ok());
  EXPECT_EQ(LoadGenerationConfig(folder.path())->eos_token_ids, (std::vector<int32_t>{7}));
  ASSERT_TRUE(WriteFileAtomic(folder.File("generation_config.json"),
                              R"({"eos_token_id":[1,2],"temperature":0.6,"top_p":0.9,"top_k":20,"do_sample":true,)"
                              R"("repetition_penalty":1.1,"max_new_tokens":64,"transformers_version":"4"})")
                  .ok());
  const auto config = LoadGenerationConfig(folder.path());
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->eos_token_ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(config->temperature, 0.6);
  EXPECT_EQ(config->top_k, 20);
  EXPECT_EQ(config->do_sample, true);
  EXPECT_EQ(config->max_new_tokens, 64);
  ASSERT_TRUE(WriteFileAtomic(folder.File("generation_config.json"), GenerationConfigJson(*config)).ok());
  EXPECT_EQ(GenerationConfigJson(*LoadGenerationConfig(folder.path())), GenerationConfigJson(*config));

  ASSERT_TRUE(WriteFileAtomic(folder.File("generation_config.json"), R"({"temperature":"hot"})").ok());
  const Status status = LoadGenerationConfig(folder.path()).status();
  EXPECT_NE(status.message().find("\"temperature\" must be a number"), std::string::npos);
}

}  // namespace
}  // namespace quern
