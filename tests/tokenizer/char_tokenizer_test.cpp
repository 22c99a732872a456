#include "model/tokenizer/char_tokenizer.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "tests/shared_data.h"
#include "tests/tokenizer/tokenizer_json.h"

namespace quern {
namespace {

TEST(CharTokenizer, PiecesAreTheVocabulary) {
  const std::vector<std::string> specials = {"<pad>", "<s>", "</s>", "<unk>"};
  const std::vector<std::string> pieces = {"a", "b", " ", "é", "\n", " a", "Wordle:", "<b>", "ab", "日本"};
  ScratchFolder folder;
  ASSERT_TRUE(WriteTokenizer(folder.path(), pieces, specials, {"<s>", "</s>", "<unk>", "<pad>"}).ok());
  const auto loaded = Tokenizer::Load(folder.path());
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  const Tokenizer& t = **loaded;
  EXPECT_EQ(t.vocab_size(), 14);
  for (size_t i = 0; i < pieces.size(); ++i) {
    EXPECT_EQ(t.Encode(pieces[i], true), (Ids{static_cast<int32_t>(4 + i)})) << pieces[i];
    EXPECT_EQ(t.TokenText(static_cast<int32_t>(4 + i)), pieces[i]);
  }
  EXPECT_EQ(t.Encode("abé a\nWordle:</s>日x", false), (Ids{12, 7, 9, 8, 10, 2, 3, 3}));
  EXPECT_EQ(t.Decode(Ids{1, 10, 9, 12, 13, 2}, true), "Wordle: aab日本");
  EXPECT_EQ(t.Decode(Ids{1, 10, 2}, false), "<s>Wordle:</s>");
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.unk_id(), 3);
  EXPECT_EQ(t.pad_id(), 0);
}

TEST(CharTokenizer, RefusesWhatCannotBeAVocabulary) {
  EXPECT_FALSE(MakeTokenizerJson({"a", "a"}, {}).ok());
  EXPECT_FALSE(MakeTokenizerJson({"a"}, {"a"}).ok());
  EXPECT_FALSE(MakeTokenizerJson({""}, {}).ok());
  EXPECT_FALSE(MakeTokenizerJson({"\xff"}, {}).ok());
}

TEST(CharTokenizer, CharOrds) {
  ScratchFolder folder;
  const auto load = [&](const std::string& config) {
    EXPECT_TRUE(WriteFileAtomic(folder.File("tokenizer_config.json"), config).ok());
    return Tokenizer::Load(folder.path());
  };
  const auto t = load(R"({"char_ords": [48, 49, 233]})");
  ASSERT_TRUE(t.ok()) << t.status().ToString();
  EXPECT_EQ((*t)->Encode("01éSEPUx", true), (Ids{4, 5, 6, 0, 1, 2, 3, 3}));
  EXPECT_EQ((*t)->Decode(Ids{4, 6, 0, 99, -1}, false), "0éS");
  EXPECT_EQ((*t)->Decode(Ids{4, 6, 0, 1}, true), "0é");
  EXPECT_EQ((*t)->vocab_size(), 7);
  for (const char* bad :
       {R"({"char_ords": []})", R"({"char_ords": [55296]})", R"({"char_ords": [-1]})", R"({"char_ords": [48, 48]})",
        R"({"char_ords": [83]})", R"({"char_ords": "x"})", R"({"char_ords": [1114112]})"})
    EXPECT_FALSE(load(bad).ok()) << bad;
  EXPECT_FALSE(load("{}").ok());
}

TEST(CharTokenizer, DigitCompletionFixture) {
  QUERN_NEED_SHARED_DATA("digit-completion");
  const auto t = Tokenizer::Load(SharedData("digit-completion/model"));
  ASSERT_TRUE(t.ok()) << t.status().ToString();
  const auto acceptance = ReadJsonFile(SharedData("digit-completion/ACCEPTANCE.json"));
  for (const auto& [piece, id] : (*acceptance)["token_ids"].items()) {
    EXPECT_EQ((*t)->Encode(piece, true), (Ids{id.get<int32_t>()}));
    EXPECT_EQ((*t)->TokenText(id.get<int32_t>()), piece);
  }
  EXPECT_EQ((*t)->vocab_size(), 16);
}

}  // namespace
}  // namespace quern
