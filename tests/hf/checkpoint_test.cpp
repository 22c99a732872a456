#include <gtest/gtest.h>

#include "base/file.h"
#include "model/hf/json_reader.h"
#include "model/hf/model_directory.h"
#include "tests/shared_data.h"

namespace quern {
namespace {

void ExpectOpenError(const std::string& dir, const std::string& part) {
  const auto checkpoint = Checkpoint::Open(dir);
  ASSERT_FALSE(checkpoint.ok()) << part;
  EXPECT_NE(checkpoint.status().message().find(part), std::string::npos) << checkpoint.status().ToString();
}

Status Write(const std::string& path, std::vector<NamedTensor> tensors) {
  return WriteSafetensors(path, std::move(tensors));
}

TEST(Checkpoint, ReadsShards) {
  ScratchFolder folder;
  Tensor a(DType::kF32, 2, 2), b(DType::kBf16, 1, 3);
  a.Row<float>(1)[0] = 4.0f;
  ASSERT_TRUE(Write(folder.File("m-1.safetensors"), {{"a", a}}).ok());
  ASSERT_TRUE(Write(folder.File("m-2.safetensors"), {{"b", b}}).ok());
  const std::string index = folder.File("model.safetensors.index.json");
  ASSERT_TRUE(WriteFileAtomic(index, R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})").ok());
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  const auto view = (*checkpoint)->Find("a");
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(view->Row<float>(1)[0], 4.0f);
  EXPECT_EQ((*checkpoint)->Find("b")->rows, 1);
  EXPECT_EQ((*checkpoint)->Find("b")->dtype, DType::kBf16);
  EXPECT_EQ((*checkpoint)->Find("c").status().code(), StatusCode::kNotFound);

  ASSERT_TRUE(WriteFileAtomic(index, R"({"weight_map":{"b":"m-1.safetensors"}})").ok());
  ExpectOpenError(folder.path(), "tensor b is not in m-1.safetensors");
  ASSERT_TRUE(WriteFileAtomic(index, R"({"weight_map":{"a":"m-1.safetensors","c":"m-3.safetensors"}})").ok());
  ExpectOpenError(folder.path(), "m-3.safetensors");
  ASSERT_TRUE(Write(folder.File("m-2.safetensors"), {{"a", a}}).ok());
  ASSERT_TRUE(WriteFileAtomic(index, R"({"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}})").ok());
  ExpectOpenError(folder.path(), "tensor a is in more than one file");
}

TEST(Checkpoint, IndexMayNameOnlyFilesInsideTheFolder) {
  ScratchFolder folder;
  for (const char* bad :
       {"\"../x.safetensors\"", "\"/etc/passwd\"", "\"a/b\"", "\"..\"", "\"\"", "3", "\"a\\u0000b\""}) {
    ASSERT_TRUE(WriteFileAtomic(folder.File("model.safetensors.index.json"),
                                std::string("{\"weight_map\":{\"a\":") + bad + "}}")
                    .ok());
    ExpectOpenError(folder.path(), "not a plain file name");
  }
  for (const char* bad : {"{}", "[]", "{\"weight_map\":[]}", "{\"weight_map\":{}}", "{"}) {
    ASSERT_TRUE(WriteFileAtomic(folder.File("model.safetensors.index.json"), bad).ok());
    EXPECT_FALSE(Checkpoint::Open(folder.path()).ok()) << bad;
  }
}

TEST(Checkpoint, RefusesPickleAndNothing) {
  ScratchFolder folder;
  ExpectOpenError(folder.path(), "no model.safetensors");
  ASSERT_TRUE(WriteFileAtomic(folder.File("pytorch_model.bin"), "x").ok());
  ExpectOpenError(folder.path(), "pickled");
}

TEST(Checkpoint, UnalignedTensorsAreUsable) {
  ScratchFolder folder;
  std::string header = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} )";
  if ((8 + header.size()) % 4 == 0) header += ' ';
  std::string file(8, '\0');
  file[0] = static_cast<char>(header.size());
  const float values[2] = {1.5f, -2.0f};
  file += header + std::string(reinterpret_cast<const char*>(values), 8);
  ASSERT_TRUE(WriteFileAtomic(folder.File("model.safetensors"), file).ok());
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  const auto view = (*checkpoint)->Find("a");
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(view->data) % 4, 0u);
  EXPECT_EQ(view->Row<float>(0)[1], -2.0f);
}

TEST(Checkpoint, NamesMissingMisshapenAndUnexpectedTensors) {
  ScratchFolder folder;
  ModelConfig config;
  config.vocab_size = 8;
  config.hidden_size = 4;
  config.intermediate_size = 6;
  config.layers = config.heads = config.kv_heads = 1;
  config.head_dim = 4;
  Parameters parameters(config);
  parameters.Initialize(config, 1);
  std::vector<NamedTensor> all;
  for (const ParameterInfo& info : parameters.layout().parameters())
    all.push_back(
        {info.name, parameters.View(info.name), info.decay ? std::vector<int64_t>{} : std::vector<int64_t>{info.cols}});
  const auto check = [&](const std::vector<NamedTensor>& tensors) {
    EXPECT_TRUE(Write(folder.File("model.safetensors"), tensors).ok());
    return (*Checkpoint::Open(folder.path()))->CheckMatches(config);
  };
  EXPECT_TRUE(check(all).ok());

  std::vector<NamedTensor> changed = all;
  changed.erase(changed.begin() + 2);
  EXPECT_NE(check(changed).message().find("tensor " + all[2].name + " is missing"), std::string::npos);
  changed = all;
  changed[0].shape = {4, 8};
  EXPECT_NE(check(changed).message().find("shape [4, 8], config.json asks for [8, 4]"), std::string::npos);
  changed = all;
  changed.push_back({"model.layers.0.self_attn.q_proj.bias", all[1].view});
  EXPECT_NE(check(changed).message().find("tensor model.layers.0.self_attn.q_proj.bias is not part"),
            std::string::npos);
  changed.back().name = "model.layers.0.self_attn.rotary_emb.inv_freq";
  EXPECT_TRUE(check(changed).ok());
  Tensor ints(DType::kI32, 8, 4);
  changed = all;
  changed[0].view = ints;
  EXPECT_NE(check(changed).message().find("model.embed_tokens.weight is I32"), std::string::npos);
  config.tie_word_embeddings = true;
  EXPECT_TRUE(check(all).ok());
}

}  // namespace
}  // namespace quern
