#include "model/hf/model_directory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/file.h"
#include "model/hf/safetensors.h"
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

TEST(ModelDirectory, ShardsHoldTheSameTensorsAsOneFile) {
  ScratchFolder folder;
  ModelConfig config;
  config.vocab_size = 64;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.head_dim = 8;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  Parameters parameters(config);
  parameters.Initialize(config, 5);
  const std::string dir = folder.File("m");
  const auto check = [&](size_t files) {
    const auto names = ListDirectory(dir);
    ASSERT_TRUE(names.ok());
    EXPECT_EQ(std::count_if(names->begin(), names->end(), [](const auto& n) { return n.ends_with(".safetensors"); }),
              static_cast<std::ptrdiff_t>(files));
    const auto saved = Checkpoint::Open(dir);
    ASSERT_TRUE(saved.ok()) << saved.status().ToString();
    EXPECT_TRUE((*saved)->CheckMatches(config).ok());
    const ParameterLayout layout(config);
    for (const ParameterInfo& info : layout.parameters()) {
      const TensorView a = parameters.View(info.name), b = *(*saved)->Find(info.name);
      ASSERT_EQ(b.dtype, DType::kF32);
      EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(4 * a.rows * a.cols)), 0) << info.name;
    }
  };
  SaveOptions options{.dtype = DType::kF32, .source_dir = {}, .generation = std::nullopt};
  ASSERT_TRUE(SaveModelDirectory(dir, config, parameters.Source(), options).ok());
  check(1);
  // An MLP matrix has 6 KiB, the embedding 8: both alone in a shard of 5,000 bytes.
  options.max_shard_bytes = 5000;
  ASSERT_TRUE(SaveModelDirectory(dir, config, parameters.Source(), options).ok());
  const auto index = nlohmann::json::parse(*ReadFile(JoinPath(dir, "model.safetensors.index.json")));
  EXPECT_EQ(index.at("metadata").at("total_size"), 4 * ParameterLayout(config).size());
  EXPECT_EQ(index.at("weight_map").size(), ParameterLayout(config).parameters().size());
  std::set<std::string> files;
  for (const auto& [name, file] : index.at("weight_map").items()) files.insert(file);
  EXPECT_GT(files.size(), 9u);
  check(files.size());
  for (const std::string& file : files) {
    const auto bytes = MappedFile::Open(JoinPath(dir, file));
    ASSERT_TRUE(bytes.ok());
    const auto header = ParseSafetensors(bytes->bytes(), file);
    ASSERT_TRUE(header.ok());
    int64_t sum = 0;
    for (const TensorInfo& tensor : header->tensors) sum += tensor.bytes();
    EXPECT_TRUE(sum <= 5000 || header->tensors.size() == 1) << file << " " << sum;
  }
}

TEST(ModelDirectory, SelectiveAttentionIsAddedToAModelTrainedWithout) {
  ScratchFolder folder;
  ModelConfig config;
  config.vocab_size = 8;
  config.hidden_size = config.intermediate_size = config.head_dim = 4;
  config.layers = 2;
  config.heads = config.kv_heads = 1;
  Parameters parameters(config);
  parameters.Initialize(config, 3);
  ASSERT_TRUE(SaveModelDirectory(folder.File("m"), config, parameters.Source()).ok());
  ASSERT_TRUE(AddSelectiveAttention(folder.File("m"), folder.File("s")).ok());
  const auto added = LoadModelConfig(folder.File("s"));
  ASSERT_TRUE(added.ok());
  EXPECT_TRUE(added->selective_attention && added->selection_gain);
  const auto before = Checkpoint::Open(folder.File("m")), after = Checkpoint::Open(folder.File("s"));
  ASSERT_TRUE((*after)->CheckMatches(*added).ok());
  EXPECT_EQ((*after)->tensors().size(), (*before)->tensors().size() + 2);
  for (const TensorInfo& tensor : (*before)->tensors()) {
    const TensorView a = *(*before)->Find(tensor.name), b = *(*after)->Find(tensor.name);
    ASSERT_EQ(a.dtype, b.dtype);
    EXPECT_EQ(std::memcmp(a.data, b.data, static_cast<size_t>(a.rows * a.cols * DTypeSize(a.dtype))), 0) << tensor.name;
  }
  for (int64_t layer = 0; layer < 2; ++layer) {
    EXPECT_EQ((*after)->Info(SelectionGainName(layer))->shape, std::vector<int64_t>{1});
    EXPECT_EQ(static_cast<float>(*(*after)->Find(SelectionGainName(layer))->Row<Bf16>(0)), 0);
  }
  const Status again = AddSelectiveAttention(folder.File("s"), folder.File("t"));
  EXPECT_NE(again.message().find("has selective attention already"), std::string::npos) << again.ToString();
  config.model_type = "mistral";
  config.sliding_window = 4;
  ASSERT_TRUE(SaveModelDirectory(folder.File("w"), config, parameters.Source()).ok());
  EXPECT_FALSE(AddSelectiveAttention(folder.File("w"), folder.File("t")).ok());
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
