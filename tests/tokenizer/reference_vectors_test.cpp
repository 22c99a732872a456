#include <gtest/gtest.h>

#include "base/file.h"
#include "base/strings.h"
#include "tests/shared_data.h"
#include "tests/tokenizer/tokenizer_json.h"

namespace quern {
namespace {

std::shared_ptr<const Tokenizer> MustLoad(const std::string& path) {
  auto tokenizer = Tokenizer::Load(SharedData(path));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().ToString();
  return tokenizer.ok() ? *tokenizer : nullptr;
}

std::vector<std::string> SplitAt(const std::string& text, const std::string& separator) {
  std::vector<std::string> parts;
  size_t from = 0;
  for (size_t at; (at = text.find(separator, from)) != std::string::npos; from = at + separator.size())
    parts.push_back(text.substr(from, at - from));
  return parts;
}

std::string Streamed(const std::shared_ptr<const Tokenizer>& tokenizer, const Ids& ids) {
  StreamDecoder decoder(tokenizer, false);
  std::string text;
  for (const int32_t id : ids) text += decoder.Add(id);
  return text + decoder.Finish();
}

void CheckLlamaCppVectors(const std::string& name, const std::string& tokenizer_path) {
  const auto tokenizer = MustLoad(tokenizer_path);
  ASSERT_NE(tokenizer, nullptr);
  const std::string base = "tokenizer-vectors/ggml-vocab-" + name + ".gguf";
  const auto texts = SplitAt(*ReadFile(SharedData(base + ".inp")), "\n__ggml_vocab_test__\n");
  const auto lines = SplitAt(*ReadFile(SharedData(base + ".out")), "\n");
  ASSERT_EQ(texts.size(), lines.size());
  ASSERT_GE(texts.size(), 46u);
  for (size_t i = 0; i < texts.size(); ++i) {
    Ids expected;
    for (const std::string& id : StrSplit(lines[i], ' '))
      if (!id.empty()) expected.push_back(std::stoi(id));
    EXPECT_EQ(tokenizer->Encode(texts[i], false), expected) << "text " << i << ": " << texts[i];
    EXPECT_EQ(tokenizer->Decode(expected, false), texts[i]);
    EXPECT_EQ(Streamed(tokenizer, expected), texts[i]);
  }
}

TEST(ReferenceVectors, Gpt2) {
  QUERN_NEED_SHARED_DATA("tokenizer-vectors");
  CheckLlamaCppVectors("gpt-2", "tokenizers/gpt2");
}

TEST(ReferenceVectors, Qwen2) {
  QUERN_NEED_SHARED_DATA("tokenizer-vectors");
  CheckLlamaCppVectors("qwen2", "tokenizers/qwen3");
}

TEST(ReferenceVectors, Stories260k) {
  QUERN_NEED_SHARED_DATA("stories260k");
  const auto tokenizer = MustLoad("stories260k/hf");
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->vocab_size(), 512);
  const auto golden = ReadJsonFile(SharedData("stories260k/golden/encode.json"));
  ASSERT_TRUE(golden.ok());
  for (const Json& row : *golden) {
    const auto text = row["text"].get<std::string>();
    const Ids ids = tokenizer->Encode(text, true);
    EXPECT_EQ(ids, row["ids"].get<Ids>()) << text;
    EXPECT_EQ(tokenizer->Decode(ids, true), text);
  }
}

TEST(ReferenceVectors, RoundTrip) {
  QUERN_NEED_SHARED_DATA("tokenizers");
  std::string all;
  for (const char* file : {"address.txt", "german.txt", "tinystories_sample.txt"})
    all += *ReadFile(SharedData(std::string("tokenizer-vectors/cs336/") + file));
  all += "\u00e9 e\u0301x 😀👩‍👩‍👧 \u0000\t\r\n  日本語  नमस्ते";
  for (const char* name : {"tokenizers/gpt2", "tokenizers/smollm2", "tokenizers/minimind", "stories260k/hf"}) {
    const auto tokenizer = MustLoad(name);
    ASSERT_NE(tokenizer, nullptr);
    const Ids ids = tokenizer->Encode(all, false);
    EXPECT_EQ(tokenizer->Decode(ids, false), all) << name;
    EXPECT_EQ(Streamed(tokenizer, ids), all) << name;
  }
}

// A vocabulary and merges of another BPE trainer, put into a tokenizer.json.
TEST(ReferenceVectors, TrainedElsewhere) {
  QUERN_NEED_SHARED_DATA("tokenizer-vectors/cs336");
  const std::string dir = SharedData("tokenizer-vectors/cs336/");
  Json json = EmptyTokenizer();
  json["model"]["vocab"] = *ReadJsonFile(dir + "train-bpe-reference-vocab.json");
  for (const std::string& line : SplitAt(*ReadFile(dir + "train-bpe-reference-merges.txt"), "\n"))
    json["model"]["merges"].push_back(line);
  json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  json["decoder"] = {{"type", "ByteLevel"}};
  json["added_tokens"].push_back(AddedJson(0, "<|endoftext|>"));
  const auto tokenizer = MustParse(json);
  ASSERT_NE(tokenizer, nullptr);
  const std::string text = *ReadFile(dir + "corpus.en");
  const Ids ids = tokenizer->Encode(text, false);
  EXPECT_EQ(tokenizer->Decode(ids, false), text);
  EXPECT_LT(ids.size(), text.size() * 6 / 10);  // the merges are in use
  EXPECT_EQ(tokenizer->Encode("<|endoftext|>", false), Ids{0});
}

}  // namespace
}  // namespace quern
